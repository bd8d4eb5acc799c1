"""A12, the cheapest part: the LLM's hidden size, from its logits alone.

Logits are a linear map of the last hidden state, so a matrix of them has no more rank than the hidden size:
its singular values fall off a cliff there. Random texts serve as well as any. An API that tells only
log-probabilities adds one to the rank at most; one that rounds, or caps logits (Gemma 2), hides the cliff.

Carlini et al. 2024, Stealing Part of a Production Language Model (arXiv 2403.06634).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.base import (
    NOBODY,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    NotApplicable,
    Truth,
    attack,
    replace_view,
)
from attacks.extraction.api import EXTRACTION, Api
from attacks.statistics import share
from fedproxy_secure.llm import load_llm
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate, counted

TRIES = 8
TEXT_TOKENS = 64
FEWEST, MOST = 256, 8192  # rows of a matrix: positions asked about in one try
COLUMNS = 4096  # tokens looked at, drawn by chance, of a larger vocabulary
CLIFF = 10.0  # how much smaller the next singular value must be
MARGIN = 8  # rows that there must be above the rank


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The hidden size that each try found, 0 where it found none; `queries` of all tries together.

    A first try that finds none with as many rows as are allowed is the only one.
    """

    found: tuple[int, ...]
    queries: int


def width_of(logits: np.ndarray) -> int:
    """Where the singular values of logits, float [n, m], fall off; 0 if they do not, or n is too small.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> width_of(rng.normal(size=(40, 5)) @ rng.normal(size=(5, 60)))
    5
    """
    values = np.linalg.svd(logits.astype(np.float64), compute_uv=False)
    drops = values[:-1] / np.maximum(values[1:], values[0] * 1e-15)
    at = int(drops.argmax())
    enough = at + 1 <= min(logits.shape) - MARGIN
    return at + 1 if enough and drops[at] >= CLIFF else 0


@attack(
    AttackInfo(
        id="A12",
        name="logit_svd",
        title="the LLM's hidden size, from logits",
        paper="arXiv 2403.06634",
        needs=(frozenset({"API"}),),
        headline="hidden size found, share of tries",
        chance=0.0,
        margin=0.5,
        mapping=EXTRACTION,
    )
)
class LogitSvd(Attack):
    """Asks about random texts until the rank of the answers stops growing."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """The answer is the width of the head."""
        if view.api is None:
            raise NotApplicable("this view has no API")
        return Exam(answer=head_width(view.api))

    def guess(self, view: View, question: Any, budget: Budget, rng: np.random.Generator) -> Widths:
        """`TRIES` answers from different texts; the first finds out how many are needed."""
        assert view.api is not None
        api = Api(view.api, limit=budget.queries, mode="noise" if view.threat_model == NOBODY else "true")
        vocabulary = api.ask(torch.zeros((1, 1), dtype=torch.int64)).shape[-1]
        most = min(MOST, (budget.queries - 1) // TRIES * TEXT_TOKENS)
        rows = FEWEST
        found: list[int] = []
        while len(found) < TRIES:
            budget.check()
            ids = torch.from_numpy(rng.integers(vocabulary, size=(rows // TEXT_TOKENS, TEXT_TOKENS)))
            columns = rng.permutation(vocabulary)[:COLUMNS]
            logits = torch.cat([api.ask(p)[..., columns].flatten(0, 1).cpu() for p in ids.split(16)])
            width = width_of(logits.numpy())
            if width == 0 and not found:
                rows *= 2
                if rows > min(most, COLUMNS, vocabulary):
                    return Widths(found=(0,), queries=api.asked)
            else:
                found.append(width)
        return Widths(found=tuple(found), queries=api.asked)

    def score(self, guess: Widths, answer: int) -> tuple[Estimate, ...]:
        """How often the hidden size was found exactly, what was found most, for how many queries."""
        hits = sum(w == answer for w in guess.found)
        middle = float(np.median(guess.found))
        return (
            share(hits, len(guess.found), metric=self.info.headline, seed=0),
            counted(middle, metric="hidden size found, median", unit="dimensions", seeds=(0,)),
            counted(guess.queries, metric="queries of all tries", unit="queries", seeds=(0,)),
        )

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """The API itself: nothing protects logits."""
        return view, truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """An API that answers with noise."""
        return replace_view(view, threat_model=NOBODY), exam


def head_width(folder: Path) -> int:
    """The number of inputs of a model's head."""
    llm, _ = load_llm(folder, dtype="float32")
    return int(llm.get_output_embeddings().weight.shape[1])  # type: ignore[operator]
