"""A12 at its cheapest: the LLM's hidden size, from its logits only.

Logits are a linear map of the last hidden state, so the rank of a matrix of logits is at most the hidden
size, and its singular values drop to rounding noise there. Any texts will do; random ones are used. Rows
and columns are centred first, because the component common to all logits is by far the largest singular
value of a real LLM, and would look like a drop after the first. Centring leaves the rank as it is, and it
also cancels the normalising constant of an API that returns log-probabilities. An API that rounds logits,
caps them (Gemma 2) or adds noise to them hides the drop. An API that returns only the likeliest tokens
gives no such matrix, because those tokens differ from text to text. Completing the matrix would take more
tokens per answer than the hidden size, and was not tried. Hidden sizes above 8,176 are out of reach.

Carlini et al. 2024, Stealing Part of a Production Language Model (arXiv 2403.06634).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

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
    replace_view,
)
from attacks.extraction.api import EXTRACTION, OPEN, Api, Mode
from attacks.registry import attack
from attacks.statistics import share
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.record.view import View

TRIES = {"smoke": 4, "standard": 8, "full": 8}
QUERY_TOKENS = 64
FEWEST, MOST = 256, 8192  # rows of a matrix: positions queried in one try; the most take 4 GiB, and minutes
COLUMNS = 2  # tokens used, for each row; of a large vocabulary they are drawn at random
CLIFF = 10.0  # factor by which the next singular value must be smaller
NOISE = 0.01  # of the root mean square of all singular values, which the next one must not exceed
SHARE = 0.5  # of its seconds that the attack spends on tries; the controls as much, if time remains
MARGIN = 8  # rows and columns that the matrix must have beyond the rank


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The hidden size that each try found, 0 where it found none; `queries` of all tries together."""

    found: tuple[int, ...]
    queries: int


def width_of(logits: np.ndarray) -> int:
    """Return where the singular values of centred logits, float [n, m], drop to noise.

    The result is 0 if they do not, or if n is too small.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> width_of(rng.normal(size=(40, 5)) @ rng.normal(size=(5, 60)))
    5
    """
    table = logits.astype(np.float64)
    table -= table.mean(axis=1, keepdims=True)
    table -= table.mean(axis=0)
    # rows beyond the rank depend on those before, in part of the columns, too: far cheaper to test
    part = torch.from_numpy(table[:, : 5 * len(table) // 4].T.astype(np.float32))
    new = torch.linalg.qr(part, mode="r").R.diagonal().abs()
    if new[-MARGIN:].max() * CLIFF > new.max():
        return 0
    values = np.linalg.svd(table, compute_uv=False)
    usual = np.sqrt(np.square(values).mean())
    drops = values[:-1] / np.maximum(values[1:], values[0] * 1e-15)
    drops = np.where(values[1:] > NOISE * usual, 0, drops)[: len(values) - MARGIN]  # centring ends the last
    at = int(drops.argmax())
    return at + 1 if drops[at] >= CLIFF else 0


@attack(
    AttackInfo(
        id="A12",
        name="logit_svd",
        title="the LLM's hidden size, from logits",
        paper="arXiv 2403.06634",
        needs=(frozenset({"API"}),),
        headline="hidden size found, share of tries",
        chance=0.0,
        margin=0.2,  # two tries that agree with the truth are no accident
        mapping=EXTRACTION,
    )
)
class LogitSvd(Attack):
    """The attack that asks about random texts until the rank of the answers stops growing."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the width of the head as the answer."""
        if view.api is None:
            raise NotApplicable("this view has no API")
        return Exam(answer=head_width(view.api))

    def guess(self, view: View, question: int | None, budget: Budget, rng: np.random.Generator) -> Widths:
        """Return hidden sizes from different texts; the first try finds how many texts are needed.

        The number of tries is that of the profile, or as many, two at least, as fit into the share `SHARE`
        of the seconds. `question`: the most rows of a matrix; None: as many as queries allow.
        """
        assert view.api is not None
        policy, tries = view.api_policy, TRIES[budget.profile]
        if policy.answers != "logits":
            raise NotApplicable(
                f"the API tells {policy.answers}: not the same tokens' logits after each text"
            )
        allowed = policy.texts_of(QUERY_TOKENS)
        limit = budget.queries if allowed is None else min(budget.queries, allowed)
        # the search takes less than two tries' texts
        most = min(MOST, question or MOST, limit // (tries + 1) * QUERY_TOKENS)
        if most < FEWEST:
            raise NotApplicable(f"queries={limit}: must be >= {(tries + 1) * FEWEST // QUERY_TOKENS}")
        mode: Mode = "noise" if view.threat_model == NOBODY else "true"
        api = Api(view.api, limit=limit, policy=policy, mode=mode, notes_bytes=0)  # no text is asked twice
        vocabulary, rows, until = api.vocabulary, FEWEST, budget.until(SHARE)
        widths: list[int] = []
        while len(widths) < tries and (len(widths) < 2 or budget.used < until):
            budget.check()
            ids = torch.from_numpy(rng.integers(vocabulary, size=(rows // QUERY_TOKENS, QUERY_TOKENS)))
            columns = torch.from_numpy(rng.permutation(vocabulary)[: COLUMNS * rows])
            answers = [api.logits(text)[..., columns].flatten(0, 1).cpu() for text in ids.split(1)]
            width = width_of(torch.cat(answers).numpy())
            if width == 0 and not widths and 2 * rows <= min(most, vocabulary):
                rows *= 2
                continue
            rows = rows if width == 0 else min(rows, _texts_for(width) * QUERY_TOKENS)
            widths.append(width)
        return Widths(found=tuple(widths), queries=api.asked)

    def score(self, guess: Widths, answer: int) -> tuple[Estimate, ...]:
        """Return how often the exact hidden size was found, the median of the tries, and the queries."""
        hits = sum(w == answer for w in guess.found)
        middle = float(np.median(guess.found))
        return (
            share(hits, len(guess.found), metric=self.info.headline),
            counted(middle, metric="hidden size found, median", unit="dimensions", seeds=(0,)),
            counted(guess.queries, metric="queries of all tries", unit="queries", seeds=(0,)),
        )

    def effort(self, guess: Widths) -> Mapping[str, int]:
        """Return how many tries were made."""
        return {"tries": len(guess.found)}

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return this view with an API that returns all logits unchanged."""
        return (view if view.api_policy.open else replace_view(view, api_policy=OPEN)), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return a view of an API that answers with noise, and an exam with as many rows as a search needs.

        A search in noise never ends by itself, and matrices far larger than the attack's take minutes.
        """
        return replace_view(view, threat_model=NOBODY), replace(exam, question=_rows_for(exam.answer))


def _rows_for(width: int) -> int:
    """Return the rows of the first matrix in which the search finds a hidden size."""
    rows = FEWEST
    while rows < width + MARGIN:
        rows *= 2
    return rows


def _texts_for(width: int) -> int:
    """Return how many texts have as many tokens as a hidden size plus twice the margin."""
    return -(-(width + 2 * MARGIN) // QUERY_TOKENS)


def head_width(folder: Path) -> int:
    """Return the number of inputs of a model's head."""
    llm, _ = load_llm(folder, dtype="float32")
    return int(llm.get_output_embeddings().weight.shape[1])  # type: ignore[operator]
