"""Shares of right answers, and numbers computed from them, with intervals over seeds and test records."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.estimate import Estimate, at_least_as_wide, fieller_interval, mean_interval

DRAWS = 10_000  # number of draws from a posterior
OF_MEANS = "ratio of means over seeds, Fieller 95 %, no narrower than a seed's own"
BY_DEFINITION = "exact by definition, whatever the test records"
UNRESOLVED = "ratio of means over seeds; they do not resolve the gap itself, no interval"
Bits = Mapping[str, Sequence[bool]]  # task -> which test records were answered correctly


def bits_to_text(bits: tuple[bool, ...]) -> str:
    """Return one character for each record, `1` if it was answered correctly.

    >>> bits_to_text((True, False))
    '10'
    """
    return "".join("01"[int(bit)] for bit in bits)


def bits_from_text(text: str) -> tuple[bool, ...]:
    """Read a text of `bits_to_text`; raises `ValueError` for other characters and for an empty text."""
    if not text or set(text) - {"0", "1"}:
        raise ValueError(f"answers {text[:20]!r}: must be of 0 and 1")
    return tuple(character == "1" for character in text)


def answers_in(record: Mapping[str, Any], model: str) -> Bits:
    """Return which test records a model answered correctly, by task, from a run's or a cell's record.

    Raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` for a record of another form.
    """
    return {task: bits_from_text(text) for task, text in record[model].items()}


def mean_share(bits: Bits) -> float:
    """Return the share of correct answers, with equal weights of tasks."""
    return float(np.mean([np.mean(b) for b in bits.values()]))


def over_seeds_or_records(
    by_seed: Mapping[int, Sequence[Bits]],
    statistic: Callable[..., Any],
    metric: str,
) -> Estimate:
    """Return a statistic of shares of correct answers, as a mean over seeds.

    Its interval is Student's t over seeds, and no narrower than a seed's own over its test records. With
    one seed it is the latter. It is cut to the range of a share (`alone`) or a difference (`operator.sub`).

    Args:
        by_seed: for each seed, the answers of one or more models to the same records.
        statistic: maps the models' shares (`mean_share`), or arrays of shares, to a number or an array.
        metric: name of the number.

    Raises `DataError` if models of a seed differ in tasks or numbers of records.
    """
    for seed, bits in by_seed.items():
        _check_same_records(bits, f"{metric}, seed {seed}")
    values = {seed: float(statistic(*map(mean_share, bits))) for seed, bits in by_seed.items()}
    parts = [
        _over_records(bits, statistic, values[seed], metric=metric, seed=seed)
        for seed, bits in by_seed.items()
    ]
    if len(parts) == 1:
        return parts[0]
    within = _RANGES.get(statistic, (-math.inf, math.inf))
    return at_least_as_wide(mean_interval(values, metric=metric, unit="share", within=within), parts)


def _check_same_records(models: Sequence[Bits], context: str) -> None:
    first = {task: len(bits) for task, bits in models[0].items()}
    if any({task: len(bits) for task, bits in answers.items()} != first for answers in models[1:]):
        raise DataError(
            f"{context}: the models' answers are to different test records; delete the seeds or cells that "
            "other records made, and resume"
        )


def share_right(answers: Mapping[int, Bits], metric: str) -> Estimate:
    """Return the share of right answers of one model by seed, named `metric` (`over_seeds_or_records`)."""
    return over_seeds_or_records({s: (bits,) for s, bits in answers.items()}, alone, metric)


def gap_over_seeds_or_records(by_seed: Mapping[int, Sequence[Bits]], metric: str) -> Estimate | None:
    """Return the gap closed: how far a method came from zero-shot, over how far centralised tuning came.

    Both ways are means over seeds. A mean of the seeds' own ratios would be dominated by a seed whose
    gap happens to be small, and leaving out seeds without a gap would bias it.

    With several seeds its interval is Fieller's (1954): it contains the shares for which the interval of
    `way - share * gap` contains 0. That one is Student's t over seeds, no narrower than a seed's own over
    its test records. With one seed it is over test records (`over_seeds_or_records`).

    Args:
        by_seed: for each seed, the answers of the method, of zero-shot and of the ceiling.
        metric: name of the number.

    Returns None if the gap is not resolved (`resolved_gap`): a ratio to a gap that may be 0 says nothing.
    Raises `DataError` if models of a seed differ in tasks or numbers of records.
    """
    if not resolved_gap({seed: models[1:] for seed, models in by_seed.items()}):
        return None
    if len(by_seed) == 1:
        return over_seeds_or_records(by_seed, gap_closed, metric)
    for seed, bits in by_seed.items():
        _check_same_records(bits, f"{metric}, seed {seed}")
    shares = {seed: [mean_share(bits) for bits in models] for seed, models in by_seed.items()}
    drawn = {seed: _drawn(models, seed) for seed, models in by_seed.items()}
    ways = math.fsum(method - zero_shot for method, zero_shot, _ in shares.values())
    value = ways / math.fsum(ceiling - zero_shot for _, zero_shot, ceiling in shares.values())

    def apart(share: float) -> Estimate:
        def statistic(method: Any, zero_shot: Any, ceiling: Any) -> Any:
            return method - zero_shot - share * (ceiling - zero_shot)

        values = {seed: float(statistic(*means)) for seed, means in shares.items()}
        parts = [
            _part(statistic(*drawn[seed]), by_seed[seed], values[seed], metric=metric, seed=seed)
            for seed in by_seed
        ]
        return at_least_as_wide(mean_interval(values, metric=metric, unit="share"), parts)

    ends = fieller_interval(apart, value)
    low, high = ends or (None, None)
    exact = low == value == high  # no spread on either side, as of the ceiling itself
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(by_seed),
        unit="share",
        seeds=tuple(by_seed),
        how=BY_DEFINITION if exact else OF_MEANS if ends else UNRESOLVED,
        nature="counted" if exact else "sampled",
    )


def resolved_gap(by_seed: Mapping[int, Sequence[Bits]]) -> bool:
    """Return whether centralised tuning is better than no tuning, beyond the interval of the difference.

    If it is worse, the gap is negative, and a method that also got worse would seem to close part of it.

    Args:
        by_seed: for each seed, the answers of zero-shot and of the ceiling.
    """
    pairs = {seed: (ceiling, zero_shot) for seed, (zero_shot, ceiling) in by_seed.items()}
    return over_seeds_or_records(pairs, operator.sub, "gap").above(0)


def _over_records(
    models: Sequence[Bits],
    statistic: Callable[..., Any],
    value: float,
    *,
    metric: str,
    seed: int,
) -> Estimate:
    """Return one seed's statistic with its interval over test records, which the models share."""
    with np.errstate(all="ignore"):  # a draw may leave a ratio with a denominator of 0
        draws = np.asarray(statistic(*_drawn(models, seed)))
    return _part(draws, models, value, metric=metric, seed=seed)


def _drawn(models: Sequence[Bits], seed: int) -> list[np.ndarray]:
    """Return draws of each model's share of right answers, float64 [DRAWS], given one seed's records.

    A record's outcome is the set of models that answered it correctly. The outcomes' probabilities are
    drawn from their posterior under a Dirichlet prior of total weight 1. For one model and one task that is
    Jeffreys' interval (Brown, Cai & DasGupta 2001), which has width even if all answers are right. A model
    that is given twice, such as the ceiling as a method of its own, counts once.
    """
    keys = [tuple(id(bits[task]) for task in models[0]) for bits in models]
    distinct = {key: bits for key, bits in zip(keys, models, strict=True)}
    rng, sums = np.random.default_rng(seed), [np.zeros(DRAWS) for _ in distinct]
    outcomes = 2 ** len(distinct)
    for task in models[0]:
        right = [np.asarray(bits[task], dtype=np.int64) for bits in distinct.values()]
        of_record = sum(r << i for i, r in enumerate(right))
        counts = np.bincount(of_record, minlength=outcomes)
        probabilities = rng.dirichlet(counts + 1 / outcomes, size=DRAWS)
        for i, share in enumerate(sums):
            answered = (np.arange(outcomes) >> i & 1).astype(np.float64)
            share += probabilities @ answered / len(models[0])
    shares = dict(zip(distinct, sums, strict=True))
    return [shares[key] for key in keys]


def _part(draws: np.ndarray, models: Sequence[Bits], value: float, *, metric: str, seed: int) -> Estimate:
    """Return one seed's value with the interval of its draws.

    It is exact if all draws have it: then it is so by definition, as the gap closed by the ceiling itself.
    """
    draws = draws[np.isfinite(draws)]
    estimate = Estimate(
        metric=metric,
        value=value,
        low=None,
        high=None,
        n=sum(len(b) for b in models[0].values()),
        unit="share",
        seeds=(seed,),
        how="one seed; no draw from the posterior has a value, no interval",
        nature="sampled",
    )
    if not len(draws):
        return estimate
    if (draws == value).all():
        how = f"one seed; {BY_DEFINITION}"
        return replace(estimate, low=value, high=value, how=how, nature="counted")
    low, high = (float(end) for end in np.quantile(draws, [0.025, 0.975]))
    how = "one seed; over test records, Jeffreys 95 %"
    return replace(estimate, low=min(low, value), high=max(high, value), how=how)


def alone(share: Any) -> Any:
    """Return the share unchanged: the statistic of a single model."""
    return share


def gap_closed(method: Any, zero_shot: Any, ceiling: Any) -> Any:
    """Return `(method - zero-shot) / (centralised - zero-shot)`, for shares or arrays of shares."""
    return (method - zero_shot) / (ceiling - zero_shot)


_RANGES: dict[Callable[..., Any], tuple[float, float]] = {alone: (0.0, 1.0), operator.sub: (-1.0, 1.0)}
