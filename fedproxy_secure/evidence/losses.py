"""Losses on held-out free text, and numbers computed from them, with intervals over seeds and test records.

Records of free text have no wrong answer, so accuracy cannot measure a model on them. Their loss does: how
surprised a model is by the responses, in nats per token; `exp` of it is the perplexity. Models are compared
on the same records, so that the difficulty of a record cancels out of a difference.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.answers import BY_DEFINITION, OF_MEANS, UNRESOLVED, alone, gap_closed
from fedproxy_secure.evidence.estimate import (
    Estimate,
    Nature,
    at_least_as_wide,
    fieller_interval,
    mean_interval,
)
from fedproxy_secure.evidence.weighted_means import half_width, parts_of, quantile

LOSS = "_loss"  # suffix of the key of a model's losses in a record
NO_SPREAD = "a task of one test record, no interval"


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """The losses of one model on one task's test records, in the records' order.

    Args:
        nats: negative log-likelihood of each record's response after its prompt, nats; infinite if it is
            not a number, as for a diverged model.
        tokens: tokens of each record's response, including its end token.

    Raises `ValueError` unless both have one value per record, for at least one record, with nats >= 0 and
    tokens >= 1.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.nats) != len(self.tokens) or not self.nats:
            raise ValueError(
                f"losses: nats of {len(self.nats)} and tokens of {len(self.tokens)} records; must be "
                "equally many, one or more"
            )
        if not all(n >= 0 for n in self.nats):
            raise ValueError("losses: nats must be numbers >= 0")
        if not all(type(t) is int and t >= 1 for t in self.tokens):
            raise ValueError("losses: tokens must be whole numbers >= 1")

    @property
    def value(self) -> float:
        """The loss over all records together, nats per response token."""
        return math.fsum(self.nats) / sum(self.tokens)

    @property
    def finite(self) -> bool:
        """Whether all losses are finite, unlike those of a diverged model."""
        return all(map(math.isfinite, self.nats))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a record, with null for infinity, which JSON lacks."""
        return {"nats": [n if math.isfinite(n) else None for n in self.nats], "tokens": list(self.tokens)}

    @classmethod
    def of_json(cls, raw: Mapping[str, Any]) -> TextLoss:
        """Return losses from plain values of `to_json`.

        Raises `ValueError`, `KeyError` or `TypeError` for values of another form.
        """
        return cls(
            nats=tuple(math.inf if n is None else n for n in raw["nats"]), tokens=tuple(raw["tokens"])
        )


Losses = Mapping[str, TextLoss]  # task -> a model's losses on it


def losses_in(record: Mapping[str, Any], model: str) -> Losses:
    """Return the losses of a model in a run's or a cell's record, by task; {} if it has none.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for a record of another form.
    """
    return {task: TextLoss.of_json(raw) for task, raw in record.get(model + LOSS, {}).items()}


def measured(losses: Losses | None) -> bool:
    """Return whether there are losses and all are finite; a mean over some of them would mislead."""
    return bool(losses) and all(loss.finite for loss in (losses or {}).values())


def _check_same_records(models: Sequence[Losses], context: str) -> None:
    first = {task: loss.tokens for task, loss in models[0].items()}
    if any({task: loss.tokens for task, loss in losses.items()} != first for losses in models[1:]):
        raise DataError(
            f"{context}: the models' losses are of different test records; delete the seeds or cells that "
            "other records made, and resume"
        )


def mean_loss(losses: Losses) -> float:
    """Return the loss, nats per response token, with equal weights of tasks."""
    return math.fsum(loss.value for loss in losses.values()) / len(losses)


def resolved_loss_gap(by_seed: Mapping[int, Sequence[Losses]]) -> bool:
    """Return whether centralised tuning loses less than no tuning, beyond the interval of the difference.

    `by_seed`: for each seed, the losses of zero-shot and of the ceiling.
    """
    return loss_over_seeds_or_records(by_seed, operator.sub, "gap").above(0)


def loss_gap_over_seeds_or_records(by_seed: Mapping[int, Sequence[Losses]], metric: str) -> Estimate | None:
    """Return the gap closed by loss (`loss_over_seeds_or_records`), which always has an interval.

    Args:
        by_seed: for each seed, the losses of the method, of zero-shot and of the ceiling.
        metric: name of the number.

    Returns None if the gap is not resolved (`resolved_loss_gap`): a ratio to a gap that may be 0 says
    nothing. Raises `DataError` if models of a seed differ in tasks or lengths of records.
    """
    if not resolved_loss_gap({seed: models[1:] for seed, models in by_seed.items()}):
        return None
    found = loss_over_seeds_or_records(by_seed, gap_closed, metric, unit="share")
    return None if found.low is None else found  # Fieller's interval may need a slightly larger gap


def loss_over_seeds_or_records(
    by_seed: Mapping[int, Sequence[Losses]],
    statistic: Callable[..., Any],
    metric: str,
    *,
    unit: str = "nats",
) -> Estimate:
    """Return a statistic of losses, as a mean over seeds; of `gap_closed` the ratio of means over seeds.

    Its interval is Student's t over seeds, and no narrower than a seed's own over its test records. With
    one seed it is the latter: a paired interval of means over records, weighted by their tokens. That of a
    gap closed is Fieller's. There is no interval, even over seeds, for a task of one record or a gap that
    is not resolved.

    Args:
        by_seed: for each seed, the losses of one or more models on the same records.
        statistic: maps the models' losses (`mean_loss`) to a number: `alone`, `operator.sub`, or
            `gap_closed` of the method, zero-shot and the ceiling.
        metric: name of the number.
        unit: unit of the number.

    Raises `DataError` if models of a seed differ in tasks or lengths of records.
    """
    for seed, models in by_seed.items():
        _check_same_records(models, f"{metric}, seed {seed}")
    if statistic is gap_closed and len(by_seed) > 1:  # one seed alone may have no gap to divide by
        return _gap_over_seeds(by_seed, metric=metric, unit=unit)
    within = (0.0, math.inf) if statistic is alone else (-math.inf, math.inf)
    values = {seed: float(statistic(*map(mean_loss, models))) for seed, models in by_seed.items()}
    parts = [
        _over_records(models, statistic, values[seed], metric=metric, unit=unit, seed=seed, within=within)
        for seed, models in by_seed.items()
    ]
    if len(parts) == 1:
        return replace(parts[0], how=f"one seed; {parts[0].how}")
    over_seeds = mean_interval(values, metric=metric, unit=unit, within=within)
    unsure = next((part for part in parts if part.interval is None), None)
    if unsure is not None:
        return replace(over_seeds, low=None, high=None, how=f"mean over seeds; {unsure.how}")
    return at_least_as_wide(over_seeds, parts)


def _gap_over_seeds(by_seed: Mapping[int, Sequence[Losses]], *, metric: str, unit: str) -> Estimate:
    means = {seed: [mean_loss(losses) for losses in models] for seed, models in by_seed.items()}
    way, gap = (math.fsum(m[1] - m[i] for m in means.values()) for i in (0, 2))

    def apart(share: float) -> Estimate:
        weights = np.array(
            [[-1.0, 1.0 - share, share]]
        )  # zero-shot - method - share * (zero-shot - ceiling)
        values = {seed: float(weights[0] @ m) for seed, m in means.items()}
        parts = []
        for seed, models in by_seed.items():
            half = half_width(models, weights)
            low, high = values[seed] - half, values[seed] + half
            parts.append(replace(over, value=values[seed], low=low, high=high, seeds=(seed,)))
        return at_least_as_wide(mean_interval(values, metric=metric, unit=unit), parts)

    n, seeds = len(by_seed), tuple(by_seed)
    over = Estimate(
        metric=metric,
        value=way / gap,
        low=None,
        high=None,
        n=n,
        unit=unit,
        seeds=seeds,
        how=UNRESOLVED,
        nature="sampled",
    )
    if any(len(loss.nats) < 2 for models in by_seed.values() for loss in models[0].values()):
        return replace(over, how=f"ratio of means over seeds; {NO_SPREAD}")
    ends = fieller_interval(apart, way / gap)
    if ends is None:
        return over
    if ends[0] == over.value == ends[1]:  # no spread on either side, as of the ceiling itself
        return replace(over, low=over.value, high=over.value, how=BY_DEFINITION, nature="counted")
    return replace(over, low=ends[0], high=ends[1], how=OF_MEANS)


def loss_of(losses: Mapping[int, Losses], metric: str) -> Estimate:
    """Return the loss of one model by seed, named `metric` (`loss_over_seeds_or_records`)."""
    return loss_over_seeds_or_records({s: (by_task,) for s, by_task in losses.items()}, alone, metric)


def losses_by_task(losses: Mapping[int, Losses], name: str) -> dict[str, Estimate]:
    """Return the loss of one model on each task; `name`: the model's name in metrics."""
    return {
        task: loss_of(
            {s: {task: by_task[task]} for s, by_task in losses.items()}, f"loss on {task}, {name}"
        )
        for task in next(iter(losses.values()))
    }


