"""Integer noise for sums in a ring: Skellam, and discrete Gaussian.

Skellam noise of variance v is the difference of two Poisson numbers of mean v / 2; sums of independent
ones are Skellam again, which is what a sum over clients needs. Numbers are drawn by inverting a table of
the tail P(|X| >= k) in steps of 2^-127, made with decimals of 60 digits.

Guarantees: each number's law is within `DISTANCE` of the named one (statistical distance): at most 2^-110
from rounding the table, less than 2^-120 from the tail beyond it, the uniforms are exact. `accounting` adds
to delta what that costs. Not guaranteed: the time a draw takes may depend on the value.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Literal

import numpy as np

from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import DataError

DISTANCE = 2.0**-100
MOST_VARIANCE = 2.0**28  # tables grow with the deviation
_TAIL = 13.0  # standard deviations in the table; beyond lies less than 2^-120
_TAIL_NUMBERS = 40  # and at least so many numbers: small variances have heavier tails
_BITS = 127  # in a table's entry and in a uniform number; the 128th is the sign
_DIGITS = 60


def draw(
    mechanism: Literal["skellam", "discrete_gaussian"], variance: float, noise: Noise, count: int
) -> np.ndarray:
    """Draw independent integers with mean 0, int64 [count].

    Args:
        variance: the variance of the Skellam law, or the parameter sigma^2 of `discrete_gaussian`.

    Raises `DataError` for a variance out of [0, MOST_VARIANCE].
    """
    if not 0 <= variance <= MOST_VARIANCE:
        raise DataError(f"noise variance {variance:g}: must be in [0, {MOST_VARIANCE:g}]")
    if variance == 0:
        return np.zeros(count, dtype=np.int64)
    high, low = _tail_table(mechanism, variance)
    first, words = noise.words(count), noise.words(count)
    second = words >> np.uint64(1)
    # |X| >= k exactly if the uniform lies below the table's entry for k
    not_above = np.searchsorted(high, first, side="right")
    for i in np.flatnonzero((not_above > 0) & (high[not_above - 1] == first)):  # once in 2^40 numbers or so
        begin = int(np.searchsorted(high, first[i], side="left"))
        not_above[i] = begin + int(np.searchsorted(low[begin : not_above[i]], second[i], side="right"))
    magnitude = len(high) - not_above
    return np.where(words & np.uint64(1), magnitude, -magnitude).astype(np.int64)


@lru_cache(maxsize=8)
def _tail_table(mechanism: str, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper 64 and lower 63 bits of `tail_steps`, which are P(|X| >= k) in steps of 2^-127."""
    entries = tail_steps(mechanism, variance)
    mask = (1 << (_BITS - 64)) - 1
    high = np.array([e >> (_BITS - 64) for e in entries], dtype=np.uint64)
    return high, np.array([e & mask for e in entries], dtype=np.uint64)


def tail_steps(mechanism: str, variance: float) -> list[int]:
    """Return P(|X| >= k) for k = last .. 1, ascending, in whole steps of 2^-127, rounded down."""
    with localcontext() as context:
        context.prec = _DIGITS
        weights = _law(mechanism, Decimal(variance), support(variance))
        total = 2 * sum(weights[1:], Decimal(0)) + weights[0]
        step, above, entries = 2 * Decimal(2) ** _BITS / total, Decimal(0), []
        for weight in reversed(weights[1:]):  # from the far end: small numbers first
            above += weight
            entries.append(int(above * step))
    return entries


def support(variance: float) -> int:
    """Return the largest magnitude that can be drawn."""
    return int(_TAIL * variance**0.5) + _TAIL_NUMBERS


def _law(mechanism: str, variance: Decimal, last: int) -> list[Decimal]:
    """Return P(X = k) for k = 0 .. last, up to a common factor."""
    if mechanism == "discrete_gaussian":
        # exp(-(k + 1)^2 / 2v) = exp(-k^2 / 2v) exp(-(2k + 1) / 2v)
        ratio, square = (-1 / (2 * variance)).exp(), (-1 / variance).exp()
        weights = [Decimal(1)]
        for _ in range(last):
            weights.append(weights[-1] * ratio)
            ratio *= square
        return weights
    # Bessel's I_k(v), downwards from far out, where I_{k-1} = I_{k+1} + (2k / v) I_k only adds (Miller)
    weights = [Decimal(0), Decimal(1)]
    twice = 2 / variance
    for k in range(last, 0, -1):
        weights.append(weights[-2] + k * twice * weights[-1])
    return weights[:0:-1]
