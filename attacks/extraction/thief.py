"""The adversary of A12 at work: its proxy, its API, its texts, and the models that it trains."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from attacks.base import Budget
from attacks.extraction.api import Api
from attacks.extraction.lessons import CHECKS as CHECKS_OF_TRAINING
from attacks.extraction.lessons import (
    GOOD_ENOUGH,
    LEARNING_RATE,
    Lesson,
    held_out_count,
    holds,
    imitate,
    loss_of,
    newborn,
    predict,
    span_of,
    split,
    teach,
)
from attacks.extraction.starts.closed_form import ghosted
from attacks.extraction.starts.fillers import Gaps, Start, grown, guess_gaps, shapes, spread
from attacks.extraction.starts.offered import ALL, FEW_RECIPES, FILLERS, MORE_RECIPES, Offer, Recipe, Won
from fedproxy_secure.config import Answers
from fedproxy_secure.models.llm import blocks_of

PUBLIC_TEXTS = {"smoke": 64, "standard": 1024, "full": 4096}  # for healing, for any number of queries
FEWEST_QUERIES = 16  # with fewer, a proxy is only healed: too few could be held out
TEXT_TOKENS = 64  # length of a query, and of a held-out text
RECORD_TOKENS = 48  # of a record, roughly
ANSWERS, STEPS = 0.2, 0.35  # shares of the seconds for answers to the questions and for training steps
STEP = 5.0  # time of a training step, in forward passes: with the backward pass, and the API's own
FEWEST_STEPS, FEWEST_TEXTS = 4, 8
TRIAL = 6  # a trial of a recipe has one step for every 6 of the training that follows
CHECKS_OF_TRIAL = 1
CLEARLY = 0.02  # nats on public text by which gaps must beat even ones, which are right for most proxies
CHECKS = 24  # evaluations on held-out queries for each number of queries: of starts, trials, training
WITH_TRIALS = 1 + len(FEW_RECIPES) / TRIAL  # steps of the best of all recipes, in trainings
FROM_RANDOM = tuple(Recipe(trained="all", rate=rate) for rate in (LEARNING_RATE, 1e-3))  # its recipes


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The effort of one attack.

    Args:
        grid: numbers of queries in turn; empty if too few are allowed.
        steps, batch: steps of each training, and texts of a step. A model gets one training without a query
            and one for each number of queries in turn.
        all_controls: also training without the proxy, and weaker APIs.
        texts, records: held-out texts and records that each model answers.
        recipes: ways to train; if there are several, all are tried first.
    """

    grid: tuple[int, ...]
    steps: int
    batch: int
    all_controls: bool
    texts: int = 64
    records: int = 160
    recipes: tuple[Recipe, ...] = FEW_RECIPES


def effort(budget: Budget, *, token_s: float = 0.0) -> Effort:
    """Return the effort that fits a budget: the profile's sizes, or less if the LLM is too large for them.

    Args:
        budget: the attack's limits.
        token_s: how long a model as deep as the LLM takes to read a token, s.
    """
    grid = budget.pick(smoke=(16, 64), standard=(64, 1024), full=(16, 64, 256, 1024, 4096))
    grid = tuple(sorted({min(k, budget.queries) for k in grid}))  # a smaller budget is used up, too
    grid = grid if budget.queries >= FEWEST_QUERIES else ()
    whole = Effort(
        grid=grid,
        steps=budget.pick(smoke=24, standard=72, full=400),
        batch=budget.pick(smoke=4, standard=8, full=8),
        all_controls=budget.profile != "smoke",
        texts=budget.pick(smoke=32, standard=64, full=64),
        records=budget.pick(smoke=48, standard=160, full=160),
        recipes=budget.pick(smoke=(FILLERS, ALL), standard=FEW_RECIPES, full=MORE_RECIPES),
    )
    seconds, controls = budget.left_s, 3 * whole.all_controls
    models = len(grid) + 5 + controls  # with the proxy, the healed one, closed forms, both controls
    answers_s = models * (2 * whole.texts * TEXT_TOKENS + whole.records * RECORD_TOKENS) * token_s

    def trainings(counts: int) -> int:
        """Return healing and queries in turn, three short ones, and the three controls in turn."""
        return 2 * counts + 4 + whole.all_controls * (3 * counts + 1)

    checked = CHECKS * (1 + controls) * sum(held_out_count(k) for k in grid) * TEXT_TOKENS * token_s
    all_steps = trainings(len(grid)) * WITH_TRIALS * whole.steps
    steps_s = all_steps * whole.batch * TEXT_TOKENS * STEP * token_s + checked
    answered, stepped = seconds * ANSWERS / max(answers_s, 1e-9), seconds * STEPS / max(steps_s, 1e-9)
    steps, recipes = whole.steps, whole.recipes
    if stepped < 1:  # one number of queries and one recipe before fewer steps
        stepped *= trainings(len(grid)) / trainings(1)
        steps = max(FEWEST_STEPS, int(whole.steps * min(1.0, stepped)))
        grid = grid and (([k for k in grid if k <= steps * whole.batch] or [grid[0]])[-1],)
        recipes = (FILLERS, ALL)[: 1 + (stepped >= 1)]
    return replace(
        whole,
        grid=grid,
        steps=steps,
        texts=max(FEWEST_TEXTS, int(whole.texts * min(1.0, answered))),
        records=int(whole.records * min(1.0, answered)),
        recipes=recipes,
    )


