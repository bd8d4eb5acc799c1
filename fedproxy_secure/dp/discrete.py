"""Integer noise for sums of integers: Skellam, discrete Gaussian, and rounded Gaussian.

Skellam noise of variance v is the difference of two Poisson numbers of mean v / 2; sums of independent
Skellam numbers are Skellam again, as a sum over clients needs. A rounded Gaussian is a normal number of
variance v, rounded to the nearest integer, for sums over records. Numbers are drawn by inverting a table of
the tail P(|X| >= k) in steps of 2^-127, computed with decimals of 60 digits.

Guarantees: each number's law is within `DISTANCE` of the named one (statistical distance): at most 2^-110
from rounding the table, less than 2^-120 from the tail beyond it, the uniforms are exact. `accounting` adds
the cost to delta. Not guaranteed: that the time of a draw does not depend on the value.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Literal

import numpy as np

from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import DataError

Law = Literal["skellam", "discrete_gaussian", "rounded_gaussian"]
DISTANCE = 2.0**-100
MOST_VARIANCE = 2.0**28  # tables grow with the deviation
LEAST_ROUNDED = 2.0**20  # the least variance of a rounded Gaussian for which `_cells` is exact enough
_TAIL = 13.0  # standard deviations in the table; beyond lies less than 2^-120
_TAIL_NUMBERS = 40  # more numbers in the table: small variances have heavier tails
_BITS = 127  # in a table's entry and in a uniform number; the 128th is the sign
_DIGITS = 60


def draw(mechanism: Law, variance: float, noise: Noise, count: int) -> np.ndarray:
    """Draw independent integers with mean 0, int64 [count].

    Args:
        variance: the variance of the Skellam law, the parameter sigma^2 of `discrete_gaussian`, or the
            variance before rounding of `rounded_gaussian`.

    Raises `DataError` for a variance out of [0, MOST_VARIANCE], or of [LEAST_ROUNDED, MOST_VARIANCE] for
    `rounded_gaussian`.
    """
    if not 0 <= variance <= MOST_VARIANCE:
        raise DataError(f"noise variance {variance:g}: must be in [0, {MOST_VARIANCE:g}]")
    if mechanism == "rounded_gaussian" and variance < LEAST_ROUNDED:
        raise DataError(f"noise variance {variance:g}: must be >= {LEAST_ROUNDED:g} for rounded_gaussian")
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
    if mechanism == "rounded_gaussian":
        return _cells(variance, last)
    # Bessel's I_k(v), downwards from far out, where I_{k-1} = I_{k+1} + (2k / v) I_k only adds (Miller)
    weights = [Decimal(0), Decimal(1)]
    twice = 2 / variance
    for k in range(last, 0, -1):
        weights.append(weights[-2] + k * twice * weights[-1])
    return weights[:0:-1]


def _cells(variance: Decimal, last: int) -> list[Decimal]:
    """Return the integral of exp(-x^2 / 2v) over [k - 1/2, k + 1/2] for k = 0 .. last.

    With x = k + u and a = k / v it is exp(-k^2 / 2v) times the integral of cosh(a u) exp(-u^2 / 2v) over
    |u| <= 1/2, as odd parts cancel. The product of both series is a polynomial in a^2. A term u^2n adds at
    most (a^2 / 4 + 1 / 8v)^n / n!. In the table a <= 14 / sqrt(v), so with v >= 2^20 the terms left out,
    from n = 9 on, are below 2^-120 together.
    """
    orders = 9
    width = -1 / (2 * variance)
    coefficients = [
        sum(
            (
                width**j / (math.factorial(2 * i) * math.factorial(j) * (2 * (i + j) + 1) * 4 ** (i + j))
                for j in range(orders - i)
            ),
            Decimal(0),
        )
        for i in range(orders)
    ]
    normal = _law("discrete_gaussian", variance, last)
    weights = []
    for k, at in enumerate(normal):
        a2, inner = (k / variance) ** 2, Decimal(0)
        for coefficient in reversed(coefficients):
            inner = inner * a2 + coefficient
        weights.append(at * inner)
    return weights
