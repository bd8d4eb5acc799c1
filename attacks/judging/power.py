"""Power: the smallest true value that an attack's number would have shown.

A headline counts as success where its 95 % interval lies above a bar. How far above the bar the truth must
be for that depends on how many targets were judged. The power of a number is the smallest true value whose
interval lies above the bar with probability .8, by the way the number was made:

    AUC      the interval is DeLong's on the logit scale; the spread at a true AUC is that of Hanley and
             McNeil (1982), which fits scores of about normal and of exponential shape
    share    Wilson's interval of a binomial count: exact
    rate     TPR at a fixed false-positive rate; some targets stand out, all others look like negatives
    mean     Student's t over targets with the spread of those that were seen: noncentral t
    other    above the bar by 1.43 times what its own interval reaches below the value

Not guaranteed: that the truth is of the assumed shape. Simulations in the tests find the probability within
.08 of .8 for 20 targets of each kind or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scipy.stats import beta, binom, nct, norm, t

from fedproxy_secure.evidence.detectable import PROBABILITY, Detectable
from fedproxy_secure.evidence.estimate import CONFIDENCE, Estimate, proportion_interval

_TAIL = (1 + CONFIDENCE) / 2
_Z, _Z_POWER = float(norm.ppf(_TAIL)), float(norm.ppf(PROBABILITY))
_STEPS = 400  # of the grid on which the smallest visible AUC is searched
_SMALLEST_GAP = 1e-9  # from the bar to a value above it


class Power(Protocol):
    """How far above a bar the truth must be to be seen, for a number made in one way."""

    @property
    def how(self) -> str:
        """What the power is computed from, in words."""

    def smallest(self, bar: float) -> float | None:
        """Return the smallest true value that is seen with probability .8; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class AucPower:
    """The power of an AUC of `positives` and `negatives`; `inflation` as in `auc_estimate`."""

    positives: int
    negatives: int
    inflation: float = 1.0

    @property
    def how(self) -> str:
        """The numbers of targets that were there and that were not."""
        return f"{self.positives} there, {self.negatives} not"

    def smallest(self, bar: float) -> float | None:
        """Return the smallest AUC, in (bar, 1]; None also for a bar outside (0, 1)."""
        if not 0 < bar < 1:
            return None

        def margin(auc: float) -> float:
            return _logit(auc) - _logit(bar) - (_Z + _Z_POWER) * self._spread(auc) / (auc * (1 - auc))

        grid = [bar + (1 - bar) * i / _STEPS for i in range(1, _STEPS)]
        first = next((i for i, auc in enumerate(grid) if margin(auc) >= 0), None)
        if first is not None:
            return _crossing(margin, grid[first - 1] if first else bar + _SMALLEST_GAP, grid[first])
        perfect = 1 - 3 * self.inflation**2 / min(self.positives, self.negatives)
        return 1.0 if perfect > bar else None

    def _spread(self, auc: float) -> float:
        """Return the standard error of an AUC by Hanley and McNeil."""
        q1, q2 = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
        pairs = self.positives * self.negatives
        variance = auc * (1 - auc) + (self.positives - 1) * q1 + (self.negatives - 1) * q2
        return self.inflation * math.sqrt(variance / pairs)


@dataclass(frozen=True, kw_only=True)
class SharePower:
    """The smallest share of `n` targets whose Wilson interval lies above a bar.

    `of`: what is counted, in words; groups of targets if those of a group are found or missed together.
    """

    n: int
    of: str = "targets"

    @property
    def how(self) -> str:
        """The number of what is counted."""
        return f"{self.n} {self.of}"

    def smallest(self, bar: float) -> float | None:
        """Return the smallest share, in (bar, 1]."""
        return _above(_fewest_hits(self.n, bar), self.n, bar)


