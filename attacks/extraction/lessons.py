"""Train an adversary's model, all weights or only the fillers, by distillation or by healing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.base import Budget
from attacks.extraction.api import Api
from fedproxy_secure.config import Answers, ApiConfig
from fedproxy_secure.models.passes import windows_a_pass
from fedproxy_secure.serve.disclosure import ApiAnswer, tell

Lesson = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (logits, texts) -> nats per token
TOP = 20  # tokens that the weaker API of a control tells, with their probabilities
LEARNING_RATE = 3e-3
WARM_UP = 0.05  # share of the steps; afterwards the rate falls linearly to 0
CHECKS = 4  # evaluations on held-out texts during training, one every third step at most
MOST_CHECKED = 32  # the most texts that are held out to choose a state by
GOOD_ENOUGH = 1e-7  # nats; below it nothing remains to learn
LITTLE_NOISE = 0.5  # nats; up to here KL to noisy logits estimates the true KL better than `_near`
DEVIATIONS = 6.0  # beyond these, the part outside a head's span is more than noise


def imitate(api: Api, answers: Answers | None = None, span: torch.Tensor | None = None) -> Lesson:
    """Return the loss of a model that should behave like the API, by the kind of the API's answers.

        logits           KL of all logits
        logits + noise   the same to second order, plus half the noise's variance for every model;
                         noise outside of `span` is removed first, and if the remaining noise is at
                         most `LITTLE_NOISE`, the loss is KL as without noise
        top_k            KL of the returned tokens and of all others together
        text             how far the model's first choice is above the API's. Without gradients:
                         the share of tokens at which they differ, which flat logits cannot make
                         small

    Likelihood of the API's first choice does worse for `text`: it makes the model surer than the API is.

    Args:
        api: the API.
        answers: the kind of answer that is used, for controls that get less (`TOP` tokens); by default the
            kind that the API gives.
        span: the space in which the LLM's logits are known to lie (`span_of`), float32 [V, k].
    """

    def lesson(logits: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        answer = api.ask(texts)
        if answers == "text":
            answer = ApiAnswer(answers="text", tokens=answer.likeliest.unsqueeze(-1))
        elif answers == "top_k" and answer.answers == "logits":
            assert answer.numbers is not None
            answer = tell(answer.numbers, texts, ApiConfig(answers="top_k", top_k=TOP))
        numbers = None if answer.numbers is None else answer.numbers.to(logits.device)
        if answer.tokens is None:
            assert numbers is not None
            noise = api.policy.noise
            if noise and (span is None or noise * math.sqrt(span.shape[1] / span.shape[0]) > LITTLE_NOISE):
                return _near(numbers, logits, noise, span)
            if noise and span is not None:
                numbers = _projected(numbers, span)
            return _divergence(numbers.log_softmax(-1), logits)
        tokens = answer.tokens.to(logits.device)
        if numbers is None:
            return _first_choice(tokens, logits)
        model_logs = logits.log_softmax(-1).gather(-1, tokens)
        api_logs, model_logs = (torch.cat([x, _rest(x)], dim=-1) for x in (numbers, model_logs))
        return (api_logs.exp() * (api_logs - model_logs)).sum(-1).mean()

    return lesson


def _first_choice(first: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return by how much a model's likeliest token is above the API's `first`, int64 [..., 1], in nats.

    Without gradients, where models are compared, it is the share of tokens at which they differ.
    """
    lead = logits.amax(-1, keepdim=True) - logits.gather(-1, first)
    return lead.mean() if torch.is_grad_enabled() else (lead > 0).float().mean()


def _near(
    noisy: torch.Tensor, logits: torch.Tensor, noise: float, span: torch.Tensor | None = None
) -> torch.Tensor:
    """Return half the variance of a model's error in logits under its own probabilities, nats.

    It is the KL to second order, plus half the noise's variance. The average effect of noise depends on the
    model only through p and is known from the noise's level, so it is subtracted: a surer model gains
    nothing by it.

    Args:
        noisy: logits with noise of standard deviation `noise`, float32 [..., V].
        logits: the model's.
        noise: the level.
        span: an orthonormal basis, float32 [V, k], of a space in which the logits without noise lie; the
            noise outside of it is removed.
    """
    p = logits.detach().softmax(-1)
    if span is None:
        added = 1 - torch.linalg.vecdot(p, p)  # the variance under p of noise of level 1
    else:
        span = span.to(logits.device)
        noisy = _projected(noisy, span)
        added = p @ span.square().sum(-1) - (p @ span).square().sum(-1)
    error = noisy - logits
    error = error - torch.linalg.vecdot(p, error).unsqueeze(-1)
    variance = torch.linalg.vecdot(p, error.square()) - noise**2 * added
    half: torch.Tensor = (variance.mean() + noise**2) / 2
    return half


