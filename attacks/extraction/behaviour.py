"""How like the LLM is a model? What both answer to held-out texts, and the share of the gap that is closed.

    R = (S_attack - S_proxy) / (S_LLM - S_proxy)

for a score S, higher being more like the LLM: minus KL(LLM || model), agreement of the likeliest token,
minus log perplexity, accuracy on records. 0: no better than the proxy as it is, 1: as the LLM; below 0 is
worse than the proxy. R says nothing where the LLM itself scores no better than the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from attacks.base import Budget
from fedproxy_secure.data.encode import Encoded, training_batch
from fedproxy_secure.report.estimate import Estimate

DRAWS = 1000
TEXTS_A_PASS = 16
KL, AGREEMENT, PERPLEXITY, ACCURACY = "KL", "agreement", "log perplexity", "accuracy"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model is asked: the next token's distribution at `places` of `texts`, and records' answers.

    `texts`: int64 [n, tokens]; `places`: int64 [n, p], each below tokens - 1. `records` stand there whole,
    since each token of an answer is asked for after those before it; they are no texts to learn from.
    `depth`: blocks of the LLM, which is taken to be public.
    """

    depth: int
    texts: np.ndarray
    places: np.ndarray
    records: tuple[Encoded, ...]

    def first(self, texts: int, records: int) -> Asked:
        """The first so many of both."""
        return Asked(
            depth=self.depth,
            texts=self.texts[:texts],
            places=self.places[:texts],
            records=self.records[:records],
        )


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A model's answers: log-probabilities, float32 [n, p, V], and the likeliest token at each response
    place of each record (int64 arrays)."""

    logs: np.ndarray
    said: tuple[np.ndarray, ...]


@torch.inference_mode()
def behaviour(model: nn.Module, asked: Asked, *, pad_id: int, budget: Budget | None = None) -> Behaviour:
    """What a model answers."""
    device = next(model.parameters()).device
    logs, said = [], []
    for at in range(0, len(asked.texts), TEXTS_A_PASS):
        if budget is not None:
            budget.check()
        ids = torch.from_numpy(asked.texts[at : at + TEXTS_A_PASS]).to(device)
        places = torch.from_numpy(asked.places[at : at + TEXTS_A_PASS]).to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        rows = torch.arange(len(ids), device=device)[:, None]
        logs.append(logits[rows, places].float().log_softmax(-1).cpu().numpy())
    for at in range(0, len(asked.records), TEXTS_A_PASS):
        batch = training_batch(asked.records[at : at + TEXTS_A_PASS], pad_id=pad_id, device=device)
        out = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        best = out[:, :-1].argmax(-1)
        said += [row[wanted > 0].cpu().numpy() for row, wanted in zip(best, batch.response, strict=True)]
    return Behaviour(logs=np.concatenate(logs), said=tuple(said))


def scores(mine: Behaviour, llm: Behaviour, asked: Asked) -> dict[str, np.ndarray]:
    """Scores by name, higher is better: float64 [texts], of accuracy [records]."""
    p, q = llm.logs.astype(np.float64), mine.logs.astype(np.float64)
    targets = np.take_along_axis(asked.texts, asked.places + 1, axis=1)
    made = {
        KL: -(np.exp(p) * (p - q)).sum(-1).mean(-1),
        AGREEMENT: (p.argmax(-1) == q.argmax(-1)).mean(-1),
        PERPLEXITY: np.take_along_axis(q, targets[..., None], axis=-1)[..., 0].mean(-1),
    }
    if asked.records:
        right = [
            tuple(said) == item.ids[item.response_start :]
            for said, item in zip(mine.said, asked.records, strict=True)
        ]
        made[ACCURACY] = np.array(right, dtype=np.float64)
    return made


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One score of the proxy (R = 0) and of the LLM (R = 1), float64 [n]; all draws are paired."""

    proxy: np.ndarray
    llm: np.ndarray

    @cached_property
    def picks(self) -> np.ndarray:
        """Bootstrap draws over held-out texts, int [`DRAWS`, n]; always the same."""
        return np.random.default_rng(0).integers(len(self.proxy), size=(DRAWS, len(self.proxy)))

    @property
    def gap(self) -> Estimate:
        """S_LLM - S_proxy."""
        return self.difference(self.llm, self.proxy, "gap", unit="score")

    @property
    def usable(self) -> bool:
        """Whether the LLM is better than the proxy, by the gap's interval."""
        low = self.gap.low
        return low is not None and low > 0

    def ratio(self, attack: np.ndarray) -> float:
        """R."""
        return float((attack - self.proxy).mean() / (self.llm - self.proxy).mean())

    def draws(self, attack: np.ndarray) -> np.ndarray:
        """R of every bootstrap draw, float64 [`DRAWS`]."""
        above = (attack - self.proxy)[self.picks].mean(-1)
        found: np.ndarray = above / (self.llm - self.proxy)[self.picks].mean(-1)
        return found

    def estimate(self, attack: np.ndarray, metric: str, *, against: np.ndarray | None = None) -> Estimate:
        """R of an attack, or its R minus another's on the same texts."""
        value, draws = self.ratio(attack), self.draws(attack)
        if against is not None:
            value, draws = value - self.ratio(against), draws - self.draws(against)
        return self.made(metric, value, draws)

    def difference(self, a: np.ndarray, b: np.ndarray, metric: str, *, unit: str) -> Estimate:
        """Mean of a - b over the texts, in the score's own unit."""
        return self.made(metric, float((a - b).mean()), (a - b)[self.picks].mean(-1), unit=unit)

    def made(self, metric: str, value: float, draws: np.ndarray, *, unit: str = "share") -> Estimate:
        """An estimate with the draws' 95 % interval."""
        low, high = np.quantile(draws, [0.025, 0.975])
        return Estimate(
            metric=metric,
            value=value,
            low=float(min(low, value)),
            high=float(max(high, value)),
            n=len(self.proxy),
            unit=unit,
            seeds=(0,),
            how="one training; bootstrap over held-out texts, 95 %",
        )


def scales(found: Mapping[str, Mapping[str, np.ndarray]], proxy: str, llm: str) -> dict[str, Scale]:
    """The scale of every score, from the scores of the proxy and the LLM by their names."""
    return {s: Scale(proxy=found[proxy][s], llm=found[llm][s]) for s in found[proxy]}