@dataclass(frozen=True, kw_only=True)
class RatePower:
    """The power of a true-positive rate at a fixed false-positive `rate` (`tpr_estimates`).

    The low end of its interval is taken at a stricter threshold, the 2.5 % quantile of the number of
    negatives that pass. If that number is 0, as with fewer than 368 negatives at a rate of 1 %, no rate is
    ever seen.
    """

    positives: int
    negatives: int
    rate: float

    @property
    def how(self) -> str:
        """The numbers of targets that were there and that were not."""
        return f"{self.positives} there, {self.negatives} not"

    def smallest(self, bar: float) -> float | None:
        """Return the smallest true-positive rate, in (bar, 1]."""
        passed = int(binom.ppf(1 - _TAIL, self.negatives, self.rate))
        if passed == 0:
            return None
        strict = passed / (self.negatives + 1)
        hits = _above(_fewest_hits(self.positives, bar), self.positives, 0.0)
        if hits is None:
            return None
        outright = max(0.0, (hits - strict) / (1 - strict))  # the share that stands out
        return max(outright + (1 - outright) * self.rate, bar + _SMALLEST_GAP)


@dataclass(frozen=True, kw_only=True)
class MeanPower:
    """The power of a mean over `n` targets with the standard deviation `spread`, and at most `most`."""

    n: int
    spread: float
    most: float = math.inf

    @property
    def how(self) -> str:
        """Describe in words what the power follows from: the number of targets and how much they differ."""
        return f"{self.n} targets that spread by {self.spread:.3g}"

    def smallest(self, bar: float) -> float | None:
        """Return the smallest mean, in (bar, most]."""
        if self.n < 2 or self.spread == 0:  # equal targets do not show their spread
            return None
        needed = float(t.ppf(_TAIL, self.n - 1))

        def margin(shift: float) -> float:
            return float(nct.sf(needed, self.n - 1, shift)) - PROBABILITY

        most = 2.0
        while margin(most) < 0:
            most *= 2
        value = bar + _crossing(margin, 0.0, most) * self.spread / math.sqrt(self.n)
        return value if value <= self.most else None


@dataclass(frozen=True, kw_only=True)
class IntervalPower:
    """The power of a number of which only the interval is known; its width is assumed to be constant."""

    estimate: Estimate

    @property
    def how(self) -> str:
        """The text that only the interval is known."""
        return "the width of its interval"

    def smallest(self, bar: float) -> float | None:
        """Return the smallest value above the bar; None also if the interval has no width."""
        e = self.estimate
        if e.low is None or e.high is None or e.low == e.high:
            return None
        share = e.unit in ("AUC", "share")
        below = e.value - e.low if e.value > e.low else e.high - e.value
        value = bar + (1 + _Z_POWER / _Z) * below
        return None if share and value > 1 else value


def could_show(estimate: Estimate, bar: float, power: Power | None) -> Detectable | None:
    """Return the smallest effect that an estimate could have shown; None if that is not known.

    Args:
        estimate: the estimate.
        bar: the value that its interval must lie above.
        power: its power; None: computed from the width of its interval.
    """
    if power is None:
        power = IntervalPower(estimate=estimate)
        if power.smallest(bar) is None:
            return None
    return Detectable(
        metric=estimate.metric,
        unit=estimate.unit,
        bar=bar,
        smallest=power.smallest(bar),
        how=power.how,
    )


def _fewest_hits(n: int, bar: float) -> int | None:
    """Return the fewest hits of n whose Wilson interval lies above the bar; None if not even n do."""

    def low(hits: int) -> float:
        return proportion_interval(hits, n, metric="share", seeds=(0,)).low or 0.0

    if low(n) <= bar:
        return None
    least, most = 0, n
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if low(middle) > bar else (middle + 1, most)
    return least


def _above(hits: int | None, n: int, bar: float) -> float | None:
    """Return the share with which `hits` of n or more come with probability .8; at least the bar."""
    if hits is None:
        return None
    if hits == 0:
        return bar + _SMALLEST_GAP
    return max(float(beta.ppf(PROBABILITY, hits, n - hits + 1)), bar + _SMALLEST_GAP)


def _crossing(margin: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function becomes 0, to one part in a million of the bracket."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if margin(middle) >= 0 else (middle, high)
    return high


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
