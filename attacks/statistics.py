"""Statistics that judge attacks: AUC and rates at fixed false-positive rates, with intervals.

These estimates carry what they could have shown and, where a finding may be paired with another, how each
target was judged (`attacks.judging.measured`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import binom, norm, rankdata

from attacks.judging.measured import Judged, Measured, of_kinds, with_power
from attacks.judging.power import AucPower, MeanPower, RatePower, SharePower
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.estimate import (
    CONFIDENCE,
    Estimate,
    mean_interval,
    proportion_interval,
    wilson,
)
from fedproxy_secure.evidence.roc import allowed_at
from fedproxy_secure.evidence.targets import components

SEEDS = (0,)  # `attacks.trial` puts the seed of the attack in its place


def auc_estimate(
    scores: np.ndarray,
    positive: np.ndarray,
    *,
    metric: str,
    inflation: float = 1.0,
    parts: Sequence[int] = (),
) -> Measured:
    """Return the area under the ROC curve with DeLong's interval (1988), taken on the logit scale.

    The logit scale keeps the interval in [0, 1]. A perfect or a worst possible AUC, and one of scores
    without spread, get the interval of the rule of three.

    Args:
        scores: float [n], higher for those taken as positive; ties count half.
        positive: bool [n], at least 2 of each kind.
        metric: name of the estimate.
        inflation: factor by which the standard error is larger than DeLong's where scores are not
            independent.
        parts: of an exam of several questions, how many scores are of each, in order.

    Raises `DataError` for shapes that differ, scores that are not finite, or fewer than 2 of a kind.
    """
    if scores.shape != positive.shape or not np.isfinite(scores).all():
        raise DataError(
            f"{metric}: scores {scores.shape}, labels {positive.shape}: must have one shape and be finite"
        )
    m, n = _counts(positive, metric=metric, least=2)
    v10, v01 = components(scores, positive)
    value = float(v10.mean())
    spread = inflation * math.sqrt(float(v10.var(ddof=1)) / m + float(v01.var(ddof=1)) / n)
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    if spread == 0 or not 0 < value < 1:
        slack = 3 * inflation**2 / min(m, n)
        low, high = max(0.0, value - slack), min(1.0, value + slack)
        how = "rule of three, 95 %"
    else:
        how = "DeLong 95 % on the logit scale"
        logit, half = math.log(value / (1 - value)), z * spread / (value * (1 - value))
        low, high = _expit(logit - half), _expit(logit + half)
    return Measured(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=m + n,
        unit="AUC",
        seeds=SEEDS,
        how=how,
        power=AucPower(positives=m, negatives=n, inflation=inflation),
        judged=of_kinds(scores, positive, parts) if inflation == 1 else None,
    )


def spread_by_chance(positives: int, negatives: int) -> float:
    """Return the standard deviation of the AUC of independent scores without information.

    The formula is that of Mann and Whitney.
    """
    return math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def auc_value(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the AUC without an interval; ties count half.

    `scores` float [n], `positive` bool [n]. Raises `DataError` unless there is one of each kind.
    """
    m, n = _counts(positive, metric="AUC", least=1)
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - m * (m + 1) / 2) / (m * n))


def _counts(positive: np.ndarray, *, metric: str, least: int) -> tuple[int, int]:
    """Return how many targets are positive and negative; raise `DataError` for fewer than `least`."""
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < least:
        raise DataError(f"{metric}: {m} positives, {n} negatives: must be >= {least} of each")
    return m, n


def p_by_chance(scores: np.ndarray, labels: np.ndarray, *, permutations: int) -> float:
    """Return the permutation p-value of an AUC: how often permuted labels give an AUC at least as high.

    `scores` float [n], `labels` bool [n]. The actual labels count as one permutation. Two calls use the
    same permutations.

    >>> p_by_chance(np.arange(40.0), np.arange(40) >= 20, permutations=9_999)
    0.0001
    """
    rng, ranks = np.random.default_rng(0), rankdata(scores)  # the AUC grows with the sum of ranks
    permuted = rng.permuted(np.tile(labels, (permutations, 1)), axis=1)
    beaten = int((permuted @ ranks >= ranks[labels].sum()).sum())
    return (beaten + 1) / (permutations + 1)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def mean_auc(
    per_target: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    metric: str,
    inflation: float = 1.0,
) -> Measured:
    """Return the mean AUC over targets, given as (scores, labels); `inflation` as in `auc_estimate`.

    The interval is as wide as the targets' own intervals on average, as if all targets erred together. They
    are not independent: rounds draw on the same records, and an attack scores a token alike in every round.
    """
    values = [auc_estimate(s, p, metric=metric, inflation=inflation) for s, p in per_target]
    if len(values) == 1:
        return values[0]
    positives = round(float(np.mean([p.sum() for _, p in per_target])))
    negatives = round(float(np.mean([(~p).sum() for _, p in per_target])))
    return Measured(
        metric=metric,
        value=float(np.mean([v.value for v in values])),
        low=float(np.mean([v.low or 0.0 for v in values])),
        high=float(np.mean([1.0 if v.high is None else v.high for v in values])),
        n=len(values),
        unit="AUC",
        seeds=SEEDS,
        how="mean over targets, DeLong 95 % as if they erred together",
        power=AucPower(positives=positives, negatives=negatives, inflation=inflation),
    )


