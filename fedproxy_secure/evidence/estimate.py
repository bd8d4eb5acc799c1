"""A measured number with its interval: over seeds (Student t), a proportion (Wilson), a difference.

Every number of a report is an `Estimate`, which has the number of values behind it, their seeds, and how
the interval was made. Intervals are two-sided, 95 %.

Student's t interval assumes that seeds are independent and their values about normal. It covers other seeds
on the same records (the seeds of a run share their records). Wilson's interval assumes that records are
independent; it does not cover other seeds. An interval over seeds is never narrower than one over records
(`at_least_as_wide`), but the two are not added: an interval for other seeds and other records together
would be up to 1.4 times as wide.

Equal numbers of all seeds do not mean certainty. If the data of a single seed allow an interval, the
interval over seeds is no narrower than the seeds' own on average (`at_least_as_wide`). If they do not, and
all seeds agree, there is no interval, unless the number was counted. Nor is an interval without width one
(`Estimate.interval`): what was sampled is never certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedproxy_secure.errors import DataError

CONFIDENCE = 0.95
# sampled, with an interval or none; counted, and so exact; a bound that the truth exceeds with CONFIDENCE
Nature = Literal["sampled", "counted", "lower bound"]
_Z = 1.959963984540054  # standard normal quantile of (1 + CONFIDENCE) / 2
_FARTHEST = 2.0**20  # no end of the interval of a ratio is searched beyond
_ROUNDING = 1e-12  # seeds that differ by less, relative to their mean, agree


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One measured number.

    Args:
        metric: name of the number.
        value: the number, in `unit`.
        low, high: ends of the interval, in `unit`; both None if the data allow no interval.
        n: number of values behind it (seeds, or records for a proportion).
        unit: its unit; `share` means a fraction, 1 = everything, and is shown as percent.
        seeds: the seeds that the values came from.
        how: how the number and its interval were made, in words.
        nature: whether it was sampled, or counted and so is exact, or is a lower bound on the truth. Both
            ends of the last two equal the value.

    Raises `DataError` if a number is not finite, n < 1, only one end is given, or an end of a number that
    was not sampled differs from it.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    seeds: tuple[int, ...]
    how: str
    nature: Nature  # without a default, so that a file that does not say it cannot be read

    def __post_init__(self) -> None:
        if self.n < 1:
            raise DataError(f"{self.metric}: n={self.n}: must be >= 1")
        if (self.low is None) != (self.high is None):
            raise DataError(
                f"{self.metric}: low={self.low}, high={self.high}: must be both None or both given"
            )
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise DataError(f"{self.metric}: {number}: must be finite")
        if self.nature != "sampled" and not self.low == self.value == self.high:
            raise DataError(
                f"{self.metric}: {self.value} [{self.low}, {self.high}]: the ends of a number that is "
                f"{self.nature} must equal it; a number with another interval is sampled"
            )

    @property
    def exact(self) -> bool:
        """Whether it was counted, not sampled."""
        return self.nature == "counted"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of its interval; None without one, or with one without width although it was sampled."""
        if self.low is None or self.high is None or (self.nature == "sampled" and self.low == self.high):
            return None
        return self.low, self.high

    def above(self, bar: float) -> bool:
        """Return whether its interval begins above a number; False without an interval."""
        return self.interval is not None and self.interval[0] > bar

    def below(self, bar: float) -> bool:
        """Return whether its interval ends below a number; False without an interval."""
        return self.interval is not None and self.interval[1] < bar


