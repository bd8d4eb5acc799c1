"""Privacy profiles: the least delta at every epsilon, for one-run audits and as a second accountant.

A mechanism's *profile* at epsilon (any real number) is the least delta with P(S) <= e^epsilon Q(S) + delta
for all events S, where P is its law with a record and Q without it, or the other way round. A profile
states more than one pair (epsilon, delta): all pairs together are the trade-off function of f-DP (Dong,
Roth & Su 2022), as P(S) <= g(Q(S)) with g(x) = min over epsilon of delta(epsilon) + e^epsilon x.

Guarantees: every profile here lies on or above the mechanism's own, and so does a g made of finitely many
epsilons. `dp_sgd` rounds privacy losses up, and adds the mass that it cuts off and the rounding of its FFT
to delta. Unlike Opacus's PRV accountant it covers both directions, "present against absent" and the
reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import log_ndtr, ndtr

from fedproxy_secure.dp.accounting import DISCRETE_ORDERS, discrete_rdp
from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian
from fedproxy_secure.errors import DataError

POINTS = 801  # epsilons of a profile that has one at every epsilon
CUT = 1e-12  # mass of losses that counts as infinite, in one step and in all steps
FFT_ERROR = 1e-9  # more than the sum of all rounding errors of a transform of `MOST_CELLS` numbers
MOST_CELLS = 2**19
SMALL = 1e-8  # at this delta a profile may end
LOSS_ERROR = 0.01  # the most that rounding up in all steps adds to a loss, if the cells allow


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivacyProfile:
    """Upper bounds `deltas` at `epsilons`, float64 [k], which are ascending and may be negative."""

    epsilons: np.ndarray
    deltas: np.ndarray

    def epsilon(self, delta: float) -> float:
        """Return the least epsilon >= 0 with at most this delta; between listed epsilons, by their chord.

        Delta is convex in e^epsilon, not in epsilon, so a chord in epsilon may lie below it: between listed
        epsilons the result may be too small, by less than their distance. `most` has no such error. It is
        infinite if no listed epsilon has a delta as small.
        """
        fits = np.flatnonzero((self.deltas <= delta) & (self.epsilons >= 0))
        if not len(fits):
            return math.inf
        at = int(fits[0])
        if at == 0 or self.epsilons[at] == 0:
            return float(self.epsilons[at])
        right, left = self.deltas[at], self.deltas[at - 1]
        share = (left - delta) / (left - right)
        return max(0.0, float(self.epsilons[at - 1] + share * (self.epsilons[at] - self.epsilons[at - 1])))

    def most(self, share: np.ndarray) -> np.ndarray:
        """Return g(share): the largest probability under P of an event with probability `share` under Q."""
        lines = self.deltas + np.exp(self.epsilons) * np.asarray(share)[..., None]
        return np.asarray(np.minimum(lines.min(axis=-1), 1.0))


def gaussian(mu: float) -> PrivacyProfile:
    """Return the profile of N(mu, 1) against N(0, 1), mu > 0 (Balle & Wang 2018, Theorem 8)."""
    reach = mu * mu / 2 + 8 * mu
    epsilons = np.linspace(-reach, reach, POINTS)
    deltas = ndtr(mu / 2 - epsilons / mu) - np.exp(epsilons + log_ndtr(-mu / 2 - epsilons / mu))
    return PrivacyProfile(epsilons=epsilons, deltas=np.clip(deltas, 0, 1))


@lru_cache(maxsize=256)
def dp_sgd(event: SampledGaussian, *, both: bool) -> PrivacyProfile:
    """Return the profile of DP-SGD: a record present against absent, or with `both` both directions.

    One step is the mixture of N(1, s^2), with the sampling rate as weight, and N(0, s^2), against
    N(0, s^2). No other pair of neighbours of a clip of 1 is further apart, in either direction (Zhu, Dong &
    Wang 2022). Raises `DataError` without noise.
    """
    if event.noise_multiplier <= 0:
        raise DataError("noise_multiplier=0: has no profile; must be > 0")
    if event.sampling_rate == 1:
        return gaussian(math.sqrt(event.steps) / event.noise_multiplier)
    parts = [_composed(event, present=present) for present in ((True, False) if both else (True,))]
    first = parts[0]
    small = first.epsilons[(first.deltas <= SMALL) & (first.epsilons > 0)]
    reach = float(small[0]) if len(small) else float(first.epsilons[-1])
    epsilons = np.linspace(-reach, reach, POINTS)
    deltas = np.max([_interpolated(p, epsilons) for p in parts], axis=0)
    return PrivacyProfile(epsilons=epsilons, deltas=deltas)


@lru_cache(maxsize=256)
def discrete_sum(event: DiscreteSum) -> PrivacyProfile:
    """Return the profile that follows from the Renyi bounds of a noisy sum over clients.

    At epsilon >= 0 it is Canonne, Kamath & Steinke 2020, Proposition 12, solved for delta; the bounds hold
    in both directions, so that the same statement about complements gives -epsilon. Raises `DataError`
    without noise.
    """
    if event.variance <= 0:
        raise DataError("variance=0: has no profile; must be > 0")
    orders = DISCRETE_ORDERS.astype(np.float64)
    rdp = event.rounds * discrete_rdp(event, DISCRETE_ORDERS)
    mu = math.sqrt(event.rounds / event.variance) * event.l2  # of a Gaussian of that size
    positive = np.linspace(0, mu * mu / 2 + 8 * mu, POINTS // 2 + 1)
    logs = (orders - 1) * (rdp - positive[:, None] + np.log1p(-1 / orders)) - np.log(orders)
    deltas = np.exp(np.minimum(logs.min(axis=1), 0.0))
    return PrivacyProfile(
        epsilons=np.concatenate([-positive[:0:-1], positive]),
        deltas=np.concatenate([(1 - np.exp(-positive) * (1 - deltas))[:0:-1], deltas]),
    )


def _composed(event: SampledGaussian, *, present: bool) -> PrivacyProfile:
    """Return the profile of all steps for one direction, by FFT over a grid of privacy losses."""
    below = _loss_law(event, present=present)
    least, most = _ends(below)
    width = max(LOSS_ERROR / event.steps, (most - least) / (MOST_CELLS / 8))
    while True:
        first = math.floor(least / width)
        cells = np.arange(first, math.ceil(most / width) + 1)
        reached = below(cells * width)
        masses = np.diff(reached, prepend=0.0)
        infinite = max(0.0, 1 - float(reached[-1]))
        low, high = _reach(cells * width, masses, event.steps)
        size = int((high - low) / width) + 2
        if size <= MOST_CELLS:
            break
        width *= size / MOST_CELLS * 1.01
    size = next_fast_len(max(size, len(cells)), real=True)
    summed = irfft(rfft(masses, size) ** event.steps, size)
    losses = first * event.steps + np.arange(size)  # what is beyond the end has wrapped around to the start
    start = math.floor(low / width)
    wraps = np.ceil((start - losses) / size)
    losses = (losses + wraps * size) * width
    order = np.argsort(losses)
    losses, summed = losses[order], np.clip(summed[order], 0.0, None)
    # delta at a loss of the grid is the sum over larger ones of p (1 - e^(epsilon - loss))
    tail = np.append(np.cumsum(summed[::-1])[::-1][1:], 0.0)
    deltas = np.clip(tail - _decayed_tail(summed, math.exp(-width)), 0, 1)
    cut_mass = event.steps * infinite + 2 * CUT + FFT_ERROR
    keep = slice(None, None, max(1, size // (64 * POINTS)))
    return PrivacyProfile(epsilons=losses[keep], deltas=np.minimum(deltas[keep] + cut_mass, 1.0))


def _decayed_tail(masses: np.ndarray, decay: float) -> np.ndarray:
    """Return sum over j > i of masses[j] decay^(j - i), for every i."""
    from scipy.signal import lfilter  # takes long to import, and most runs need no profile

    reversed_sums = lfilter([0.0, decay], [1.0, -decay], masses[::-1])
    return np.asarray(reversed_sums)[::-1]


def _loss_law(event: SampledGaussian, *, present: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return the distribution function of one step's privacy loss.

    The loss at x is log(1 - q + q e^((x - 1/2) / s^2)) under the mixture, or minus that under N(0, s^2).
    """
    s, q = event.noise_multiplier, event.sampling_rate

    def place(loss: np.ndarray) -> np.ndarray:
        """Return the x at which the loss is reached; minus infinity if it is never as small."""
        inner = (np.expm1(loss) + q) / q
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(inner > 0, 0.5 + s * s * np.log(np.maximum(inner, 1e-300)), -np.inf)

    def mixture(loss: np.ndarray) -> np.ndarray:
        x = place(loss)
        return np.asarray(q * ndtr((x - 1) / s) + (1 - q) * ndtr(x / s))

    def null(loss: np.ndarray) -> np.ndarray:
        return np.asarray(ndtr(-place(-loss) / s))

    return mixture if present else null


