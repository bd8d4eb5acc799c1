"""Accuracy by log-likelihood over the choices (lm-eval's `acc` and `acc_norm`, 0-shot), and perplexity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.choices import choice_loglikelihoods
from fedproxy_secure.data.encode import text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.models.passes import windows_a_pass


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Which records a model answered right, by both measures of lm-eval, in the records' order.

    Args:
        acc: whether the most likely choice is the right one, bool [n].
        acc_norm: the same with each log-likelihood divided by the choice's length in characters, without
            its leading space, bool [n].
    """

    acc: np.ndarray
    acc_norm: np.ndarray


def choice_correct(
    model: nn.Module,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_passes: Callable[[int, int], None] | None = None,
) -> Correct:
    """Return which records a model answers right, by `acc` and by `acc_norm`, from one pass.

    The arguments and errors are those of `choice_loglikelihoods`.
    """
    scores = choice_loglikelihoods(model, tokenizer, records, max_tokens=max_tokens, on_passes=on_passes)
    pairs = list(zip(scores, records, strict=True))
    return Correct(
        acc=np.array([int(np.argmax(s)) == r.label for s, r in pairs], dtype=bool),
        acc_norm=np.array([int(np.argmax(_per_character(s, r))) == r.label for s, r in pairs], dtype=bool),
    )


def _per_character(scores: np.ndarray, record: Record) -> np.ndarray:
    """Return log-likelihoods of choices over their lengths without the leading space, float64 [choices].

    As in lm-eval, a choice without characters has minus infinity.
    """
    characters = np.array([len(c.removeprefix(" ")) for c in record.choices], dtype=np.float64)
    with np.errstate(divide="ignore"):
        per_character: np.ndarray = scores / characters
    return per_character


def text_windows(text: str, tokenizer: Tokenizer, *, window_tokens: int, limit: int) -> torch.Tensor:
    """Return the first `limit` whole windows of a text, int64 [n, window_tokens].

    Raises `DataError` if the text does not fill one window.
    """
    characters = 16 * window_tokens * limit  # more than enough; tokenising megabytes takes long
    ids = text_ids(text[:characters], tokenizer)
    count = min(limit, len(ids) // window_tokens)
    if count == 0:
        raise DataError(
            f"public text of {len(ids)} tokens: must fill at least one window of {window_tokens}"
        )
    return torch.tensor(ids[: count * window_tokens], dtype=torch.int64).view(count, -1)


@torch.inference_mode()
def perplexity(model: nn.Module, windows: torch.Tensor) -> float:
    """Return exp of the mean negative log-likelihood per token over windows, int64 [n, tokens]."""
    device = next(model.parameters()).device
    total = 0.0
    for batch in windows.split(windows_a_pass(model, windows)):
        ids = batch.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += float(
            nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        )
    return float(np.exp(total / (windows.shape[0] * (windows.shape[1] - 1))))
