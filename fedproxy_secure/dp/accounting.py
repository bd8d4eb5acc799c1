"""Compute epsilon from events, and the noise that an epsilon needs.

Record level: Opacus's PRV accountant (Gopi, Lee & Wutschitz 2021) and RDP accountant (Mironov, Talwar &
Zhang 2019), both upper bounds; the tighter one counts. Client level: RDP of the Skellam mechanism
(Agarwal, Kairouz & Liu 2021, Theorem 3.5) or of sums of discrete Gaussians (Kairouz, Liu & Steinke 2021,
Proposition 14), plus the cost of drawing numbers approximately, not exactly, by those laws
(`sampler_delta`).

Guarantees: `epsilon` bounds (epsilon, delta)-DP of everything in the events together, for neighbours in
which one record (or one client) is present or absent, or present or replaced by one that adds zero, if
neither rate nor noise follows from the exact number of records. The PRV accountant bounds one direction, a
record present against absent. That the other direction never costs more is known for every single step; for
many steps it is tested, not proved (`profile` computes both). Record level: accountants get
`1 - SAMPLER_SHARE` of delta. The remaining share covers the sampler's error for D numbers in all with
D (1 + e^epsilon) <= delta 2^80: 10^12 numbers at epsilon 16 and delta 1e-5. Not guaranteed: anything that
is no event. The costs of other runs on the same records add up; this module does not know of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from fedproxy_secure.dp.discrete import DISTANCE
from fedproxy_secure.dp.events import DiscreteSum, Event, SampledGaussian
from fedproxy_secure.errors import ConfigError, DataError

SAMPLER_SHARE = 2.0**-20  # of delta, at the record level: for noise whose law is approximate
PRV_ERROR = 0.002  # relative error of epsilon; the upper bound counts
MOST_NOISE = 1e4  # noise multipliers above are refused: nothing could be learned
CALIBRATION = 1e-3  # relative precision of a noise multiplier
_MOST_TURNS = 200  # of a search for a fixed point; if there is one, a few turns find it
# integers, because the Skellam bound is proved for integers only
DISCRETE_ORDERS = np.unique(np.round(np.logspace(np.log10(2), 4, 200))).astype(int)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The cost of events at `delta`. `epsilon` is the tighter bound, `accountant` the one that gave it.

    `prv` is None if that accountant does not apply. Without noise epsilon is infinite.
    """

    epsilon: float
    delta: float
    accountant: Literal["prv", "rdp"]
    rdp: float
    prv: float | None


def spent(events: Sequence[Event], *, delta: float) -> Spent:
    """Return the cost of all events together; no events cost nothing.

    Raises `DataError` for a delta out of (0, 1) or events of two privacy units.
    """
    if not 0 < delta < 1:
        raise DataError(f"delta={delta}: must be in (0, 1)")
    if not events:
        return Spent(epsilon=0.0, delta=delta, accountant="rdp", rdp=0.0, prv=None)
    gaussian = [e for e in events if isinstance(e, SampledGaussian)]
    discrete = [e for e in events if isinstance(e, DiscreteSum)]
    if gaussian and discrete:
        raise DataError("privacy events: mix the units record and client; a ledger must hold only one")
    if discrete:
        bound = _discrete_epsilon(discrete, delta)
        return Spent(epsilon=bound, delta=delta, accountant="rdp", rdp=bound, prv=None)
    if min(e.noise_multiplier for e in gaussian) == 0:
        return Spent(epsilon=math.inf, delta=delta, accountant="rdp", rdp=math.inf, prv=None)
    history, accountant_delta = _merged(gaussian), delta * (1 - SAMPLER_SHARE)
    rdp = _at_least_zero(_rdp_epsilon(history, accountant_delta))
    prv = _prv_epsilon(history, accountant_delta, about=rdp)
    prv = None if prv is None else _at_least_zero(prv)
    if prv is not None and prv < rdp:
        return Spent(epsilon=prv, delta=delta, accountant="prv", rdp=rdp, prv=prv)
    return Spent(epsilon=rdp, delta=delta, accountant="rdp", rdp=rdp, prv=prv)