def _over_records(
    models: Sequence[Losses],
    statistic: Callable[..., Any],
    value: float,
    *,
    metric: str,
    seed: int,
    unit: str,
    within: tuple[float, float],
) -> Estimate:
    """Return one seed's statistic with its interval over test records, which the models share.

    `how` describes only the interval over records; the caller adds the seeds.
    """
    sizes = [len(loss.nats) for loss in models[0].values()]
    low = high = None
    nature: Nature = "sampled"
    how = NO_SPREAD
    if min(sizes) > 1:
        ends = _fieller(models, value) if statistic is gap_closed else _student(models, statistic, value)
        how = "test records do not resolve the gap itself, no interval"
        if ends is not None:
            low, high = max(within[0], min(value, ends[0])), min(within[1], max(value, ends[1]))
            how = "over test records, Student t 95 %"
            if models[0] in models[1:]:  # a model minus itself, or an end of the scale of a gap
                low, high, how, nature = value, value, BY_DEFINITION, "counted"
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=sum(sizes),
        unit=unit,
        seeds=(seed,),
        how=how,
        nature=nature,
    )


def _student(models: Sequence[Losses], statistic: Callable[..., Any], value: float) -> tuple[float, float]:
    """Return the interval of a loss, or of a difference of two losses."""
    half = half_width(models, np.array([(1.0,) if statistic is alone else (1.0, -1.0)]))
    if statistic is alone and value > 0:  # losses are skewed: on the scale of their logarithm
        ratio = math.exp(min(half / value, 700.0))
        return value / ratio, value * ratio
    return value - half, value + half


def _fieller(models: Sequence[Losses], value: float) -> tuple[float, float] | None:
    """Return the interval of the gap closed (Fieller 1954), or None if the gap itself may be 0.

    It contains the shares for which the interval of `way - share * gap` contains 0.
    """
    method, zero_shot, ceiling = map(mean_loss, models)
    way, gap = method - zero_shot, ceiling - zero_shot
    parts = parts_of(models, np.array([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]]))
    beside = np.array([1.0, -value])
    squared = quantile([float(beside @ part.covariance @ beside) for part in parts], parts) ** 2
    of_way, cross, of_gap = (
        math.fsum(float(part.covariance[i, j]) for part in parts) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    a, b, c = gap**2 - squared * of_gap, way * gap - squared * cross, way**2 - squared * of_way
    if not a > 0:
        return None
    half = math.sqrt(max(0.0, b**2 - a * c))
    return (b - half) / a, (b + half) / a