def over_targets(
    values: Sequence[float],
    *,
    metric: str,
    unit: str,
    within: tuple[float, float] | None = None,
    chance: float | None = None,
) -> Measured:
    """Return the mean over targets of one run with Student's t interval, taking targets as independent.

    Args:
        values: one number for each target.
        metric: name of the estimate.
        unit: unit of the values.
        within: the lowest and highest possible value; the interval is cut to it. If all targets have the
            same value, they get Wilson's interval of a share, scaled to that range, or none without
            `within`.
        chance: the value where there is nothing to find; with it, the estimate carries what it could have
            shown even if it is not the headline.
    """
    mean = mean_interval(dict(enumerate(values)), metric=metric, unit=unit)
    low, high, how = mean.low, mean.high, "mean over targets, Student t 95 %"
    if len(values) == 1:
        how = "one target, no interval"
    elif low is None or high is None:
        how = "targets that agree, no interval"
        if within is not None:
            width = within[1] - within[0]
            ends = wilson((mean.value - within[0]) / width, len(values))
            low, high = (within[0] + width * end for end in ends)
            low, high = min(low, mean.value), max(high, mean.value)  # rounding must not push it outside
            how = "targets that agree, Wilson 95 % as of a share"
    if within is not None and low is not None and high is not None:
        low, high = max(within[0], low), min(within[1], high)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Measured(
        metric=metric,
        value=mean.value,
        low=low,
        high=high,
        n=mean.n,
        unit=unit,
        seeds=SEEDS,
        how=how,
        chance=chance,
        power=MeanPower(n=len(values), spread=spread, most=math.inf if within is None else within[1]),
        judged=Judged(kinds="", values=tuple(map(float, values))),
    )


def tpr_estimates(
    scores: np.ndarray, positive: np.ndarray, *, rates: Sequence[float] = (0.01, 0.001), of: str = ""
) -> tuple[Measured, ...]:
    """Return true-positive rates at fixed false-positive rates, with intervals that count both samples.

    At most `rate` of the negatives exceed the threshold; ties count as negatives. A rate below 1 /
    negatives cannot be told from 0 false positives, and the metric's name says so. The interval joins two
    Wilson intervals over positives, taken at both ends of the threshold's own interval: the number of the n
    negatives above the rate's true threshold is binomial. Chance is (allowed + 1) / (negatives + 1), which
    is more than `rate` where negatives are few. `of` is added to the metrics' names.
    """
    negatives = np.sort(scores[~positive])[::-1]
    estimates = []
    for rate in rates:
        allowed = allowed_at(rate, len(negatives))
        threshold = negatives[allowed] if allowed < len(negatives) else -math.inf
        caught = int((scores[positive] > threshold).sum())
        name = f"TPR at {rate:.1%} FPR{of and ', '}{of}" + (" (0 false positives)" if allowed == 0 else "")
        most, least = (int(binom.ppf(q, len(negatives), rate)) for q in (0.975, 0.025))
        strict = negatives[least - 1] if least else math.inf
        lax = negatives[most] if most < len(negatives) else -math.inf
        hits = [caught, *(int((scores[positive] > t).sum()) for t in (strict, lax))]
        rate_at, lowest, highest = (
            proportion_interval(n, int(positive.sum()), metric=name, seeds=SEEDS) for n in hits
        )
        low, high = lowest.low or 0.0, 1.0 if highest.high is None else highest.high
        estimates.append(
            Measured(
                metric=name,
                value=rate_at.value,
                low=min(low, rate_at.value),
                high=max(high, rate_at.value),
                n=rate_at.n,
                unit=rate_at.unit,
                seeds=rate_at.seeds,
                how="share of positives, Wilson 95 % at both ends of the threshold's 95 %",
                chance=(allowed + 1) / (len(negatives) + 1),
                power=RatePower(positives=rate_at.n, negatives=len(negatives), rate=rate),
            )
        )
    return tuple(estimates)


def mean_difference(values: np.ndarray, positive: np.ndarray, *, metric: str, unit: str) -> Estimate:
    """Return the mean of positives minus that of negatives, with a normal interval for unequal variances.

    `values` float [n], `positive` bool [n]. Raises `DataError` for fewer than 2 of a kind.
    """
    _counts(positive, metric=metric, least=2)
    x, y = values[positive].astype(np.float64), values[~positive].astype(np.float64)
    value = float(x.mean() - y.mean())
    error = math.sqrt(float(x.var(ddof=1)) / len(x) + float(y.var(ddof=1)) / len(y))
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return Estimate(
        metric=metric,
        value=value,
        low=value - half,
        high=value + half,
        n=len(values),
        unit=unit,
        seeds=SEEDS,
        how="difference of means, normal 95 %",
        nature="sampled",
    )


def share(hits: int, n: int, *, metric: str, groups: int | None = None) -> Measured:
    """Return a share of targets with its Wilson interval; 0 of 0 counts as 0 of 1.

    Args:
        hits, n: how many targets were found, and how many there were.
        groups: number of groups of targets, if those of a group may be found or missed together. Then both
            ends of the interval, and what the attack could have shown, count groups.
    """
    estimate = proportion_interval(hits, max(n, 1), metric=metric, seeds=SEEDS, of="targets")
    if groups is None:
        return with_power(estimate, SharePower(n=estimate.n))
    independent = min(max(groups, 1), estimate.n)
    low, high = wilson(estimate.value, independent)
    how = f"share of targets, Wilson 95 % over {independent} groups"
    return with_power(
        replace(estimate, low=low, high=high, how=how), SharePower(n=independent, of="groups of targets")
    )


def matched(guesses: Sequence[Hashable], truths: Sequence[Hashable]) -> int:
    """Return how many guesses equal a truth, each truth matched at most once."""
    return (Counter(guesses) & Counter(truths)).total()