def _at_least_zero(bound: float) -> float:
    """Return a bound on epsilon, or 0 if it is negative.

    Accountants return negative bounds where delta alone covers the cost. NaN stays NaN: it bounds nothing.
    """
    return 0.0 if bound < 0 else bound


@lru_cache(maxsize=1024)
def noise_multiplier_for(*, target_epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the least noise multiplier, to a part in 1000, at which DP-SGD stays within `target_epsilon`.

    Raises `ConfigError` if no multiplier up to `MOST_NOISE` does.
    """

    def cost(noise: float) -> float:
        event = SampledGaussian(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
        return spent([event], delta=delta).epsilon

    high = 0.5
    while cost(high) > target_epsilon:
        high *= 2
        if high > MOST_NOISE:
            raise ConfigError(
                f"privacy.target_epsilon={target_epsilon}: {steps} steps at delta {delta:g} exceed it even "
                f"with a noise multiplier of {MOST_NOISE:g}; raise the target, or train fewer steps"
            )
    low = high / 2
    while cost(low) <= target_epsilon:  # less noise than .25 is enough
        low, high = low / 2, low
    while high / low > 1 + CALIBRATION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > target_epsilon else (low, middle)
    return high


def variance_for(
    *,
    target_epsilon: float,
    delta: float,
    mechanism: Literal["skellam", "discrete_gaussian"],
    l2: float,
    l1: float,
    dimension: int,
    summands: int,
    rounds: int,
) -> float:
    """Return the least variance of noise in a sum, to a part in 1000, for `target_epsilon` over all rounds.

    Raises `ConfigError` if noise of `MOST_NOISE` times the sensitivity is not enough.
    """

    def cost(noise: float) -> float:
        event = DiscreteSum(
            mechanism=mechanism,
            variance=(noise * l2) ** 2,
            l2=l2,
            l1=l1,
            dimension=dimension,
            summands=summands,
            rounds=rounds,
        )
        return spent([event], delta=delta).epsilon

    low, high = 1e-2, MOST_NOISE
    if cost(high) > target_epsilon:
        raise ConfigError(
            f"privacy.target_epsilon={target_epsilon}: {rounds} rounds at delta {delta:g} exceed it even "
            f"with noise of {MOST_NOISE:g} times the clip norm; raise the target, or run fewer rounds"
        )
    while high / low > 1 + CALIBRATION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > target_epsilon else (low, middle)
    return (high * l2) ** 2


def _merged(events: Sequence[SampledGaussian]) -> list[tuple[float, float, int]]:
    """Return (noise multiplier, sampling rate, steps) once per pair, as the order does not matter."""
    steps: dict[tuple[float, float], int] = {}
    for e in events:
        key = (e.noise_multiplier, e.sampling_rate)
        steps[key] = steps.get(key, 0) + e.steps
    return [(*key, n) for key, n in sorted(steps.items())]


def _rdp_epsilon(history: list[tuple[float, float, int]], delta: float) -> float:
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise ConfigError("privacy.unit=record: needs the extra `dp` (opacus)") from error

    accountant = RDPAccountant()
    accountant.history = history
    with (
        warnings.catch_warnings()
    ):  # it warns if the best order is the first or last: the bound is loose, but valid
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def _prv_epsilon(history: list[tuple[float, float, int]], delta: float, *, about: float) -> float | None:
    """Return the PRV bound, or None if very little noise would need too large a grid.

    `about`: another bound on epsilon, which determines the grid's width.
    """
    from opacus.accountants import PRVAccountant

    if min(noise for noise, _, _ in history) < 0.25:
        return None
    accountant = PRVAccountant()
    accountant.history = history
    error = min(max(PRV_ERROR * about, 1e-4), 0.01)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(accountant.get_epsilon(delta=delta, eps_error=error))
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        return None
    return value if math.isfinite(value) else None


def _discrete_epsilon(events: Sequence[DiscreteSum], delta: float) -> float:
    if any(e.variance == 0 and e.l2 > 0 for e in events):
        return math.inf
    least = sampler_delta(events, 0.0)
    if least >= delta:
        raise DataError(f"delta={delta}: must be above {least:.2g}, which the sampler's error takes")
    total = np.sum([e.rounds * discrete_rdp(e, DISCRETE_ORDERS) for e in events], axis=0)
    epsilon = 0.0
    for _ in range(_MOST_TURNS):  # each turn leaves less of delta and so needs a larger epsilon
        remaining = delta - sampler_delta(events, epsilon)
        if remaining <= 0:
            return math.inf
        needed = rdp_to_epsilon(DISCRETE_ORDERS, total, delta=remaining)
        if needed <= epsilon:
            return epsilon
        epsilon = needed * (1 + 1e-9)
    return math.inf


def sampler_delta(events: Sequence[DiscreteSum], epsilon: float) -> float:
    """Return the sampler's addition to delta: (1 + e^epsilon) rounds d n `DISTANCE`.

    The law of each drawn number is within `DISTANCE` of the exact one, in statistical distance. The n
    counted clients draw d numbers each in every round. So the law of all releases is within eta = rounds d
    n `DISTANCE` of that with exact noise, for any choices from round to round: a coupling of the two fails
    with at most that probability. Let exact noise be (epsilon, delta)-DP. For neighbours P, Q with the
    drawn noise, P', Q' with exact noise, and any event S,

        P(S) <= P'(S) + eta <= e^epsilon Q'(S) + delta + eta
             <= e^epsilon Q(S) + delta + (1 + e^epsilon) eta.
    """
    eta = sum(e.rounds * e.dimension * e.summands for e in events) * DISTANCE
    try:
        return (1 + math.exp(epsilon)) * eta
    except OverflowError:
        return math.inf


def discrete_rdp(event: DiscreteSum, orders: np.ndarray) -> np.ndarray:
    """Return the RDP of one noisy sum at integer orders, float64 [orders].

    Sums of n discrete Gaussians of parameter sigma >= 1/2 each, over vectors of d integers (Kairouz, Liu &
    Steinke 2021, Proposition 14; without a bound below 1/2): with tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2
    sigma^2 k / (k + 1)) the least of

        alpha l2^2 / (2 n sigma^2) + tau d
        alpha / 2 (l2^2 / (n sigma^2) + 2 tau l1 / (sqrt(n) sigma) + tau^2 d)
        alpha / 2 (l2 / (sqrt(n) sigma) + tau sqrt(d))^2
    """
    alpha = orders.astype(np.float64)
    l2, l1, mu = event.l2, event.l1, event.variance
    if l2 == 0:
        return np.zeros_like(alpha)
    gaussian = alpha * l2**2 / (2 * mu)
    if event.mechanism == "skellam":
        extra = np.minimum(((2 * alpha - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
        return np.asarray(gaussian + extra)
    n, client_variance, d = event.summands, mu / event.summands, event.dimension
    if n > 1 and client_variance < 0.25:
        return np.full_like(alpha, math.inf)
    k = np.arange(1, n)
    tau = 10 * float(np.exp(-2 * math.pi**2 * client_variance * k / (k + 1)).sum())
    second = alpha / 2 * (l2**2 / mu + 2 * tau * l1 / math.sqrt(mu) + tau**2 * d)
    third = alpha / 2 * (l2 / math.sqrt(mu) + tau * math.sqrt(d)) ** 2
    return np.minimum(np.minimum(gaussian + tau * d, second), third)


def rdp_to_epsilon(orders: np.ndarray, rdp: np.ndarray, *, delta: float) -> float:
    """Return the least epsilon over the orders (Canonne, Kamath & Steinke 2020, Proposition 12)."""
    alpha = orders.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        epsilon = rdp + np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    return max(0.0, float(np.nanmin(epsilon)))
