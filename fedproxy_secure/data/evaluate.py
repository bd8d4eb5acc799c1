"""Accuracy by log-likelihood over the choices (lm-eval's `acc`, 0-shot), and perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import cut_prompt, prompt_ids, text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.llm import Tokenizer

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class _Query:
    """Tokens to run and, for each choice to be scored in this pass, where and which tokens."""

    record: int
    choice: int | None  # None: every choice is the one token that follows the prompt
    ids: list[int]
    start: int


@torch.inference_mode()
def choice_loglikelihoods(
    model: nn.Module, tokenizer: Tokenizer, records: Sequence[Record], *, max_tokens: int
) -> list[np.ndarray]:
    """Summed log-likelihood of every choice after its prompt, in nats: one float64 [choices] a record.

    Where every choice of a record is a single token one pass over the prompt scores them all.
    Raises `DataError` for a choice that leaves no room for a prompt token.
    """
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id or 0
    scores = [np.zeros(len(r.choices)) for r in records]
    choices = [[text_ids(c, tokenizer) for c in r.choices] for r in records]
    training = model.training
    model.eval()
    for group in _batches(_queries(records, choices, tokenizer, max_tokens)):
        length = max(len(q.ids) for q in group)
        ids = torch.full((len(group), length), pad, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        for row, q in enumerate(group):
            ids[row, : len(q.ids)] = torch.tensor(q.ids)
            attention[row, : len(q.ids)] = 1
        logits = model(
            input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False
        ).logits
        for row, q in enumerate(group):
            if q.choice is None:
                log_p = logits[row, q.start - 1].double().log_softmax(-1).cpu().numpy()
                scores[q.record] = log_p[[c[0] for c in choices[q.record]]]
            else:
                log_p = logits[row, q.start - 1 : len(q.ids) - 1].double().log_softmax(-1).cpu()
                targets = torch.tensor(q.ids[q.start :])[:, None]
                scores[q.record][q.choice] = float(log_p.gather(1, targets).sum())
    model.train(training)
    return scores


def choice_correct(
    model: nn.Module, tokenizer: Tokenizer, records: Sequence[Record], *, max_tokens: int
) -> np.ndarray:
    """Whether the most likely choice is the right one, bool [n], in the records' order."""
    scores = choice_loglikelihoods(model, tokenizer, records, max_tokens=max_tokens)
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
    for index, record in enumerate(records):
        prompt = prompt_ids(record.prompt, tokenizer)
        longest = max(len(c) for c in choices[index])
        if longest > max_tokens - 2 or not all(choices[index]):
            raise DataError(
                f"record {index}: choices must have 1 to {max_tokens - 2} tokens "
                f"(data.max_tokens - 2); the longest has {longest}"
            )
        if longest == 1:
            ids = cut_prompt(prompt, max_tokens - 1, tokenizer)
            queries.append(_Query(record=index, choice=None, ids=ids, start=len(ids)))
            continue
        cut = cut_prompt(prompt, max_tokens - longest, tokenizer)
        queries += [
            _Query(record=index, choice=c, ids=cut + tokens, start=len(cut))
            for c, tokens in enumerate(choices[index])
        ]
    return queries


def _batches(queries: list[_Query]) -> Iterator[list[_Query]]:
    """Groups of like length, at most `BATCH_TOKENS` tokens with padding."""
    group: list[_Query] = []
    for q in sorted(queries, key=lambda q: -len(q.ids)):
        if group and (len(group) + 1) * len(group[0].ids) > BATCH_TOKENS:
            yield group
            group = []
        group.append(q)
    if group:
        yield group


def text_windows(text: str, tokenizer: Tokenizer, *, window_tokens: int, limit: int) -> torch.Tensor:
    """The first `limit` whole windows of a text, int64 [n, window_tokens].

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
    """exp of the mean negative log-likelihood a token over windows, int64 [n, tokens]."""
    device = next(model.parameters()).device
    total = 0.0
    for batch in windows.split(16):
        ids = batch.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += float(
            nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        )
    return float(np.exp(total / (windows.shape[0] * (windows.shape[1] - 1))))
