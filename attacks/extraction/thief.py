"""The adversary of A12 at work: its proxy, its API, its texts, and the models that it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from attacks.base import Budget, NotApplicable
from attacks.extraction.api import Api
from attacks.extraction.fillers import Gaps, grown, guess_gaps, spread
from attacks.extraction.lessons import Answers, Lesson, imitate, loss_of, newborn, predict, teach
from attacks.extraction.lineage import held, read_tensors
from fedproxy_secure.fuse.plug_back import add_deltas
from fedproxy_secure.models.adapters import attach, block_deltas, set_vector
from fedproxy_secure.models.llm import Tokenizer, blocks_of, load_llm, sharing_copy
from fedproxy_secure.record.view import View

TEXT_TOKENS = 64  # length of a query, and of a held-out text
RECORD_TOKENS = 48  # of a record, roughly
MOST_CHECKED = 32  # the most queries that are held out to choose by
ANSWERS, STEPS = 0.2, 0.35  # shares of the seconds for answers to the questions and for training steps
STEP = 5.0  # what a training step takes, in forward passes: with the backward pass, and the API's own
FEWEST_STEPS, FEWEST_TEXTS = 4, 8
Start = tuple[nn.Module, list[nn.Module]]  # a model, and its fillers


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What one attack spends.

    Args:
        grid: numbers of queries in turn.
        steps, batch: steps of each training, and texts of a step.
        all_controls: also training without the proxy, and weaker APIs.
        texts, records: held-out texts and records that each model answers.
    """

    grid: tuple[int, ...]
    steps: int
    batch: int
    all_controls: bool
    texts: int = 64
    records: int = 160


def effort(budget: Budget, *, token_s: float = 0.0) -> Effort:
    """Return what fits a budget: the profile's sizes, or less where the LLM is large for the seconds.

    Args:
        budget: the attack's limits.
        token_s: how long a model as deep as the LLM takes to read a token, s.
    """
    grid = budget.pick(smoke=(16, 64), standard=(16, 64, 256, 1024), full=(16, 64, 256, 1024, 4096))
    grid = tuple(k for k in grid if k <= budget.queries)
    whole = Effort(
        grid=grid,
        steps=budget.pick(smoke=24, standard=80, full=400),
        batch=budget.pick(smoke=4, standard=8, full=8),
        all_controls=budget.profile != "smoke",
        texts=budget.pick(smoke=32, standard=64, full=64),
        records=budget.pick(smoke=48, standard=160, full=160),
    )
    seconds, controls = budget.left_s, 3 * whole.all_controls
    models = len(grid) + 4 + controls  # with the proxy, the healed model, and those of both controls
    answers_s = models * (whole.texts * TEXT_TOKENS + whole.records * RECORD_TOKENS) * token_s
    steps_s = (models - 2) * whole.steps * whole.batch * TEXT_TOKENS * STEP * token_s
    answered, stepped = seconds * ANSWERS / max(answers_s, 1e-9), seconds * STEPS / max(steps_s, 1e-9)
    steps = whole.steps
    if stepped < 1 and grid:  # one number of queries before fewer steps, and no more than these read
        stepped *= (models - 2) / (3 + controls)
        steps = max(FEWEST_STEPS, int(whole.steps * min(1.0, stepped)))
        grid = (([k for k in grid if k <= steps * whole.batch] or [grid[0]])[-1],)
    return replace(
        whole,
        grid=grid,
        steps=steps,
        texts=max(FEWEST_TEXTS, int(whole.texts * min(1.0, answered))),
        records=int(whole.records * min(1.0, answered)),
    )


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


class Thief:
    """An adversary with a proxy, an API and texts, which trains models on the API's answers."""

    def __init__(
        self, proxy: nn.Module, api: Api, texts: torch.Tensor, spent: Effort, budget: Budget, seed: int
    ) -> None:
        self.proxy, self.api, self.texts = proxy, api, texts
        self.spent, self.budget, self.seed = spent, budget, seed

    def empty(self, missing: int) -> Start:
        """Return the proxy with evenly spread fillers that do nothing yet."""
        return grown(self.proxy, spread(len(blocks_of(self.proxy)), missing), "zero")

    def where(self, missing: int) -> Gaps:
        """Return the gaps that the held-out part of the fewest queries suggests."""
        _, held_out = split(self.texts[: self.spent.grid[0]])
        return guess_gaps(self.proxy, missing, lambda m: self._loss(m, held_out, imitate(self.api)))

    def healed(self, start: Start) -> nn.Module:
        """Return the model with its fillers trained on texts alone."""
        model, fillers = start
        self._teach(model, fillers, predict, self.texts)
        return model

    def distilled(
        self,
        count: int,
        start: Start,
        *,
        others: tuple[Callable[[], nn.Module], ...] = (),
        answers: Answers = "logits",
    ) -> nn.Module:
        """Return the model with its fillers trained on `count` queries, or a better model.

        The proxy and `others`, each made when it is its turn, replace it if they are better on the queries
        that were held out.
        """
        model, fillers = start
        lesson = imitate(self.api, answers)
        best = self._teach(model, fillers, lesson, self.texts[:count])
        _, held_out = split(self.texts[:count])
        for make in (lambda: self.proxy, *others):
            other = make()
            loss = self._loss(other, held_out, lesson)
            if loss < best:
                best, model = loss, other
            del other  # before the next is made
        return model

    def without_proxy(self, count: int, depth: int) -> nn.Module:
        """Return a model trained from random weights on the same queries."""
        even = spread(len(blocks_of(self.proxy)), depth - len(blocks_of(self.proxy)))
        model = newborn(grown(self.proxy, even, "copy")[0], self.seed)
        self._teach(model, [model], imitate(self.api), self.texts[:count])
        return model

    def _teach(
        self, model: nn.Module, trained: list[nn.Module], lesson: Lesson, texts: torch.Tensor
    ) -> float:
        train, held_out = split(texts)
        return teach(
            model,
            trained,
            lesson,
            train,
            held_out,
            steps=self.spent.steps,
            batch=self.spent.batch,
            rng=np.random.default_rng(self.seed),
            budget=self.budget,
        )

    def _loss(self, model: nn.Module, texts: torch.Tensor, lesson: Lesson) -> float:
        return loss_of(model, texts, lesson, budget=self.budget)


def split(texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts to train on, and an eighth of them, 4 to `MOST_CHECKED`, to choose by."""
    aside = min(MOST_CHECKED, max(4, len(texts) // 8))
    return texts[:-aside], texts[-aside:]


def leaked(proxy: nn.Module, llm: Path) -> Start:
    """Return the proxy with the LLM's own dropped blocks in its gaps."""
    original, _ = load_llm(llm, dtype="float32")
    match = held(proxy.state_dict(), read_tensors(llm))
    dropped = [i for i in range(match.depth) if i not in match.kept]
    return original, [blocks_of(original)[i] for i in dropped]
