"""Accuracy over choices (lm-eval's `acc` and `acc_norm`, 0-shot), losses of responses, and perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.choices import choice_loglikelihoods
from fedproxy_secure.data.encode import Encoded, encode_records, text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.models.packing.packed import can_pack, packed_logits
from fedproxy_secure.models.packing.packs import Row, pack_rows
from fedproxy_secure.models.passes import LOGITS, PASS_TOKENS, vocabulary_size, windows_a_pass


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Which records a model answered correctly, by both measures of lm-eval, in the records' order.

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
    """Return which records a model answers correctly, by `acc` and by `acc_norm`, from one pass.

    A record is answered wrong if a score of its choices is no number, or none is finite: of such scores, as
    a diverged model has them, the first would count as the largest.

    The arguments and errors are those of `choice_loglikelihoods`.
    """
    scores = choice_loglikelihoods(model, tokenizer, records, max_tokens=max_tokens, on_passes=on_passes)
    pairs = list(zip(scores, records, strict=True))
    return Correct(
        acc=np.array([_is_right(s, s, r) for s, r in pairs], dtype=bool),
        acc_norm=np.array([_is_right(s, _per_character(s, r), r) for s, r in pairs], dtype=bool),
    )


def _is_right(scores: np.ndarray, ranked: np.ndarray, record: Record) -> bool:
    return bool(np.isfinite(scores.max())) and int(np.argmax(ranked)) == record.label


def _per_character(scores: np.ndarray, record: Record) -> np.ndarray:
    """Return log-likelihoods of choices over their lengths without the leading space, float64 [choices].

    As in lm-eval, a choice without characters has minus infinity.
    """
    characters = np.array([len(c.removeprefix(" ")) for c in record.choices], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_character: np.ndarray = np.where(characters > 0, scores / characters, -np.inf)
    return per_character


@dataclass(frozen=True, kw_only=True)
class ResponseLosses:
    """The losses of a model on records' responses, in the records' order.

    Args:
        nats: negative log-likelihood of each response after its prompt, infinite if it is not a number,
            float64 [n].
        tokens: tokens of each response, including those that end it, int64 [n].
    """

    nats: np.ndarray
    tokens: np.ndarray


@torch.inference_mode()
def response_losses(
    model: nn.Module,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_passes: Callable[[int, int], None] | None = None,
) -> ResponseLosses:
    """Return a model's loss on each record's response, after its prompt as training cuts it.

    Training minimises the mean over records of each response's loss per token. Reports divide all nats by
    all tokens, which gives long responses more weight. A loss that is not finite, as for a diverged model,
    becomes infinite.

    `on_passes(done, all)` is called after every pass with the number of records read so far.

    Raises `DataError` for a response that leaves no room for a prompt token.
    """
    items = encode_records(records, tokenizer, max_tokens=max_tokens).items
    nats, done = np.zeros(len(items)), 0
    training = model.training
    model.eval()
    try:
        for group in _groups(model, items):
            nats[group] = _response_nats(model, [items[i] for i in group])
            done += len(group)
            if on_passes is not None:
                on_passes(done, len(items))
    finally:
        model.train(training)
    nats[~np.isfinite(nats)] = np.inf
    tokens = np.array([len(item.ids) - item.response_start for item in items], dtype=np.int64)
    return ResponseLosses(nats=nats, tokens=tokens)


def _groups(model: nn.Module, items: Sequence[Encoded]) -> Iterator[list[int]]:
    """Yield groups of items of similar length for one pass; single items if the model cannot be packed."""
    group: list[int] = []
    tokens = positions = 0
    vocabulary, packs = vocabulary_size(model), can_pack(model)
    for index in sorted(range(len(items)), key=lambda i: -len(items[i].ids)):
        length = len(items[index].ids)
        needed = length - items[index].response_start
        full = tokens + length > PASS_TOKENS or (positions + needed) * vocabulary > LOGITS
        if group and (full or not packs):
            yield group
            group, tokens, positions = [], 0, 0
        group.append(index)
        tokens, positions = tokens + length, positions + needed
    if group:
        yield group


def _response_nats(model: nn.Module, items: Sequence[Encoded]) -> list[float]:
    """Return the negative log-likelihood of each item's response, nats, from one pass."""
    device = next(model.parameters()).device
    pack = pack_rows([Row(trunk=item.ids) for item in items], device)
    sizes = [len(item.ids) - item.response_start for item in items]
    ends = [start + len(item.ids) - 1 for item, start in zip(items, pack.starts, strict=True)]
    keep = torch.cat([torch.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)]).to(device)
    if len(items) == 1:
        logits = model(input_ids=pack.ids, use_cache=False, logits_to_keep=keep).logits[0]
    else:
        logits = packed_logits(model, pack, keep)
    nll = nn.functional.cross_entropy(logits.float(), pack.ids[0, keep + 1], reduction="none").double()
    return [float(part.sum().clamp_min(0)) for part in nll.split(sizes)]  # rounding may leave -1e-8


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
