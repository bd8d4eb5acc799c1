"""A9: how much of one client is left in the final model?

Canaries are clients whose update is a random direction at the clip norm. Random directions in d dimensions
are nearly orthogonal. So the cosine of a canary that was *not* there with the model's movement is
distributed as N(0, 1/d), and canaries do not disturb each other. How far the cosines of canaries that were
there lie from that distribution shows what a threshold on the cosine could tell about a client.

Guarantees: an **estimate** of epsilon, not a bound: it takes the cosines of canaries that were there as
normal, and looks at one statistic. It also tests the path from client to sum: a canary that took part must
be found.

After Andrew et al. 2023 (arXiv 2302.03098).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, norm, t

from fedproxy_secure.errors import DataError

MISSED = 0.05  # share of cases in which the interval misses the true value


@dataclass(frozen=True, kw_only=True)
class CanaryEstimate:
    """The canaries' cosines, and the epsilon that follows from them with its 95 % interval.

    The interval lets the mean (Student's t) and the deviation (chi-square) vary at once; its low end has
    the null's deviation wherever the canaries allow it.

    Args:
        canaries: number of canaries.
        dimension: numbers in an update.
        mean, deviation: mean and standard deviation of the canaries' cosines.
        null_deviation: standard deviation of the cosine of a canary that was not there; its mean is 0.
        epsilon: the estimate, at `delta`.
        low, high: ends of its interval.
        delta: delta of the claim.
        advantage: true minus false positive rate of the best threshold.
    """

    canaries: int
    dimension: int
    mean: float
    deviation: float
    null_deviation: float
    epsilon: float
    low: float
    high: float
    delta: float
    advantage: float


def canaries(count: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Return random unit vectors, float32 [count, dimension]; times the clip norm they are updates.

    Raises `DataError` unless both are >= 2.
    """
    if count < 2 or dimension < 2:
        raise DataError(f"count={count}, dimension={dimension}: must be >= 2")
    drawn = rng.standard_normal((count, dimension))
    unit: np.ndarray = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def estimate(directions: np.ndarray, movement: np.ndarray, *, delta: float) -> CanaryEstimate:
    """Return what the model's movement, float [d], tells of canaries [m, d] that all took part.

    Raises `DataError` for shapes that do not fit, a movement of zero or not finite, or delta out of (0, 1).
    """
    if directions.ndim != 2 or movement.shape != directions.shape[1:]:
        raise DataError(f"canaries {directions.shape}, movement {movement.shape}: must be [m, d] and [d]")
    length = float(np.linalg.norm(movement.astype(np.float64)))
    if not 0 < length < math.inf:
        raise DataError(f"movement of length {length}: must be > 0 and finite")
    if not 0 < delta < 1:
        raise DataError(f"delta={delta}: must be in (0, 1)")
    count, d = directions.shape
    cosines = directions.astype(np.float64) @ movement.astype(np.float64) / length
    mean, deviation = float(cosines.mean()), float(cosines.std(ddof=1))
    null = 1 / math.sqrt(d)
    # each of the two intervals misses in 2.5 % of cases, both together in at most 5 %
    reach = float(t.ppf(1 - MISSED / 4, count - 1)) * deviation / math.sqrt(count)
    narrow, wide = (
        deviation * math.sqrt((count - 1) / float(chi2.ppf(tail, count - 1)))
        for tail in (1 - MISSED / 4, MISSED / 4)
    )

    def epsilon(at: float, spread: float) -> float:
        return gaussian_epsilon(at, spread, null, delta=delta)

    least = max(0.0, abs(mean) - reach)
    low = epsilon(least, min(max(null, narrow), wide))
    thresholds = np.linspace(min(0, mean) - 5 * null, max(0, mean) + 5 * deviation, 4001)
    gap = norm.sf(thresholds, mean, deviation) - norm.sf(thresholds, 0, null)
    return CanaryEstimate(
        canaries=count,
        dimension=d,
        mean=mean,
        deviation=deviation,
        null_deviation=null,
        epsilon=epsilon(mean, deviation),
        low=low,
        high=max(epsilon(abs(mean) + reach, spread) for spread in (narrow, wide)),
        delta=delta,
        advantage=float(max(gap.max(), 0.0)),
    )


def gaussian_epsilon(mean: float, deviation: float, null: float, *, delta: float) -> float:
    """Return the least epsilon for which N(mean, deviation^2) and N(0, null^2) are (epsilon, delta)-close.

    They are close in both directions. The set where one density exceeds e^epsilon times the other is an
    interval or the complement of one, so its masses are exact.
    """

    def excess(epsilon: float, m1: float, s1: float, m2: float, s2: float) -> float:
        """Return the maximum over sets of P1 - e^epsilon P2."""
        # log p1 - log p2 - epsilon as a x^2 + b x + c
        a = 1 / (2 * s2**2) - 1 / (2 * s1**2)
        b = m1 / s1**2 - m2 / s2**2
        c = m2**2 / (2 * s2**2) - m1**2 / (2 * s1**2) + math.log(s2 / s1) - epsilon

        def mass(m: float, s: float) -> float:
            if abs(a) < 1e-12 * max(abs(b), 1.0):
                if b == 0:
                    return float(c > 0)
                root = -c / b
                return float(norm.sf(root, m, s) if b > 0 else norm.cdf(root, m, s))
            inside = b * b - 4 * a * c
            if inside <= 0:
                return float(a > 0)
            ends = sorted(((-b - math.sqrt(inside)) / (2 * a), (-b + math.sqrt(inside)) / (2 * a)))
            between = float(norm.cdf(ends[1], m, s) - norm.cdf(ends[0], m, s))
            return between if a < 0 else float(norm.cdf(ends[0], m, s) + norm.sf(ends[1], m, s))

        return mass(m1, s1) - math.exp(epsilon) * mass(m2, s2)

    def too_far(epsilon: float) -> bool:
        there = (mean, deviation, 0.0, null)
        return excess(epsilon, *there) > delta or excess(epsilon, 0.0, null, mean, deviation) > delta

    low, high = 0.0, 1.0
    if not too_far(0.0):
        return 0.0
    while too_far(high):
        low, high = high, 2 * high
        if high > 500:
            return math.inf
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if too_far(middle) else (low, middle)
    return high
