"""Train fillers, the adversary's replacements of dropped blocks: by distillation or by healing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from attacks.base import Budget
from attacks.extraction.api import Api
from fedproxy_secure.models.passes import windows_a_pass

Answers = Literal["logits", "top_k", "text"]
Lesson = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (logits, texts) -> nats per token
TOP = 20  # tokens that a `top_k` API returns, with their probabilities
LEARNING_RATE = 3e-3
WARM_UP = 0.05  # share of the steps; afterwards the rate falls linearly to 0
CHECKS = 8  # evaluations on held-out texts during training, one every third step at most
GOOD_ENOUGH = 1e-7  # nats; below it nothing is left to learn


def imitate(api: Api, answers: Answers = "logits") -> Lesson:
    """Return the loss of a model that should behave like the API.

    It is the KL of all logits (`logits`), or of the `TOP` likeliest tokens and the rest (`top_k`), or the
    loss on the API's first choice (`text`).
    """

    def lesson(logits: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        theirs = api.ask(texts).to(logits.device).log_softmax(-1)
        if answers == "logits":
            return _divergence(theirs, logits)
        mine = logits.log_softmax(-1)
        if answers == "text":
            return -mine.gather(-1, theirs.argmax(-1, keepdim=True)).mean()
        if answers == "top_k":
            theirs, chosen = theirs.topk(min(TOP, theirs.shape[-1] - 1), dim=-1)
            mine = mine.gather(-1, chosen)
            theirs, mine = (torch.cat([x, _rest(x)], dim=-1) for x in (theirs, mine))
        return (theirs.exp() * (theirs - mine)).sum(-1).mean()

    return lesson


def _divergence(theirs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the mean KL from log-probabilities [..., V] to a model's logits, nats: few arrays of V."""
    p = theirs.exp()
    entropy = -torch.linalg.vecdot(p, theirs)
    mean: torch.Tensor = (logits.logsumexp(-1) - torch.linalg.vecdot(p, logits) - entropy).mean()
    return mean


def predict(logits: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the loss of predicting the next token of a text: the language model's own loss."""
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
) -> float:
    """Train the parameters of `trained` in place, leave all others, and return the held-out loss.

    Guarantees: the model ends in the state that was best on `held_out`, among its start and at most
    `CHECKS` evaluations.
    """
    parameters = [p for module in trained for p in module.parameters()]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    best = loss_of(model, held_out, lesson, budget=budget)
    state = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    checks = min(CHECKS, max(1, steps // 3))
    looks = {round(steps * (i + 1) / checks) for i in range(checks)}
    for step in range(steps if best > GOOD_ENOUGH else 0):
        budget.check()
        rate = LEARNING_RATE * min(1.0, (step + 1) / max(1.0, WARM_UP * steps)) * (1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        part = texts[torch.from_numpy(rng.choice(len(texts), min(batch, len(texts)), replace=False))]
        loss = lesson(_logits(model, part), part)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step + 1 in looks:
            now = loss_of(model, held_out, lesson, budget=budget)
            if now < best:
                best = now
                _copy(parameters, state)
    _copy(state, parameters)
    for p in parameters:
        p.requires_grad_(False)
        p.grad = None
    return best


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
