"""The log-likelihood of each answer to a multiple-choice record, with every prompt read once.

A choice's last token is predicted and never read, so choices that differ only in their last token share
what is read, and choices of one token need only the prompt. The other tokens of choices are branches of one
row (`fedproxy_secure.models.packing`). A model that cannot be packed reads padded rows instead, each with
the prompt again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedproxy_secure.data.encode import cut_prompt, many_prompt_ids, many_text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer
from fedproxy_secure.models.packing.packed import can_pack, packed_logits
from fedproxy_secure.models.packing.packs import Row, pack_rows
from fedproxy_secure.models.passes import LOGITS, PASS_TOKENS, vocabulary_size


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One record: its prompt, and the tokens of its choices that are read after it.

    Args:
        beginnings: distinct beginnings of choices, each without the last token of the choices it serves.
        served: for each beginning, the indices of its choices.
        choices: the tokens of all choices.
    """

    record: int
    prompt: list[int]
    beginnings: tuple[tuple[int, ...], ...]
    served: tuple[tuple[int, ...], ...]
    choices: list[list[int]]

    @property
    def tokens(self) -> int:
        """The number of tokens that are read."""
        return len(self.prompt) + sum(len(b) for b in self.beginnings)

    @property
    def kept(self) -> int:
        """The number of positions whose logits are needed."""
        return 1 + sum(len(b) for b in self.beginnings)


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

    `on_passes(done, all)` is called after every pass with the number of records read so far.

    Raises `DataError` for a choice that leaves no room for a prompt token.
    """
    scores = [np.zeros(len(r.choices)) for r in records]
    questions, done = _questions(records, tokenizer, max_tokens), 0
    together = _packed if can_pack(model) else _padded
    training = model.training
    model.eval()
    try:
        for group in _groups(questions, vocabulary=vocabulary_size(model)):
            for question, likelihoods in zip(group, together(model, group), strict=True):
                scores[question.record] = likelihoods
            done += len(group)
            if on_passes is not None:
                on_passes(done, len(questions))
    finally:
        model.train(training)
    return scores


def cut_questions(records: Sequence[Record], tokenizer: Tokenizer, *, max_tokens: int) -> int:
    """Count the records whose prompts `choice_loglikelihoods` cuts at the beginning.

    There must be room for the longest choice, which need not be the right one. Raises as that does.
    """
    whole = many_prompt_ids([r.prompt for r in records], tokenizer)
    questions = _questions(records, tokenizer, max_tokens)
    return sum(len(q.prompt) < len(prompt) for q, prompt in zip(questions, whole, strict=True))


def _packed(model: nn.Module, group: list[_Question]) -> Iterator[np.ndarray]:
    """Yield the log-likelihoods of each question's choices, from one packed row of tokens."""
    device = next(model.parameters()).device
    pack = pack_rows([Row(trunk=q.prompt, branches=q.beginnings) for q in group], device)
    keep = [
        start + position
        for q, start in zip(group, pack.starts, strict=True)
        for position in range(len(q.prompt) - 1, q.tokens)
    ]
    rows = packed_logits(model, pack, torch.tensor(keep, device=device))
    first = 0
    for q in group:
        prompt_end, branch = first, first + 1
        likelihoods = np.zeros(len(q.choices))
        for beginning, served in zip(q.beginnings, q.served, strict=True):
            after = [prompt_end, *range(branch, branch + len(beginning))]
            likelihoods[list(served)] = _likelihoods(rows[after], [q.choices[c] for c in served])
            branch += len(beginning)
        yield likelihoods
        first += q.kept


def _padded(model: nn.Module, group: list[_Question]) -> Iterator[np.ndarray]:
    """Yield the log-likelihoods of each question's choices, from padded rows, one for each beginning."""
    device = next(model.parameters()).device
    reads = [(len(q.prompt), [*q.prompt, *beginning]) for q in group for beginning in q.beginnings]
    ids = torch.zeros((len(reads), max(len(tokens) for _, tokens in reads)), dtype=torch.int64)
    attention, needed = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, tokens) in enumerate(reads):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        attention[row, : len(tokens)] = 1
        needed[row, prompt - 1 : len(tokens)] = 1
    positions = needed.any(dim=0).nonzero().flatten()
    logits = model(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        use_cache=False,
        logits_to_keep=positions.to(device),
    ).logits
    rows = (logits[row, mask.to(device)] for row, mask in enumerate(needed[:, positions].bool()))
    for q in group:
        likelihoods = np.zeros(len(q.choices))
        for served in q.served:
            likelihoods[list(served)] = _likelihoods(next(rows), [q.choices[c] for c in served])
        yield likelihoods


def _likelihoods(logits: torch.Tensor, choices: list[list[int]]) -> list[float]:
    """Return each choice's log-likelihood, nats; logits [>= tokens, V] predict its tokens in order."""
    log_p = logits.double().log_softmax(-1)
    return [float(log_p[torch.arange(len(tokens)), torch.tensor(tokens)].sum()) for tokens in choices]


def _questions(records: Sequence[Record], tokenizer: Tokenizer, max_tokens: int) -> list[_Question]:
    flat = iter(many_text_ids([c for r in records for c in r.choices], tokenizer))
    prompts = many_prompt_ids([r.prompt for r in records], tokenizer)
    questions = []
    for index, record in enumerate(records):
        choices = [next(flat) for _ in record.choices]
        longest = max(len(c) for c in choices)
        if longest > max_tokens - 2 or not all(choices):
            raise DataError(
                f"record {index}: choices must have 1 to {max_tokens - 2} tokens "
                f"(data.max_tokens - 2); the longest has {longest}"
            )
        passes: dict[tuple[int, ...], list[int]] = {}
        for c in sorted(range(len(choices)), key=lambda c: -len(choices[c])):
            start = tuple(choices[c][:-1])
            serving = next((p for p in passes if p[: len(start)] == start), start)
            passes.setdefault(serving, []).append(c)
        questions.append(
            _Question(
                record=index,
                prompt=cut_prompt(prompts[index], max_tokens - longest, tokenizer),
                beginnings=tuple(passes),
                served=tuple(tuple(served) for served in passes.values()),
                choices=choices,
            )
        )
    return questions


def _groups(questions: list[_Question], *, vocabulary: int) -> Iterator[list[_Question]]:
    """Yield groups of questions of similar length that one pass can read."""
    group: list[_Question] = []
    tokens = positions = 0
    for q in sorted(questions, key=lambda q: -q.tokens):
        full = tokens + q.tokens > PASS_TOKENS or (positions + q.kept) * vocabulary > LOGITS
        if group and full:
            yield group
            group, tokens, positions = [], 0, 0
        group.append(q)
        tokens, positions = tokens + q.tokens, positions + q.kept
    if group:
        yield group
