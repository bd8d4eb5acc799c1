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
from fedproxy_secure.data.encode import Encoded, training_batch

MIN_K = 0.2  # Min-K% looks at this share of a text, its least likely tokens
BATCH = 32
STEMS = 128  # continuations of a prompt in one pass, not counting their last token


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


@torch.inference_mode()
def likelihoods(
    model: nn.Module, items: Sequence[Encoded], *, pad_id: int, budget: Budget
) -> list[Likelihoods]:
    """Return the likelihoods of every item's response tokens, in order."""
    results = []
    for at in range(0, len(items), BATCH):
        budget.check()
        batch = training_batch(items[at : at + BATCH], pad_id=pad_id, device="cpu")
        positions = batch.response.any(dim=0).nonzero().flatten()
        logits = model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            use_cache=False,
            logits_to_keep=positions,
        ).logits
        logs = logits.float().log_softmax(-1)
        target = batch.ids[:, positions + 1]
        picked = logs.gather(-1, target[..., None]).squeeze(-1)
        p = logs.exp()
        mean = (p * logs).sum(-1)
        spread = ((p * logs.square()).sum(-1) - mean.square()).clamp_min(1e-6).sqrt()
        standard = (picked - mean) / spread
        for row, wanted in enumerate(batch.response[:, positions] > 0):
            results.append(
                Likelihoods(
                    nll=-picked[row][wanted].double().numpy(),
                    standard=standard[row][wanted].double().numpy(),
                )
            )
    return results


@torch.inference_mode()
def continuation_losses(
    model: nn.Module, prompt: Sequence[int], continuations: Sequence[tuple[int, ...]], *, budget: Budget
) -> np.ndarray:
    """Return the negative log-likelihood, nats, of each continuation of a prompt: float64 [n].

    The losses are sums over tokens. The prompt runs once per batch, and continuations that differ only in
    their last token run together.
    """
    from transformers import DynamicCache

    losses = np.empty(len(continuations))
    stems: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for index, tokens in enumerate(continuations):
        stems.setdefault(len(tokens), {}).setdefault(tokens[:-1], []).append(index)
    for length, by_stem in stems.items():
        rows = list(by_stem.items())
        for at in range(0, len(rows), STEMS):
            budget.check()
            part = rows[at : at + STEMS]
            cache = DynamicCache()
            begun = model(input_ids=torch.tensor([list(prompt)]), past_key_values=cache, use_cache=True)
            logits = begun.logits[:, -1:].float().expand(len(part), -1, -1)
            if length > 1:
                cache.batch_repeat_interleave(len(part))
                ids = torch.tensor([stem for stem, _ in part])
                rest = model(input_ids=ids, past_key_values=cache, use_cache=True).logits.float()
                logits = torch.cat([logits, rest], dim=1)
            logs = logits.double().log_softmax(-1)
            for row, (_, indices) in zip(logs, part, strict=True):
                for index in indices:
                    target = torch.tensor(continuations[index])[:, None]
                    losses[index] = -float(row.gather(-1, target).sum())
    return losses


def membership_scores(
    results: Sequence[Likelihoods], items: Sequence[Encoded], tokenizer: Any
) -> dict[str, np.ndarray]:
    """Return scores by name, float64 [n], higher for members: loss, loss/zlib, Min-K%, Min-K%++.

    Carlini et al. 2021 (zlib), Shi et al. 2024 (Min-K%), Zhang et al. 2025 (Min-K%++).
    """

    def lowest(values: np.ndarray) -> float:
        count = max(1, round(MIN_K * len(values)))
        return float(np.sort(values)[:count].mean())

    texts = [tokenizer.decode(item.ids).encode() for item in items]
    return {
        "loss": np.array([-f.nll.mean() for f in results]),
        "loss/zlib": np.array(
            [-f.nll.sum() / len(zlib.compress(t)) for f, t in zip(results, texts, strict=True)]
        ),
        "Min-K%": np.array([lowest(-f.nll) for f in results]),
        "Min-K%++": np.array([lowest(f.standard) for f in results]),
    }
