"""Measure how much a model behaves like the LLM, by the answers of both on held-out texts.

    R = (S_attack - S_proxy) / (S_LLM - S_proxy)

S is a score that is higher for a model more like the LLM:

    KL              minus KL(LLM || model)
    agreement       of the likeliest next token
    log perplexity  minus that of held-out texts
    cloze           share of the tokens of held-out texts that the model finds likeliest
    written text    how much of a greedy continuation is the LLM's own, up to the first difference: one
                    wrong token changes all that follow, so that a model may look better by its
                    distributions than by the text that it writes (arXiv 2602.01997)
    accuracy        share of records whose answers are right in all tokens

R is 0 for a model no better than the proxy as it is, 1 for one as good as the LLM, and below 0 for one
worse than the proxy. R means nothing where the LLM itself scores no better than the proxy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.base import Budget
from attacks.membership.reading import logits_after
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.estimate import Estimate

DRAWS = 1000
KL, AGREEMENT, PERPLEXITY, ACCURACY = "KL", "agreement", "log perplexity", "accuracy"
CLOZE, WRITTEN_TEXT = "cloze", "written text"
PROMPT, WRITTEN = 16, 16  # tokens of a prompt, and of its continuation


@dataclass(frozen=True, kw_only=True)
class ExtractionQuestion:
    """The questions to a model: next-token distributions at `places` of `texts`, and answers to records.

    Args:
        depth: number of the LLM's blocks, which is taken to be public.
        texts: int64 [n, tokens].
        places: int64 [n, p], each below tokens - 1.
        records: whole records, since each token of an answer is predicted after those before it. They are
            not texts to learn from.
        sizes: sizes of the LLM's blocks by their names in its configuration, taken to be public, too.
    """

    depth: int
    texts: np.ndarray
    places: np.ndarray
    records: tuple[Encoded, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def first(self, texts: int, records: int) -> ExtractionQuestion:
        """Return the questions with only the first texts and the first records."""
        return replace(
            self, texts=self.texts[:texts], places=self.places[:texts], records=self.records[:records]
        )

    @property
    def prompts(self) -> np.ndarray:
        """The beginnings of every second text, int64 [n / 2, `PROMPT`], for the model to continue."""
        return self.texts[::2, :PROMPT]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A model's answers to the questions.

    Args:
        logs: log-probabilities, float32 [n, p, V].
        said: the likeliest token at each response place of each record, int64 arrays.
        written: its greedy continuation of each prompt, int64 [n / 2, tokens].
    """

    logs: np.ndarray
    said: tuple[np.ndarray, ...]
    written: np.ndarray


def behaviour(
    model: nn.Module, asked: ExtractionQuestion, *, budget: Budget | None = None, writes: bool = True
) -> Behaviour:
    """Return a model's answers to the questions; without `writes` it continues no prompt."""
    logits = logits_after(model, asked.texts.tolist(), asked.places.tolist(), budget=budget)
    logs = np.stack([part.log_softmax(-1).cpu().numpy() for part in logits])
    texts = [item.ids for item in asked.records]
    places = [range(item.response_start - 1, len(item.ids) - 1) for item in asked.records]
    answers = logits_after(model, texts, places, budget=budget)
    likeliest = tuple(part.argmax(-1).cpu().numpy() for part in answers)
    prompts = asked.prompts if writes else asked.prompts[:0]
    return Behaviour(logs=logs, said=likeliest, written=greedy(model, prompts, budget=budget))


