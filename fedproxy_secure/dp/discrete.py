"""Integer noise for sums in a ring: Skellam, and discrete Gaussian.

Skellam noise of variance v is the difference of two Poisson numbers of mean v / 2; sums of independent
ones are Skellam again, which is what a sum over clients needs. Numbers are drawn by inverting a table of
the tail P(|X| >= k).

Guarantees: each number's law is within 2^-50 of the named one (statistical distance); `accounting`
subtracts that from delta. Not guaranteed: the time a draw takes may depend on the value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import DataError

MOST_VARIANCE = 2.0**28  # beyond, SciPy's Bessel function fails; tables grow with the deviation
_TAIL = 10.0  # standard deviations in the table; beyond lies less than 2^-63
_TAIL_NUMBERS = 40  # and at least so many numbers: small variances have heavier tails


def draw(
    mechanism: Literal["skellam", "discrete_gaussian"], variance: float, noise: Noise, count: int
) -> np.ndarray:
    """Independent integers with mean 0, int64 [count].

    Args:
        variance: of the Skellam law; for `discrete_gaussian` the parameter sigma^2.

    Raises `DataError` for a variance out of [0, MOST_VARIANCE].
    """
    if not 0 <= variance <= MOST_VARIANCE:
        raise DataError(f"noise variance {variance:g}: must be in [0, {MOST_VARIANCE:g}]")
    if variance == 0:
        return np.zeros(count, dtype=np.int64)
    ascending = _tail_table(mechanism, variance)
    words = noise.words(count)
    u = ((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-63
    # |X| >= k exactly if u <= P(|X| >= k)
    magnitude = len(ascending) - np.searchsorted(ascending, u, side="left")
    return np.where(words & np.uint64(1), magnitude, -magnitude).astype(np.int64)


@lru_cache(maxsize=8)
def _tail_table(mechanism: str, variance: float) -> np.ndarray:
    """P(|X| >= k) for k = last .. 1, ascending, float64."""
    weights = law(mechanism, variance, support(variance))
    tail = 2 * np.cumsum(weights[::-1])  # from the far end: small numbers first
    ready: np.ndarray = tail[:-1] / (tail[-2] + weights[0])
    return ready


def support(variance: float) -> int:
    """The largest magnitude that can be drawn."""
    return int(_TAIL * variance**0.5) + _TAIL_NUMBERS


def law(mechanism: str, variance: float, last: int) -> np.ndarray:
    """P(X = k) for k = 0 .. last, up to a common factor, float64 [last + 1]."""
    k = np.arange(last + 1, dtype=np.float64)
    weights: np.ndarray
    if mechanism == "discrete_gaussian":
        weights = np.exp(-(k**2) / (2 * variance))
    else:
        from scipy.special import ive  # exp(-v) I_k(v)

        weights = ive(k, variance)
    return weights
