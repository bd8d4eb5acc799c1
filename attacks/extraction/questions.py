"""The questions of A12, the LLM's answers, and the adversary's inputs before it trains.

All are cached: controls, and other views of a run, need the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from attacks.base import Budget, NotApplicable
from attacks.extraction.behaviour import Behaviour, ExtractionQuestion, behaviour
from attacks.extraction.texts import held_out_texts, known_texts
from attacks.extraction.thief import FEWEST_QUERIES, PUBLIC_TEXTS, TEXT_TOKENS, Effort, effort
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.fuse.plug_back import add_deltas
from fedproxy_secure.models.adapters import attach, block_deltas, set_vector
from fedproxy_secure.models.llm import Tokenizer, blocks_of, load_llm, sharing_copy, weights_written_ns
from fedproxy_secure.record.view import View

HELD_OUT = 64  # texts; half as many for an LLM with a large vocabulary, which writes them slowly
LARGE = 2**14
NUMBERS = 2**24  # the most log-probabilities of a model's answers
_ANSWERS: dict[tuple[object, ...], Behaviour] = {}
_READY: dict[tuple[object, ...], Ready] = {}


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The effort, the texts for queries and healing, int64 [n, tokens], and the proxy's answers."""

    spent: Effort
    texts: torch.Tensor
    proxy: Behaviour


def held_model(view: View) -> tuple[nn.Module, Tokenizer]:
    """Return the proxy with the last broadcast adapter merged, as the plug-back merges it.

    Raises `NotApplicable` if the view holds no proxy.
    """
    if view.proxy is None:
        raise NotApplicable("this view holds no proxy")
    model, tokenizer = load_llm(view.proxy, dtype="float32")
    if view.settings is None or not view.adapters:
        return model, tokenizer
    s = view.settings
    tuned = attach(sharing_copy(model), s.adapter, seed=s.seed, blocks=s.blocks)
    set_vector(tuned, view.adapters[max(view.adapters)])
    return add_deltas(model, block_deltas(tuned)), tokenizer


def questions(folder: Path, records: tuple[Encoded, ...], *, seed: int) -> ExtractionQuestion:
    """Return held-out texts of a seed, sampled from the LLM in a folder, with these records."""
    return _questions(folder, weights_written_ns(folder), records, seed)


def answers_of(folder: Path, question: ExtractionQuestion) -> Behaviour:
    """Return the answers of the LLM in a folder; the last answers are cached."""
    sizes = (len(question.texts), len(question.records))
    key = (folder, weights_written_ns(folder), question.texts.tobytes(), question.records, sizes)
    if key not in _ANSWERS:
        _ANSWERS.clear()
        _ANSWERS[key] = behaviour(load_llm(folder, dtype="float32")[0], question)
    return _ANSWERS[key]


@lru_cache(maxsize=2)
def _questions(folder: Path, _written: int, records: tuple[Encoded, ...], seed: int) -> ExtractionQuestion:
    rng = np.random.default_rng(seed)
    llm, tokenizer = load_llm(folder, dtype="float32")
    vocabulary = int(llm.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    held_out = HELD_OUT if vocabulary < LARGE else HELD_OUT // 2
    texts = held_out_texts(llm, tokenizer, count=held_out, tokens=TEXT_TOKENS, rng=rng)
    count = min(TEXT_TOKENS - 1, max(1, NUMBERS // (held_out * vocabulary)))
    drawn = [np.sort(rng.choice(TEXT_TOKENS - 1, count, replace=False)) for _ in range(held_out)]
    return ExtractionQuestion(
        depth=len(blocks_of(llm)), texts=texts.numpy(), places=np.stack(drawn), records=records
    )


def prepared(
    view: View,
    proxy: nn.Module,
    tokenizer: Tokenizer,
    question: ExtractionQuestion,
    budget: Budget,
    *,
    seed: int,
) -> Ready:
    """Return an adversary's inputs before it trains, and its effort by this machine's speed.

    Args:
        view: the view that holds the proxy.
        proxy: its proxy, as `held_model` returns it.
        tokenizer: the proxy's tokenizer.
        question: the questions that models will answer.
        budget: the attack's limits.
        seed: seed of the texts.
    """
    assert view.proxy is not None
    adapter = view.adapters[max(view.adapters)].tobytes() if view.adapters else b""
    limits = (budget.profile, budget.queries, budget.seconds)
    key = (view.proxy, weights_written_ns(view.proxy), adapter, question.texts.tobytes(), seed, limits)
    if key not in _READY:
        few = question.first(4, 0)
        behaviour(proxy, few, writes=False)  # the first pass takes longer
        began = time.monotonic()
        behaviour(proxy, few, writes=False)
        token_s = (time.monotonic() - began) / few.texts.size * question.depth / len(blocks_of(proxy))
        spent = effort(budget, token_s=token_s)
        rng = np.random.default_rng(seed)
        read = 2 * spent.steps * spent.batch  # more texts than a training reads bring little
        count = max(*spent.grid, min(PUBLIC_TEXTS[budget.profile], read), FEWEST_QUERIES)
        texts = known_texts(proxy, tokenizer, count=count, tokens=TEXT_TOKENS, rng=rng)
        answers = behaviour(proxy, question.first(spent.texts, spent.records), budget=budget)
        _READY.clear()
        _READY[key] = Ready(spent=spent, texts=texts, proxy=answers)
    return _READY[key]