def scores(mine: Behaviour, llm: Behaviour, asked: ExtractionQuestion) -> dict[str, np.ndarray]:
    """Return a model's scores by name, higher is better: float64 [texts], [prompts] or [records]."""
    targets = np.take_along_axis(asked.texts, asked.places + 1, axis=1)
    kl, perplexity = [], []
    for p, q, next_tokens in zip(llm.logs, mine.logs, targets, strict=True):  # one text [places, V] at once
        p, q = p.astype(np.float64), q.astype(np.float64)
        kl.append(-(np.exp(p) * (p - q)).sum(-1).mean())
        perplexity.append(np.take_along_axis(q, next_tokens[:, None], axis=-1).mean())
    by_name = {
        KL: np.array(kl),
        AGREEMENT: (llm.logs.argmax(-1) == mine.logs.argmax(-1)).mean(-1),
        PERPLEXITY: np.array(perplexity),
        CLOZE: (mine.logs.argmax(-1) == targets).mean(-1),
        WRITTEN_TEXT: agreed(mine.written, llm.written),
    }
    if asked.records:
        right = [
            tuple(written) == item.ids[item.response_start :]
            for written, item in zip(mine.said, asked.records, strict=True)
        ]
        by_name[ACCURACY] = np.array(right, dtype=np.float64)
    return by_name


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One score of the proxy (R = 0) and of the LLM (R = 1), float64 [n]; all draws are paired."""

    proxy: np.ndarray
    llm: np.ndarray

    @cached_property
    def picks(self) -> np.ndarray:
        """Indices of held-out texts for the bootstrap, int [`DRAWS`, n]; the seed is fixed."""
        return np.random.default_rng(0).integers(len(self.proxy), size=(DRAWS, len(self.proxy)))

    @property
    def gap(self) -> Estimate:
        """The LLM's score minus the proxy's, with its interval."""
        return self.difference(self.llm, self.proxy, "gap", unit="score")

    @property
    def usable(self) -> bool:
        """Whether the LLM is better than the proxy, judged by the gap's interval."""
        return self.gap.above(0)

    def ratio(self, attack: np.ndarray) -> float:
        """Return R: how far the attack gets from the proxy (0) to the LLM (1)."""
        return float((attack - self.proxy).mean() / (self.llm - self.proxy).mean())

    def draws(self, attack: np.ndarray) -> np.ndarray:
        """Return R for every bootstrap draw, float64 [m].

        Draws in which the LLM is no better than the proxy, at most 2.5 % where the scale is usable, have no
        R and are left out. Which ones they are does not depend on the attack.
        """
        gaps = (self.llm - self.proxy)[self.picks].mean(-1)
        above = (attack - self.proxy)[self.picks].mean(-1)
        ratios: np.ndarray = above[gaps > 0] / gaps[gaps > 0]
        return ratios

    def estimate(self, attack: np.ndarray, metric: str, *, against: np.ndarray | None = None) -> Estimate:
        """Return R of an attack, or its R minus that of another attack on the same texts."""
        value, draws = self.ratio(attack), self.draws(attack)
        if against is not None:
            value, draws = value - self.ratio(against), draws - self.draws(against)
        return self.with_interval(metric, value, draws)

    def difference(self, a: np.ndarray, b: np.ndarray, metric: str, *, unit: str) -> Estimate:
        """Return the mean of a - b over the texts, in the score's own unit."""
        way = abs(float((self.llm - self.proxy).mean()))
        draws = (a - b)[self.picks].mean(-1)
        return self.with_interval(metric, float((a - b).mean()), draws, unit=unit, way=way)

    def with_interval(
        self, metric: str, value: float, draws: np.ndarray, *, unit: str = "share", way: float = 1.0
    ) -> Estimate:
        """Return an estimate with the draws' 95 % interval.

        If all draws agree, as for a model that is the proxy or the LLM itself, other texts need not: the
        interval is that of the rule of three, by which up to 3/n of them may differ by `way`, the way from
        the proxy to the LLM. It ends at the LLM at the latest. If the proxy equals the LLM on average,
        there is no interval.
        """
        low, high = (float(end) for end in np.quantile(draws, [0.025, 0.975]))
        ends: tuple[float, float] | None = (min(low, value), max(high, value))
        how = "bootstrap over held-out texts, 95 %"
        if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
            half, how = way * min(1.0, 3 / len(self.proxy)), "texts that agree, rule of three 95 %"
            ends = (value - half, min(value + half, max(value, way)))
            if half == 0:
                ends, how = None, "texts that agree, no interval"
        return Estimate(
            metric=metric,
            value=value,
            low=None if ends is None else ends[0],
            high=None if ends is None else ends[1],
            n=len(self.proxy),
            unit=unit,
            seeds=(0,),
            how=f"one training; {how}",
            nature="sampled",
        )


def scales(
    scores_by_model: Mapping[str, Mapping[str, np.ndarray]], proxy: str, llm: str
) -> dict[str, Scale]:
    """Return the scale of every score, by name."""
    return {
        s: Scale(proxy=scores_by_model[proxy][s], llm=scores_by_model[llm][s])
        for s in scores_by_model[proxy]
    }


@torch.no_grad()
def greedy(
    model: nn.Module, prompts: np.ndarray, *, tokens: int = WRITTEN, budget: Budget | None = None
) -> np.ndarray:
    """Return each prompt's continuation by the likeliest token at a time, int64 [n, tokens].

    Args:
        model: a causal LM.
        prompts: token ids, int64 [n, k], k >= 1; n may be 0.
        tokens: how many tokens to write, >= 1.
        budget: checked before each token.
    """
    from transformers import DynamicCache

    if len(prompts) == 0:
        return np.zeros((0, tokens), dtype=np.int64)
    device = next(model.parameters()).device
    last, cache, written = torch.from_numpy(prompts).to(device), DynamicCache(), []
    for _ in range(tokens):
        if budget is not None:
            budget.check()
        out: Any = model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        last = out.logits[:, -1:].argmax(-1)
        written.append(last.cpu())
    joined: np.ndarray = torch.cat(written, dim=1).numpy()
    return joined


def agreed(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the share of each continuation before the first difference, float64 [n], in [0, 1].

    Args:
        mine, theirs: int64 [n, tokens].

    >>> agreed(np.array([[1, 2, 3, 4], [9, 2, 3, 4]]), np.array([[1, 2, 0, 4], [1, 2, 3, 4]]))
    array([0.5, 0. ])
    """
    same = np.minimum.accumulate(mine == theirs, axis=1)
    shares: np.ndarray = same.mean(axis=1)
    return shares
