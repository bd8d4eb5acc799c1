"""Losses on held-out free text, and numbers computed from them, with intervals over seeds and test records.

Records of free text have no wrong answer, so no accuracy says how good a model is at them. Their loss does:
how surprised a model is by the responses, in nats per token; `exp` of it is the perplexity. Models are
compared on the same records, so that what is hard about a record cancels out of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from fedproxy_secure.evidence.answers import alone
from fedproxy_secure.evidence.estimate import (
    CONFIDENCE,
    Estimate,
    mean_interval,
    no_surer,
    student_quantile,
)

LOSS = "_loss"  # ends the key under which a record has a model's losses
DRAWS = 4000  # of weights of records
_AT_ONCE = 2**21  # weights that are held at once


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """What one model loses on one task's test records, in the records' order.

    Args:
        nats: negative log-likelihood of each record's response after its prompt, nats.
        tokens: tokens of each record's response, with the one that ends it.

    Raises `ValueError` unless both have one value for each of one record or more, numbers are finite and
    none is below 0, or 1 token.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.nats) != len(self.tokens) or not self.nats:
            raise ValueError(
                f"losses: nats of {len(self.nats)} and tokens of {len(self.tokens)} records; must be "
                "equally many, one or more"
            )
        if not all(math.isfinite(n) and n >= 0 for n in self.nats):
            raise ValueError("losses: nats must be finite numbers >= 0")
        if not all(type(t) is int and t >= 1 for t in self.tokens):
            raise ValueError("losses: tokens must be whole numbers >= 1")

    @property
    def value(self) -> float:
        """The loss over all records together, nats per response token."""
        return math.fsum(self.nats) / sum(self.tokens)


Losses = Mapping[str, TextLoss]  # task -> what a model loses there


def losses_in(record: Mapping[str, Any], model: str) -> Losses:
    """Return the losses that a run's or a cell's record has of a model, by task; {} if it has none.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for what is no such record.
    """
    return {
        task: TextLoss(nats=tuple(raw["nats"]), tokens=tuple(raw["tokens"]))
        for task, raw in record.get(model + LOSS, {}).items()
    }


def mean_loss(losses: Losses) -> float:
    """Return the loss, nats per response token; each task counts the same."""
    return math.fsum(loss.value for loss in losses.values()) / len(losses)


def has_loss_gap(zero_shot: Losses, ceiling: Losses) -> bool:
    """Return whether centralised tuning loses less than no tuning; else there is no gap to close."""
    return mean_loss(ceiling) < mean_loss(zero_shot)


def loss_over_seeds_or_records(
    by_seed: Mapping[int, Sequence[Losses]],
    statistic: Callable[..., Any],
    metric: str,
    *,
    unit: str = "nats",
) -> Estimate:
    """Return a statistic of losses, as a mean over seeds.

    Its interval is Student's t over seeds, and no narrower than a seed's own over its test records. With
    one seed it is that: records are weighted at random (Rubin's Bayesian bootstrap), the same for all
    models, and the spread is widened for few records as Student's t is. A task of one record allows none.

    Args:
        by_seed: for each seed, the losses of one or more models on the same records.
        statistic: maps the models' losses (`mean_loss`), or arrays of losses, to a number or an array:
            `alone`, `operator.sub`, or `gap_closed` of the method, zero-shot and the ceiling.
        metric: name of the number.
        unit: unit of the number.
    """
    within = (0.0, math.inf) if statistic is alone else (-math.inf, math.inf)
    values = {seed: float(statistic(*map(mean_loss, models))) for seed, models in by_seed.items()}
    parts = [
        _over_records(models, statistic, values[seed], metric=metric, unit=unit, seed=seed, within=within)
        for seed, models in by_seed.items()
    ]
    if len(parts) == 1:
        return parts[0]
    return no_surer(mean_interval(values, metric=metric, unit=unit, within=within), parts)


def loss_of(losses: Mapping[int, Losses], metric: str) -> Estimate:
    """Return the loss of one model by seed, named `metric` (`loss_over_seeds_or_records`)."""
    return loss_over_seeds_or_records({s: (own,) for s, own in losses.items()}, alone, metric)


def losses_by_task(losses: Mapping[int, Losses], name: str) -> dict[str, Estimate]:
    """Return the loss of one model on each task, named after what `name` names."""
    return {
        task: loss_of({s: {task: own[task]} for s, own in losses.items()}, f"loss on {task}, {name}")
        for task in next(iter(losses.values()))
    }


def _over_records(
    models: Sequence[Losses],
    statistic: Callable[..., Any],
    value: float,
    *,
    metric: str,
    unit: str,
    seed: int,
    within: tuple[float, float],
) -> Estimate:
    """Return one seed's statistic with its interval over test records, which the models share."""
    sizes = [len(loss.nats) for loss in models[0].values()]
    low = high = None
    how = "one seed; a task of one test record, no interval"
    if min(sizes) > 1:
        with np.errstate(all="ignore"):  # a draw may leave a ratio with a denominator of 0
            draws = np.asarray(statistic(*_drawn(models, seed)))
        draws = draws[np.isfinite(draws)]
        ends = (
            np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if len(draws) else (value,) * 2
        )
        wider = _wider(min(sizes))
        low = max(within[0], min(value, value + wider * (float(ends[0]) - value)))
        high = min(within[1], max(value, value + wider * (float(ends[1]) - value)))
        how = "one seed; over test records, Bayesian bootstrap 95 %"
    return Estimate(
        metric=metric, value=value, low=low, high=high, n=sum(sizes), unit=unit, seeds=(seed,), how=how
    )


def _wider(records: int) -> float:
    """Return by what an interval of a bootstrap over so few records must be stretched to be Student's t.

    Random weights spread a mean as if the records' variance were divided by n + 1, not n - 1.
    """
    normal = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return math.sqrt((records + 1) / (records - 1)) * student_quantile(records - 1) / normal


def _drawn(models: Sequence[Losses], seed: int) -> np.ndarray:
    """Return the models' losses under random weights of the records, float64 [models, DRAWS]."""
    rng, drawn = np.random.default_rng(seed), np.zeros((len(models), DRAWS))
    for task in models[0]:
        nats = np.array([losses[task].nats for losses in models])
        tokens = np.array([losses[task].tokens for losses in models], dtype=np.float64)
        step = max(1, _AT_ONCE // nats.shape[1])
        for first in range(0, DRAWS, step):
            here = slice(first, min(DRAWS, first + step))
            weights = rng.standard_exponential((here.stop - here.start, nats.shape[1]))
            drawn[:, here] += (nats @ weights.T) / (tokens @ weights.T) / len(models[0])
    return drawn
