"""R of every way to extract an LLM from a proxy, by the API's kind of answers and number of queries.

    rows = extraction_table(proxy, llm, grid=(0, 64, 1024))

The attack A12 submits the best of these by held-out queries. Here each one is judged, so that an owner sees
how much a weaker API or fewer queries would reduce it. R counts from the proxy, and proxies differ in their
own KL: to compare proxies, compare the KL that is left.

    the proxy       as it is: R is 0
    linear          no query: closed-form fillers, the best on public text, where blocks are missing
    healed          no query: the best start, trained on public text
    closed form     the best start in closed form; without logits that is the best start; what was best
                    with fewer queries of the same kind is among the starts
    fillers         the fillers of gaps are trained on the answers, from the best start
    all weights     the same with all weights
    the best        of a line's attacks, by held-out queries, which an adversary would submit
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from attacks.base import Budget
from attacks.extraction.api import Api
from attacks.extraction.behaviour import KL, Behaviour, ExtractionQuestion, Scale, behaviour, scales, scores
from attacks.extraction.questions import answers_of, questions
from attacks.extraction.starts.offered import ALL, Recipe, Won, offers
from attacks.extraction.starts.widened import sizes_in
from attacks.extraction.texts import known_texts
from attacks.extraction.thief import FEWEST_QUERIES, PUBLIC_TEXTS, TEXT_TOKENS, Thief, effort
from fedproxy_secure.config import ANSWERS, Answers, ApiConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.models.llm import blocks_of, load_llm
from fedproxy_secure.runtime.progress import NoProgress, Progress

GRID = (0, 64, 1024)
TASK = "extraction table"
PROXY, LLM, HEALED, BEST = "the proxy", "LLM", "healed", "the best"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One way to extract an LLM, and its result.

    Args:
        attack: one of the attacks in this module's description.
        how: the submitted model, in words.
        answers: the kind of the API's answers; None without queries.
        queries: how many texts the API was asked about.
        r: R of KL, with its interval over held-out texts.
        kl: the KL to the LLM that is left, nats a token.
        others: R of each other score for which the LLM is better than the proxy, by the score's name.
        seconds: wall-clock time of the attack, s; work that several attacks share counts for each.
    """

    attack: str
    how: str
    answers: Answers | None
    queries: int
    r: Estimate
    kl: Estimate
    others: dict[str, Estimate]
    seconds: float


