"""Losses on held-out free text, and numbers computed from them, with intervals over seeds and test records.

Records of free text have no wrong answer, so accuracy cannot measure a model on them. Their loss does: how
surprised a model is by the responses, in nats per token; `exp` of it is the perplexity. Models are compared
on the same records, so that the difficulty of a record cancels out of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.answers import alone, gap_closed
from fedproxy_secure.evidence.estimate import Estimate, mean_interval, no_surer, student_quantile

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


def has_loss_gap(zero_shot: Losses, ceiling: Losses) -> bool:
    """Return whether the loss of centralised tuning is below that of no tuning, so that there is a gap."""
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
    one seed it is the latter: a paired interval of means over records, weighted by their tokens. There is
    no interval, even over seeds, for a task of one record or a gap that test records do not resolve.

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
    within = (0.0, math.inf) if statistic is alone else (-math.inf, math.inf)
    values = {seed: float(statistic(*map(mean_loss, models))) for seed, models in by_seed.items()}
    parts = [
        _over_records(models, statistic, values[seed], metric=metric, unit=unit, seed=seed, within=within)
        for seed, models in by_seed.items()
    ]
    if len(parts) == 1:
        return replace(parts[0], how=f"one seed; {parts[0].how}")
    over_seeds = mean_interval(values, metric=metric, unit=unit, within=within)
    unsure = next((part for part in parts if part.low is None), None)
    if unsure is not None:
        return replace(over_seeds, low=None, high=None, how=f"mean over seeds; {unsure.how}")
    return no_surer(over_seeds, parts)


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
    how = NO_SPREAD
    if min(sizes) > 1:
        ends = _fieller(models, value) if statistic is gap_closed else _student(models, statistic, value)
        how = "test records do not resolve the gap itself, no interval"
        if ends is not None:
            low, high = max(within[0], min(value, ends[0])), min(within[1], max(value, ends[1]))
            how = "over test records, Student t 95 %"
    return Estimate(
        metric=metric, value=value, low=low, high=high, n=sum(sizes), unit=unit, seeds=(seed,), how=how
    )


def _student(models: Sequence[Losses], statistic: Callable[..., Any], value: float) -> tuple[float, float]:
    """Return the interval of a loss, or of a difference of two losses."""
    signs = (1.0,) if statistic is alone else (1.0, -1.0)
    parts = _parts(models, np.array([signs]))
    variances = [float(part.covariance[0, 0]) for part in parts]
    half = _quantile(variances, parts) * math.sqrt(math.fsum(variances))
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
    parts = _parts(models, np.array([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]]))
    beside = np.array([1.0, -value])
    squared = _quantile([float(beside @ part.covariance @ beside) for part in parts], parts) ** 2
    of_way, cross, of_gap = (
        math.fsum(float(part.covariance[i, j]) for part in parts) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    a, b, c = gap**2 - squared * of_gap, way * gap - squared * cross, way**2 - squared * of_way
    if not a > 0:
        return None
    half = math.sqrt(max(0.0, b**2 - a * c))
    return (b - half) / a, (b + half) / a


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One task's contribution to the variance of contrasts of losses, and its degrees of freedom."""

    covariance: np.ndarray  # float64 [contrasts, contrasts]
    freedom: float


def _parts(models: Sequence[Losses], contrasts: np.ndarray) -> list[_Part]:
    """Return each task's part; `contrasts`: weights of the models' losses, float64 [contrasts, models].

    A loss is a mean of records' losses per token, weighted by their tokens. A long record dominates the
    mean, so that its residual is too small and the effective number of records is smaller. HC2 corrects the
    residuals (MacKinnon & White 1985), and Bell & McCaffrey (2002) give the degrees of freedom. For
    responses of equal length these are the records' variance over n, and n - 1.
    """
    parts = []
    for task in models[0]:
        nats = np.array([losses[task].nats for losses in models])
        tokens = np.array(models[0][task].tokens, dtype=np.float64)
        share = tokens / tokens.sum()
        residuals = contrasts @ (nats - np.outer(nats.sum(axis=1) / tokens.sum(), tokens))
        together = float(share @ share)
        retained = (
            1 - 2 * share + together
        )  # share of a record's variance in its residual, for equal variances
        moved = residuals / (tokens.sum() * np.sqrt(retained) * len(models[0]))
        weights = share**2 / retained
        # trace of M and of M @ M, where `weights` are M's quadratic form in records of equal variance
        linear, squares = float(weights @ share), float(weights @ share**2)
        crossed = _squared_sum(weights.sum(), linear, squares, together)
        alone_ = (1 + together - 2 * share) ** 2 - (together - 2 * share) ** 2
        freedom = float(weights @ retained) ** 2 / (crossed + float(weights**2 @ alone_))
        parts.append(_Part(covariance=moved @ moved.T, freedom=max(1.0, freedom)))
    return parts


def _squared_sum(total: float, linear: float, squares: float, together: float) -> float:
    """Return the sum over i, j of d_i d_j (q - w_i - w_j) ** 2 from the sums of d, d w and d w ** 2."""
    return float(
        together**2 * total**2 + 2 * total * squares + 2 * linear**2 - 4 * together * total * linear
    )


def _quantile(variances: Sequence[float], parts: Sequence[_Part]) -> float:
    """Return Student's quantile for a sum of tasks' variances (Welch 1947)."""
    total = math.fsum(variances)
    if not total > 0:
        return student_quantile(min(part.freedom for part in parts))
    squares = math.fsum((v / total) ** 2 / p.freedom for v, p in zip(variances, parts, strict=True))
    return student_quantile(1 / squares)
