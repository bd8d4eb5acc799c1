"""Accuracy by log-likelihood over the choices (lm-eval's `acc`, 0-shot), and perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import cut_prompt, many_prompt_ids, many_text_ids, text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class _Query:
    """One pass: a record's prompt and, after it, the beginning that some of its choices share."""

    record: int
    prompt: list[int]
    beginning: tuple[int, ...]
    choices: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.beginning)


@torch.inference_mode()
def choice_loglikelihoods(
    model: nn.Module,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_passes: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Return the log-likelihoods, nats, of each record's choices after its prompt: float64 [choices].

    `on_passes(done, all)` is called after every batch with the number of sequences run so far.

    A choice's last token is never an input, so choices that differ in their last token share a pass, and
    choices of a single token share any.

    Raises `DataError` for a choice that leaves no room for a prompt token.
    """
    scores = [np.zeros(len(r.choices)) for r in records]
    flat = iter(many_text_ids([c for r in records for c in r.choices], tokenizer))
    choices = [[next(flat) for _ in r.choices] for r in records]
    training = model.training
    model.eval()
    queries, done = _queries(records, choices, tokenizer, max_tokens), 0
    for group in _batches(queries):
        for q, log_p in zip(group, _log_probabilities(model, group), strict=True):
            for choice in q.choices:
                tokens = choices[q.record][choice]
                scores[q.record][choice] = log_p[range(len(tokens)), tokens].sum()
        done += len(group)
        if on_passes is not None:
            on_passes(done, len(queries))
    model.train(training)
    return scores


def _log_probabilities(model: nn.Module, group: list[_Query]) -> Iterator[np.ndarray]:
    """Yield, per query, float64 [tokens, V] after its prompt and after each token of its beginning."""
    device = next(model.parameters()).device
    length = max(q.length for q in group)
    ids = torch.zeros((len(group), length), dtype=torch.int64)
    attention, wanted = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, q in enumerate(group):
        ids[row, : q.length] = torch.tensor([*q.prompt, *q.beginning])
        attention[row, : q.length] = 1
        wanted[row, len(q.prompt) - 1 : q.length] = 1
    positions = wanted.any(dim=0).nonzero().flatten()
    logits = model(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        use_cache=False,
        logits_to_keep=positions.to(device),
    ).logits
    for row, mine in enumerate(wanted[:, positions].bool()):
        yield logits[row, mine.to(device)].double().log_softmax(-1).cpu().numpy()


def choice_correct(
    model: nn.Module,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    max_tokens: int,
    on_passes: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return whether the most likely choice is the right one, bool [n], in the records' order."""
    scores = choice_loglikelihoods(model, tokenizer, records, max_tokens=max_tokens, on_passes=on_passes)
    return np.array(
        [int(np.argmax(s)) == r.label for s, r in zip(scores, records, strict=True)], dtype=bool
    )


def _queries(
    records: Sequence[Record],
    choices: list[list[list[int]]],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> list[_Query]:
    queries = []
    prompts = many_prompt_ids([r.prompt for r in records], tokenizer)
    for index in range(len(records)):
        longest = max(len(c) for c in choices[index])
        if longest > max_tokens - 2 or not all(choices[index]):
            raise DataError(
                f"record {index}: choices must have 1 to {max_tokens - 2} tokens "
                f"(data.max_tokens - 2); the longest has {longest}"
            )
        prompt = cut_prompt(prompts[index], max_tokens - longest, tokenizer)
        passes: dict[tuple[int, ...], list[int]] = {}
        for c in sorted(range(len(choices[index])), key=lambda c: -len(choices[index][c])):
            start = tuple(choices[index][c][:-1])
            serving = next((p for p in passes if p[: len(start)] == start), start)
            passes.setdefault(serving, []).append(c)
        queries += [
            _Query(record=index, prompt=prompt, beginning=p, choices=tuple(served))
            for p, served in passes.items()
        ]
    return queries


def _batches(queries: list[_Query]) -> Iterator[list[_Query]]:
    """Yield groups of like length, at most `BATCH_TOKENS` tokens with padding."""
    group: list[_Query] = []
    for q in sorted(queries, key=lambda q: -q.length):
        if group and (len(group) + 1) * group[0].length > BATCH_TOKENS:
            yield group
            group = []
        group.append(q)
    if group:
        yield group


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
    for batch in windows.split(16):
        ids = batch.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += float(
            nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        )
    return float(np.exp(total / (windows.shape[0] * (windows.shape[1] - 1))))