class Thief:
    """An adversary with a proxy, an API and texts, which trains models on the API's answers."""

    def __init__(
        self, proxy: nn.Module, api: Api, texts: torch.Tensor, spent: Effort, budget: Budget, seed: int
    ) -> None:
        self.proxy, self.api, self.texts = proxy, api, texts
        self.spent, self.budget, self.seed = spent, budget, seed
        self._fitted: dict[tuple[int, str, float], Won] = {}

    @cached_property
    def public(self) -> torch.Tensor:
        """The texts that no number of queries holds out, as training on those would bias the judgement."""
        kept = torch.ones(len(self.texts), dtype=torch.bool)
        for count in self.spent.grid:
            kept[max(0, count - held_out_count(count)) : count] = False
        return self.texts[kept]

    @cached_property
    def span(self) -> torch.Tensor | None:
        """The span of the API's logits without their noise, or None if it is not known."""
        noise = self.api.policy.noise
        if not noise or self.api.policy.answers != "logits":
            return None
        basis = span_of(self.proxy)
        few = self.texts[: min(FEWEST_TEXTS, self.spent.grid[0])]
        return basis if holds(basis, self.api.logits(few), noise) else None

    def lesson(self, answers: Answers | None = None) -> Lesson:
        """Return the loss of a model that should behave like the API, by this kind of answer."""
        return imitate(self.api, answers, self.span)

    def where(self, missing: int) -> Gaps:
        """Return the gaps that the held-out part of the fewest queries suggests."""
        _, held_out = split(self.texts[: self.spent.grid[0]])
        return guess_gaps(self.proxy, missing, lambda m: self._loss(m, held_out, self.lesson()))

    def shapes(self, missing: int) -> tuple[Gaps, ...]:
        """Return the possible gaps, first those whose fillers learn most from public text in a trial.

        These are the evenly spread gaps unless others are better by `CLEARLY`.
        """
        possible = shapes(len(blocks_of(self.proxy)), missing)
        losses = []
        for gaps in possible if missing else ():
            start = Won(name="", start=grown(self.proxy, gaps, "zero"), loss=float("inf"))
            steps = max(1, self.spent.steps // TRIAL)
            losses.append(self._taught(start, FILLERS, self.public, predict, steps, 0).loss)
        if not losses or losses[0] - min(losses) < CLEARLY:
            return possible
        best = possible[losses.index(min(losses))]
        return (best, *(gaps for gaps in possible if gaps != best))

    def next_token_loss(self, model: nn.Module) -> float:
        """Return a model's loss on the first held-out public texts, nats per token: no query is made."""
        return self._loss(model, split(self.public)[1][:FEWEST_TEXTS], predict)

    def healed(self, starts: Sequence[Offer], *, recipes: Sequence[Recipe] | None = None) -> Won:
        """Return the best start, or the best start trained on texts only, by next-token loss."""
        won = self._best_start(starts, split(self.public)[1], predict)
        return self._trained(won, self.public, predict, recipes=recipes)

    def closed_form(self, count: int, starts: Sequence[Offer], *, answers: Answers | None = None) -> Won:
        """Return the best start on `count` queries, or its closed-form fit if that has a lower loss."""
        texts, lesson = self.texts[:count], self.lesson(answers)
        train, held_out = split(texts)
        won = self._best_start(starts, held_out, lesson)
        if (answers or self.api.policy.answers) != "logits" or won.loss <= GOOD_ENOUGH:
            return won
        key = count, won.name, won.loss
        if key not in self._fitted:
            fitted = self._ghosted(won, train, held_out, lesson)
            if count != max(self.spent.grid, default=0):
                return fitted
            self._fitted = {key: fitted}  # models are large: only the submitted one is kept
        return self._fitted[key]

    def _ghosted(self, won: Won, train: torch.Tensor, held_out: torch.Tensor, lesson: Lesson) -> Won:
        logits = (self.api.logits(part) for part in train.split(8))
        start = ghosted(won.start, train, logits, lambda m: self._loss(m, held_out, lesson))
        loss = self._loss(start[0], held_out, lesson)
        return Won(name=f"{won.name}, ghosted", start=start, loss=loss) if loss < won.loss else won

    def distilled(
        self,
        count: int,
        starts: Sequence[Offer],
        *,
        answers: Answers | None = None,
        recipes: Sequence[Recipe] | None = None,
    ) -> Won:
        """Train on `count` queries and return the best model, judged on an eighth of them that is held out.

        The best start, in closed form if that is better, is trained by each recipe for a while, and by the
        best recipe for longer.

        Args:
            count: number of queries.
            starts: the models to start from.
            answers: the kind of answer that is used; by default the kind that the API gives.
            recipes: ways to train; by default those of the effort.
        """
        won = self.closed_form(count, starts, answers=answers)
        return self._trained(won, self.texts[:count], self.lesson(answers), recipes=recipes)

    def random(self, depth: int) -> Offer:
        """Return random weights of the LLM's depth: the start of an adversary without the proxy."""
        present = len(blocks_of(self.proxy))
        model = newborn(grown(self.proxy, spread(present, max(0, depth - present)), "copy")[0], self.seed)
        return Offer(name="random weights", make=lambda: (model, []))

    def usable(self, start: Start) -> list[Recipe]:
        """Return the effort's recipes that a start can be trained by.

        Without fillers to train, several learning rates are still tried.
        """
        recipes = self.spent.recipes
        if not start[1] and len(recipes) > 1:
            recipes = (*FEW_RECIPES, *recipes)
        return list(dict.fromkeys(r for r in recipes if r.modules(start)))

    def _best_start(self, starts: Sequence[Offer], held_out: torch.Tensor, lesson: Lesson) -> Won:
        best: Won | None = None
        for offer in starts:
            start = offer.make()
            loss = self._loss(start[0], held_out, lesson)
            if best is None or loss < best.loss:
                best = Won(name=offer.name, start=start, loss=loss)
            del start  # before the next is made
        assert best is not None
        return best

    def _trained(
        self,
        won: Won,
        texts: torch.Tensor,
        lesson: Lesson,
        *,
        recipes: Sequence[Recipe] | None = None,
    ) -> Won:
        """Return a copy of a model trained by the best recipe, or the model if no training is better."""
        steps = self.spent.steps
        usable = self.usable(won.start) if recipes is None else [r for r in recipes if r.modules(won.start)]
        usable = usable or [ALL]
        tried, recipe = won, usable[0]
        if len(usable) > 1:
            trials = ((self._taught(won, r, texts, lesson, max(1, steps // TRIAL), 0), r) for r in usable)
            tried, recipe = min(trials, key=lambda pair: pair[0].loss)  # few are held at once
        done = self._taught(tried, recipe, texts, lesson, steps, 1)
        done = replace(done, name=f"{won.name}; {recipe.name}")
        return min(won, tried, done, key=lambda candidate: candidate.loss)

    def _taught(
        self, won: Won, recipe: Recipe, texts: torch.Tensor, lesson: Lesson, steps: int, part: int
    ) -> Won:
        """Return a copy of a model after `steps` steps; `part` is 0 for a trial, 1 for the training."""
        start = copy.deepcopy(won.start)
        train, held_out = split(texts)
        loss = teach(
            start[0],
            recipe.modules(start),
            lesson,
            train,
            held_out,
            steps=steps,
            batch=self.spent.batch,
            rng=np.random.default_rng([self.seed, part]),
            budget=self.budget,
            rate=recipe.rate,
            checks=CHECKS_OF_TRIAL if part == 0 else CHECKS_OF_TRAINING,
            keeps_best=part > 0,  # trials are compared by their last state
        )
        return Won(name=f"{won.name}; {recipe.name}", start=start, loss=loss)

    def _loss(self, model: nn.Module, texts: torch.Tensor, lesson: Lesson) -> float:
        return loss_of(model, texts, lesson, budget=self.budget)