def _projected(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Return logits, float32 [..., V], projected onto a span, [V, k]."""
    span = span.to(logits.device)
    projected: torch.Tensor = logits @ span @ span.T
    return projected


def _divergence(log_p: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean KL from log-probabilities [..., V] to a model's logits, nats; few arrays of V."""
    p = log_p.exp()
    entropy = -torch.linalg.vecdot(p, log_p)
    mean: torch.Tensor = (logits.logsumexp(-1) - torch.linalg.vecdot(p, logits) - entropy).mean()
    return mean


def span_of(model: nn.Module) -> torch.Tensor:
    """Return an orthonormal basis, float32 [V, k], of the space in which a model's logits lie.

    Logits are the head's matrix times a hidden state, so those of all texts lie in the span of its columns:
    k is the hidden size, 1 more for a number that all logits of a token share, and 1 more for a bias. Noise
    in every logit has only k / V of its variance there; whoever holds the head can remove the rest.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    columns = [head.weight.detach().float()]
    if getattr(head, "bias", None) is not None:
        columns.append(head.bias.detach().float().unsqueeze(1))
    columns.append(torch.ones(len(columns[0]), 1, device=columns[0].device))
    basis: torch.Tensor = torch.linalg.qr(torch.cat(columns, dim=1)).Q
    return basis


def holds(basis: torch.Tensor, noisy: torch.Tensor, noise: float) -> bool:
    """Return whether the part of logits outside of a span is no more than the noise.

    It is more if the span's head is poorer than the LLM's head: narrower, or of low rank.

    Args:
        basis: float32 [V, k].
        noisy: logits with noise, float32 [..., V].
        noise: the noise's standard deviation, nats.
    """
    flat = noisy.flatten(0, -2).to(basis.device)
    outside = flat - _projected(flat, basis)
    freedom = len(flat) * (basis.shape[0] - basis.shape[1])
    if freedom == 0:
        return False
    variance = float(outside.square().sum(dtype=torch.float64)) / freedom
    return variance <= noise**2 * (1 + DEVIATIONS * math.sqrt(2 / freedom))


def predict(logits: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the language model's own loss: that of predicting the next token of a text."""
    targets = texts[:, 1:].to(logits.device)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())


@torch.no_grad()
def loss_of(model: nn.Module, texts: torch.Tensor, lesson: Lesson, *, budget: Budget) -> float:
    """Return a model's loss on texts, int64 [n, tokens], in nats per token."""
    total = 0.0
    for part in texts.split(windows_a_pass(model, texts)):
        budget.check()
        total += float(lesson(_logits(model, part), part)) * len(part)
    return total / len(texts)


def teach(
    model: nn.Module,
    trained: Sequence[nn.Module],
    lesson: Lesson,
    texts: torch.Tensor,
    held_out: torch.Tensor,
    *,
    steps: int,
    batch: int,
    rng: np.random.Generator,
    budget: Budget,
    rate: float = LEARNING_RATE,
    checks: int = CHECKS,
    keeps_best: bool = True,
) -> float:
    """Train only the parameters of `trained`, in place, and return the held-out loss.

    Args:
        model: the model, in evaluation mode.
        trained: modules of it.
        lesson: the loss.
        texts: texts to train on, int64 [n, tokens].
        held_out: texts to choose a state by, int64 [m, tokens].
        steps, batch: number of AdamW steps, and texts of each.
        rng: which texts a step reads.
        budget: checked in every step.
        rate: the highest learning rate, after `WARM_UP`.
        checks: the most evaluations on `held_out` after the first.
        keeps_best: whether the model ends in its best state instead of its last.

    Guarantees: with `keeps_best` the model ends in the state that was best on `held_out`, among its start
    and at most `checks` evaluations.
    """
    parameters = list(dict.fromkeys(p for module in trained for p in module.parameters()))
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    best = loss_of(model, held_out, lesson, budget=budget)
    state = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    checks = min(checks, max(1, steps // 3))
    looks = {round(steps * (i + 1) / checks) for i in range(checks)}
    for step in range(steps if best > GOOD_ENOUGH else 0):
        budget.check()
        share = min(1.0, (step + 1) / max(1.0, WARM_UP * steps)) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        part = texts[torch.from_numpy(rng.choice(len(texts), min(batch, len(texts)), replace=False))]
        loss = lesson(_logits(model, part), part)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step + 1 in looks:
            current = loss_of(model, held_out, lesson, budget=budget)
            if current < best or not keeps_best:
                best = current
                _copy(parameters, state)
    _copy(state, parameters)
    for p in parameters:
        p.requires_grad_(False)
        p.grad = None
    return best


def held_out_count(count: int) -> int:
    """Return how many of `count` texts are held out to choose a state by."""
    return min(MOST_CHECKED, max(4, count // 8))


def split(texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts to train on, and an eighth of them, 4 to `MOST_CHECKED`, to choose a state by."""
    aside = held_out_count(len(texts))
    return texts[:-aside], texts[-aside:]


def newborn(model: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same shape with random weights: the starting point without the proxy."""
    kind: Any = type(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: nn.Module = kind(copy.deepcopy(model.config))
    return fresh.to(next(model.parameters()).device).eval()


def _logits(model: nn.Module, texts: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=texts.to(device), use_cache=False).logits.float()
    return logits


def _rest(logs: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of all other tokens together, [..., 1]."""
    return (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(1e-7).log()


@torch.no_grad()
def _copy(values: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
