"""Likelihoods per token of texts under a model, and the membership scores computed from them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.base import Budget
from attacks.membership.reading import logits_after
from fedproxy_secure.data.encode import Encoded

MIN_K = 0.2  # Min-K% looks at this share of a text, its least likely tokens
LEAVES = 256  # continuations of a prompt that are read as one tree


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """The likelihoods of one text's response tokens, float64 [n].

    Args:
        nll: negative log-likelihood in nats.
        standard: standard score of the log-likelihood among the vocabulary at that position; higher means
            likelier than most.
    """

    nll: np.ndarray
    standard: np.ndarray


def likelihoods(model: nn.Module, items: Sequence[Encoded], *, budget: Budget) -> list[Likelihoods]:
    """Return the likelihoods of every item's response tokens, in order."""
    results = []
    places = [range(item.response_start - 1, len(item.ids) - 1) for item in items]
    texts = [item.ids for item in items]
    for item, logits in zip(items, logits_after(model, texts, places, budget=budget), strict=True):
        logs = logits.log_softmax(-1)
        target = torch.tensor(item.ids[item.response_start :], device=logs.device)
        picked = logs.gather(-1, target[:, None]).squeeze(-1)
        p = logs.exp()
        mean = (p * logs).sum(-1)
        spread = ((p * logs.square()).sum(-1) - mean.square()).clamp_min(1e-6).sqrt()
        results.append(
            Likelihoods(
                nll=-picked.double().cpu().numpy(),
                standard=((picked - mean) / spread).double().cpu().numpy(),
            )
        )
    return results


@torch.inference_mode()
def continuation_losses(
    model: nn.Module, prompt: Sequence[int], continuations: Sequence[tuple[int, ...]], *, budget: Budget
) -> np.ndarray:
    """Return the negative log-likelihood, nats, of each continuation of a prompt: float64 [n].

    The losses are sums over tokens. Continuations are read as a tree, token by token, so that a common
    beginning is read once.
    """
    losses = np.zeros(len(continuations))
    order = sorted(range(len(continuations)), key=lambda i: continuations[i])
    for at in range(0, len(order), LEAVES):
        budget.check()
        part = order[at : at + LEAVES]
        losses[part] = _tree_losses(model, prompt, [continuations[i] for i in part])
    return losses


def _tree_losses(
    model: nn.Module, prompt: Sequence[int], continuations: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Return the losses of `continuation_losses`, with one pass per level of the tree."""
    from transformers import DynamicCache

    losses, cache = np.zeros(len(continuations)), DynamicCache()
    ids, nodes = torch.tensor([list(prompt)]), dict[tuple[int, ...], int]({(): 0})
    for depth in range(max(map(len, continuations))):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        active = [i for i, c in enumerate(continuations) if len(c) > depth]
        at = torch.tensor([nodes[continuations[i][:depth]] for i in active])
        token_logits = logits[at, torch.tensor([continuations[i][depth] for i in active])]
        losses[active] += (logits.double().logsumexp(-1)[at] - token_logits).numpy()
        stems = dict.fromkeys(c[: depth + 1] for c in continuations if len(c) > depth + 1)
        if not stems:
            break
        cache.batch_select_indices(torch.tensor([nodes[s[:-1]] for s in stems]))
        ids = torch.tensor([[s[-1]] for s in stems])
        nodes = {stem: number for number, stem in enumerate(stems)}
    return losses


def membership_scores(
    results: Sequence[Likelihoods], items: Sequence[Encoded], tokenizer: Any
) -> dict[str, np.ndarray]:
    """Return scores by name, float64 [n], higher for members: loss, loss/zlib, Min-K%, Min-K%++.

    Loss and compressed bytes are those of the response. Carlini et al. 2021 (zlib), Shi et al. 2024
    (Min-K%), Zhang et al. 2025 (Min-K%++).
    """

    def lowest(values: np.ndarray) -> float:
        count = max(1, round(MIN_K * len(values)))
        return float(np.sort(values)[:count].mean())

    texts = [tokenizer.decode(item.ids[item.response_start :]).encode() for item in items]
    return {
        "loss": np.array([-f.nll.mean() for f in results]),
        "loss/zlib": np.array(
            [-f.nll.sum() / len(zlib.compress(t)) for f, t in zip(results, texts, strict=True)]
        ),
        "Min-K%": np.array([lowest(-f.nll) for f in results]),
        "Min-K%++": np.array([lowest(f.standard) for f in results]),
    }