def mean_interval(
    values_by_seed: Mapping[int, float],
    *,
    metric: str,
    unit: str,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return the mean over seeds with its Student t interval.

    A single seed has no interval. Seeds that agree have none either, because their spread need not be 0.

    Args:
        values_by_seed: one value per seed.
        metric: name of the number.
        unit: unit of the values.
        within: the lowest and highest possible value; the interval is cut to it.

    >>> mean_interval({0: 0.5, 1: 0.7}, metric="accuracy", unit="share").n
    2

    Raises `DataError` without a value or with one that is not finite.
    """
    if not values_by_seed:
        raise DataError(f"{metric}: no values; needs one per seed")
    values = list(values_by_seed.values())
    mean = math.fsum(values) / len(values)
    low = high = None
    how = "one seed, no interval" if len(values) == 1 else "seeds that agree, no interval"
    if max(values) - min(values) > _ROUNDING * abs(mean):
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        half = student_quantile(len(values) - 1) * math.sqrt(variance / len(values))
        low, high = max(mean - half, within[0]), min(mean + half, within[1])
        how = "mean over seeds, Student t 95 %"
        if (low, high) != (mean - half, mean + half):
            how += f", cut to [{within[0]:g}, {within[1]:g}]"
    return Estimate(
        metric=metric,
        value=mean,
        low=low,
        high=high,
        n=len(values),
        unit=unit,
        seeds=tuple(values_by_seed),
        how=how,
        nature="sampled",
    )


def proportion_interval(
    correct: int, n: int, *, metric: str, seeds: Iterable[int], of: str = "records"
) -> Estimate:
    """Return the share `correct / n` with its Wilson interval; `of` names the targets, such as `records`.

    Raises `DataError` unless 0 <= correct <= n and n >= 1.
    """
    if not 0 <= correct <= n or n < 1:
        raise DataError(f"{metric}: {correct} of {n}: must be 0 <= correct <= n, n >= 1")
    share = correct / n
    low, high = wilson(share, n)
    return Estimate(
        metric=metric,
        value=share,
        low=low,
        high=high,
        n=n,
        unit="share",
        seeds=tuple(seeds),
        how=f"share of {of}, Wilson 95 %",
        nature="sampled",
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share of n, within [0, 1] and containing the share.

    It is valid for n numbers in [0, 1], too: none with this mean spread farther than n zeros and ones.
    """
    shrink = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / shrink
    half = _Z / shrink * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # rounding must not push the share outside
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def at_least_as_wide(joined: Estimate, parts: Sequence[Estimate]) -> Estimate:
    """Return the estimate over seeds, no narrower than the seeds' own intervals are on average.

    Without this, a few seeds that agree, such as 0 of 64 each, would claim certainty. If a seed has no
    interval of its own, the estimate is returned unchanged.

    Args:
        joined: the mean over two seeds or more.
        parts: the estimate of each seed.
    """
    intervals = [p.interval for p in parts if p.interval is not None]
    if len(intervals) < len(parts):
        return joined
    low, high = (math.fsum(ends) / len(parts) for ends in zip(*intervals, strict=True))
    if joined.low is not None and joined.high is not None:
        if joined.low <= low and high <= joined.high:
            return joined
        low, high = min(joined.low, low), max(joined.high, high)
        how = joined.how + ", no narrower than a seed's own"
    elif low == high == joined.value and all(p.exact for p in parts):
        return replace(joined, low=low, high=high, how="seeds that agree, exact", nature="counted")
    else:
        how = "seeds that agree, as wide as a seed's own"
    return replace(joined, low=low, high=high, how=how)


def independent_difference(a: Estimate, b: Estimate, *, metric: str) -> Estimate:
    """Return `a - b` of two numbers that were measured on different targets.

    Its interval combines theirs (Newcombe 1998; Zou & Donner 2008), and so stays within the range of a
    difference. It has no interval if one of them has none or is a lower bound, and is exact if both are.
    """
    value = a.value - b.value
    low = high = None
    how = "difference, not paired: no interval"
    nature: Nature = "counted" if a.exact and b.exact else "sampled"
    if nature == "counted":
        low, high, how = value, value, "difference of two counts, exact"
    elif "lower bound" in (a.nature, b.nature):
        how = "difference of lower bounds, no interval"
    elif a.interval is not None and b.interval is not None:
        (a_low, a_high), (b_low, b_high) = a.interval, b.interval
        low = value - math.hypot(a.value - a_low, b_high - b.value)
        high = value + math.hypot(a_high - a.value, b.value - b_low)
        how = "difference, not paired: other targets, 95 %"
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=min(a.n, b.n),
        unit=a.unit,
        seeds=a.seeds,
        how=how,
        nature=nature,
    )


def fieller_interval(difference: Callable[[float], Estimate], value: float) -> tuple[float, float] | None:
    """Return Fieller's interval (1954) of a ratio `a / b` with the given value, b > 0.

    It consists of the shares for which the interval of `difference(share)`, `a - share * b`, contains 0.
    Returns None if an end is too far to be found, as where b may be 0, or a difference has no interval.
    """
    from scipy.optimize import brentq

    def end(share: float, side: float) -> float:
        made = difference(share)
        if made.low is None or made.high is None:
            raise _NoIntervalError
        return made.low if side < 0 else made.high

    def farthest(side: float) -> float:
        if side * end(value, side) <= 0:  # no spread, as at an end of the scale itself; below 0 by rounding
            return value
        step = 1.0
        while side * end(value + side * step, side) >= 0:
            step *= 2
            if step > _FARTHEST:
                raise _NoIntervalError
        return float(brentq(end, value, value + side * step, args=(side,), xtol=1e-7))

    try:
        return min(value, farthest(-1.0)), max(value, farthest(1.0))
    except _NoIntervalError:
        return None


class _NoIntervalError(Exception):
    pass


def counted(value: float, *, metric: str, unit: str, seeds: Iterable[int], n: int = 1) -> Estimate:
    """Return an exact number, such as sent bytes, which needs no interval because nothing was sampled.

    Both ends of its interval equal the value.
    """
    return Estimate(
        metric=metric,
        value=value,
        low=value,
        high=value,
        n=n,
        unit=unit,
        seeds=tuple(seeds),
        how="counted, exact",
        nature="counted",
    )


def student_quantile(freedom: float) -> float:
    """Return the quantile of Student's t for a two-sided interval of probability `CONFIDENCE`."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