def extraction_table(
    proxy: Path,
    llm: Path,
    *,
    grid: Sequence[int] = GRID,
    answers: Sequence[Answers] = ANSWERS,
    records: tuple[Encoded, ...] = (),
    seed: int = 0,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> tuple[TableRow, ...]:
    """Return R of every attack for every number of queries and kind of answer.

    Args:
        proxy, llm: folders of the models.
        grid: numbers of queries, 0 or at least 16.
        answers: kinds of answers of the APIs.
        records: records whose answers are judged, too.
        seed: seed of texts and trainings.
        budget: profile, seconds of the whole table and most queries; by default `standard` in an hour.
            If the LLM is large for the seconds, trainings have fewer steps.
        progress: advanced with each line.

    Raises `ValueError` for a number of queries that is neither 0 nor at least 16 or above the budget's;
    `OutOfTime` if the seconds are used up.
    """
    budget = budget or Budget(profile="standard", seconds=3600)
    invalid = [k for k in grid if k != 0 and not FEWEST_QUERIES <= k <= budget.queries]
    if invalid:
        raise ValueError(f"grid={invalid[0]}: must be 0, or {FEWEST_QUERIES} to {budget.queries}")
    bars = progress or NoProgress()
    lines = 1 + len(answers) * sum(k > 0 for k in grid)
    bars.start(TASK, lines)
    counts = tuple(sorted(k for k in grid if k > 0))
    table = _Table(proxy, llm, records, counts, seed, budget, lines)
    rows = list(table.without_queries())
    bars.advance(TASK, note="no query")
    for kind in answers:
        for count in counts:
            rows += table.line(kind, count)
            bars.advance(TASK, note=f"{kind}, {count} queries")
    bars.done(TASK)
    return tuple(rows if 0 in grid else [row for row in rows if row.queries > 0])


class _Table:
    """The models, texts and questions that all lines share."""

    def __init__(
        self,
        proxy: Path,
        llm: Path,
        records: tuple[Encoded, ...],
        counts: tuple[int, ...],
        seed: int,
        budget: Budget,
        lines: int,
    ) -> None:
        self.llm, self.budget, self.seed = llm, budget, seed
        self.won: dict[Answers, Won] = {}  # the best of a kind of answer so far
        self.proxy, tokenizer = load_llm(proxy, dtype="float32")
        question = replace(questions(llm, records, seed=seed), sizes=sizes_in(llm))
        behaviour(self.proxy, question.first(8, 0), writes=False)  # the first pass takes longer
        began = time.monotonic()
        behaviour(self.proxy, question.first(8, 0), writes=False)
        pace = (time.monotonic() - began) / (8 * TEXT_TOKENS)
        a_line = replace(budget, seconds=budget.left_s / lines, began=time.monotonic())
        spent = effort(a_line, token_s=pace * question.depth / len(blocks_of(self.proxy)))
        self.spent = replace(spent, grid=counts)
        self.asked = question.first(self.spent.texts, self.spent.records)
        rng = np.random.default_rng([seed, 1])
        count = max([*counts, PUBLIC_TEXTS[budget.profile]])
        self.texts = known_texts(self.proxy, tokenizer, count=count, tokens=TEXT_TOKENS, rng=rng)
        self.missing = max(0, question.depth - len(blocks_of(self.proxy)))
        self.original = answers_of(llm, self.asked)
        self.own = behaviour(self.proxy, self.asked, budget=budget)
        quiet = self.thief("logits", 0)
        self.starts = offers(
            self.proxy,
            self.missing,
            sizes=self.asked.sizes,
            texts=quiet.public,
            loss=quiet.next_token_loss,
            seed=seed,
            gaps=quiet.shapes(self.missing),
        )

    def thief(self, kind: Answers, limit: int) -> Thief:
        api = Api(self.llm, limit=limit, policy=ApiConfig(answers=kind))
        return Thief(self.proxy, api, self.texts, self.spent, self.budget, self.seed)

    def without_queries(self) -> Iterator[TableRow]:
        """Yield the attacks without a query."""
        thief = self.thief("logits", 0)
        yield self._row(PROXY, PROXY, None, 0, self.own, 0.0)
        linear = [offer for offer in self.starts if "linear" in offer.name]
        if linear:
            began = time.monotonic()
            offer = min(linear, key=lambda candidate: thief.next_token_loss(candidate.make()[0]))
            model, _ = offer.make()
            seconds = time.monotonic() - began
            yield self._row("linear", offer.name, None, 0, self._answers(model), seconds)
        began = time.monotonic()
        self.healed = thief.healed(self.starts)
        seconds = time.monotonic() - began
        yield self._row(HEALED, self.healed.name, None, 0, self._answers(self.healed.model), seconds)

    def line(self, kind: Answers, count: int) -> list[TableRow]:
        """Return the attacks with one kind of answer and one number of queries, the best last."""
        thief = self.thief(kind, count)
        began = time.monotonic()
        cheaper = [won.offer for won in (self.healed, self.won.get(kind)) if won is not None]
        closed = thief.closed_form(count, [*self.starts, *cheaper])
        shared = time.monotonic() - began
        tried = [("closed form", closed, shared)]
        for name, trained in (("fillers", "fillers"), ("all weights", "all")):
            recipes: list[Recipe] = [r for r in self.spent.recipes if r.trained == trained]
            if trained == "all" and self.missing == 0:
                recipes = recipes or [ALL]  # there is nothing else to train
            if recipes and not (trained == "fillers" and self.missing == 0):
                began = time.monotonic()
                won = thief.distilled(count, [closed.offer], recipes=recipes)
                tried.append((name, won, shared + time.monotonic() - began))
        rows = [
            self._row(name, won.name, kind, count, self._answers(won.model), seconds)
            for name, won, seconds in tried
        ]
        best = min(range(len(tried)), key=lambda i: tried[i][1].loss)
        self.won[kind] = tried[best][1]
        seconds = shared + sum(s - shared for _, _, s in tried)
        return [*rows, replace(rows[best], attack=BEST, seconds=seconds)]

    def _answers(self, model: nn.Module) -> Behaviour:
        return behaviour(model, self.asked, budget=self.budget)

    def _row(
        self, attack: str, how: str, kind: Answers | None, count: int, mine: Behaviour, seconds: float
    ) -> TableRow:
        scale, found = judged(mine, self.own, self.original, self.asked)

        def r_of(score: str, metric: str) -> Estimate:
            if mine is self.own:  # R counts from the proxy, so its own is 0 on all texts
                return counted(0.0, metric=metric, unit="share", seeds=(0,), n=len(found[score]))
            return scale[score].estimate(found[score], metric)

        others = {name: r_of(name, f"R of {name}") for name in found if name != KL and scale[name].usable}
        return TableRow(
            attack=attack,
            how=how,
            answers=kind,
            queries=count,
            r=r_of(KL, "R"),
            kl=scale[KL].difference(np.zeros_like(found[KL]), found[KL], "KL", unit="nats"),
            others=others,
            seconds=seconds,
        )


def judged(
    mine: Behaviour, proxy: Behaviour, llm: Behaviour, asked: ExtractionQuestion
) -> tuple[dict[str, Scale], dict[str, np.ndarray]]:
    """Return the scale of each score, from the proxy to the LLM, and a model's scores by name."""
    by_model = {name: scores(b, llm, asked) for name, b in (("mine", mine), (PROXY, proxy), (LLM, llm))}
    return scales(by_model, PROXY, LLM), by_model["mine"]