def _ends(below: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Return losses that at most `CUT` / 1000 of the mass lies below and above."""

    def outside(sign: float, reach: float) -> float:
        mass = float(below(np.array([sign * reach]))[0])
        return 1 - mass if sign > 0 else mass

    ends = []
    for sign in (-1.0, 1.0):
        near, far = 0.0, 1.0
        while outside(sign, far) > CUT / 1000 and far < 2**20:
            near, far = far, 2 * far
        for _ in range(50):
            middle = (near + far) / 2
            near, far = (middle, far) if outside(sign, middle) > CUT / 1000 else (near, middle)
        ends.append(sign * far)
    return ends[0], ends[1]


def _reach(losses: np.ndarray, masses: np.ndarray, steps: int) -> tuple[float, float]:
    """Return ends of the sum of `steps` losses, each passed with probability `CUT` at most (Chernoff)."""
    logs = np.log(np.maximum(masses, 1e-300))
    ends = []
    for sign in (-1.0, 1.0):
        best = math.inf
        for rate in np.logspace(-2, 3, 40):
            terms = logs + sign * rate * losses
            top = float(terms.max())
            moment = top + math.log(float(np.exp(terms - top).sum()))
            best = min(best, (steps * moment - math.log(CUT)) / rate)
        ends.append(sign * best)
    return ends[0], ends[1]


def _interpolated(profile: PrivacyProfile, epsilons: np.ndarray) -> np.ndarray:
    """Return deltas at other epsilons, from above.

    Delta falls as epsilon grows, and is convex in e^epsilon: below the first epsilon it lies under the
    chord from there to delta 1 at e^epsilon = 0.
    """
    at = np.searchsorted(profile.epsilons, epsilons, side="right") - 1
    chord = 1 - np.exp(np.minimum(epsilons - profile.epsilons[0], 0.0)) * (1 - profile.deltas[0])
    return np.where(at >= 0, profile.deltas[np.maximum(at, 0)], chord)
