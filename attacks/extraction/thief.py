"""The adversary of A12 at work: its proxy, its API, its texts, and the models that it trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass
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
from fedproxy_secure.models.llm import Tokenizer, blocks_of, load_llm
from fedproxy_secure.record.view import View

MOST_CHECKED = 32  # the most queries that are held out to choose by
Start = tuple[nn.Module, list[nn.Module]]  # a model, and its fillers


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What one attack spends: numbers of queries in turn, and the steps and texts of each training."""

    grid: tuple[int, ...]
    steps: int
    batch: int
    all_controls: bool  # also training without the proxy, and weaker APIs


def effort(budget: Budget) -> Effort:
    """Return the query counts, training steps and batch size that fit a budget."""
    grid = budget.pick(smoke=(16, 64), standard=(16, 64, 256, 1024), full=(16, 64, 256, 1024, 4096))
    return Effort(
        grid=tuple(k for k in grid if k <= budget.queries),
        steps=budget.pick(smoke=24, standard=80, full=400),
        batch=budget.pick(smoke=4, standard=8, full=8),
        all_controls=budget.profile != "smoke",
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
    tuned = attach(copy.deepcopy(model), s.adapter, seed=s.seed, blocks=s.blocks)
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
        others: tuple[nn.Module, ...] = (),
        answers: Answers = "logits",
    ) -> nn.Module:
        """Return the model with its fillers trained on `count` queries, or a better model.

        The proxy and `others` replace it if they are better on the queries that were held out.
        """
        model, fillers = start
        lesson = imitate(self.api, answers)
        best = self._teach(model, fillers, lesson, self.texts[:count])
        _, held_out = split(self.texts[:count])
        for other in (self.proxy, *others):
            loss = self._loss(other, held_out, lesson)
            if loss < best:
                best, model = loss, other
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
