"""A8: does training keep the epsilon that it claims? One run, many canaries.

A fair coin decides for each of m canaries whether it is put into the data. The adversary sees only what was
released, and guesses for some canaries whether they were in. Under (epsilon, delta)-DP a guess is right
with probability at most `e^epsilon / (1 + e^epsilon)`, nearly independently of the others. Many right
guesses therefore speak against a small epsilon.

    p(epsilon) = P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i,  B ~ Bin(r, 1 / (1 + e^-epsilon))

with r guesses, v of them right. The lower bound is the largest epsilon with p < alpha.

Guarantees: for a mechanism that is (epsilon, delta)-DP and canaries put in by independent fair coins, the
lower bound exceeds epsilon with probability at most alpha. The number of guesses must be fixed before the
scores are seen; several numbers of guesses share alpha. Not guaranteed: that a small bound means privacy.
Even perfect guesses cannot show more than `ceiling`.

After Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binom

from fedproxy_secure.errors import DataError

ALPHA = 0.05
_MOST_EPSILON = 60.0
Verdict = Literal["FAIL", "NOT_FALSIFIED"]


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The lower bound on epsilon beside the claim; `ceiling` is what perfect guesses would have shown."""

    canaries: int
    guesses: int
    correct: int
    lower_bound: float
    ceiling: float
    claimed_epsilon: float
    delta: float
    alpha: float
    verdict: Verdict

    def summary(self) -> str:
        """Return the audit's result in one line."""
        verdict = "FAILS the claim of" if self.verdict == "FAIL" else "does not falsify"
        return (
            f"{self.correct} of {self.guesses} guesses right over {self.canaries} canaries: epsilon >= "
            f"{self.lower_bound:.3g} (confidence {1 - self.alpha:g}; at most {self.ceiling:.3g} could be "
            f"shown), which {verdict} {self.claimed_epsilon:.3g}"
        )


def p_value(epsilon: float, *, canaries: int, guesses: int, correct: int, delta: float) -> float:
    """Return the probability of at least this many right guesses under (epsilon, delta)-DP, in [0, 1].

    Raises `DataError` unless 0 <= correct <= guesses <= canaries, delta in [0, 1) and epsilon >= 0.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise DataError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: must be "
            "0 <= correct <= guesses <= canaries"
        )
    if not 0 <= delta < 1:
        raise DataError(f"delta={delta}: must be in [0, 1)")
    if not epsilon >= 0:
        raise DataError(f"epsilon={epsilon}: must be >= 0")
    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, q))
    if delta == 0 or correct == 0:
        return min(tail, 1.0)
    i = np.arange(1, correct + 1)
    between = binom.sf(correct - i - 1, guesses, q) - tail
    return min(tail + 2 * canaries * delta * float((between / i).max()), 1.0)


def lower_bound(*, canaries: int, guesses: int, correct: int, delta: float, alpha: float = ALPHA) -> float:
    """Return the largest epsilon that these guesses reject at level `alpha`, to 1e-6; 0 if none is."""
    if not 0 < alpha < 1:
        raise DataError(f"alpha={alpha}: must be in (0, 1)")

    def rejected(epsilon: float) -> bool:
        p = p_value(epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta)
        return p < alpha

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high):
        low, high = high, 2 * high
        if high > _MOST_EPSILON:
            return low
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def ceiling(*, canaries: int, guesses: int, delta: float, alpha: float = ALPHA) -> float:
    """Return what the lower bound would be if every guess were right."""
    return lower_bound(canaries=canaries, guesses=guesses, correct=guesses, delta=delta, alpha=alpha)


def audit(
    scores: np.ndarray,
    included: np.ndarray,
    *,
    guesses: int | Sequence[int],
    delta: float,
    claimed_epsilon: float,
    alpha: float = ALPHA,
) -> AuditResult:
    """Return the audit of scores against the coins.

    It guesses that the `guesses / 2` canaries with the highest scores were in, and that as many with the
    lowest scores were out.

    Args:
        scores: float [m], higher for canaries that seem to have been in.
        included: bool [m], the coins; read for scoring only.
        guesses: even numbers, fixed beforehand. Several numbers share alpha (Bonferroni), and the largest
            bound counts.
        delta: delta of the claim.
        claimed_epsilon: epsilon of the claim.
        alpha: chance that the bound exceeds the true epsilon, at most.

    Raises `DataError` for scores that are not finite, shapes that differ, or numbers out of range.
    """
    numbers = [guesses] if isinstance(guesses, int) else list(guesses)
    m = len(scores)
    if scores.shape != (m,) or included.shape != (m,) or included.dtype != np.bool_:
        raise DataError(f"scores {scores.shape}, included {included.shape}: must be [m] and bool [m]")
    if not np.isfinite(scores).all():
        raise DataError("scores: hold NaN or infinity; must be finite")
    if not numbers or any(n < 2 or n % 2 or n > m for n in numbers):
        raise DataError(f"guesses={numbers}: must be even, from 2 to {m}")
    if not claimed_epsilon >= 0:
        raise DataError(f"claimed_epsilon={claimed_epsilon}: must be >= 0")
    order = np.argsort(scores, kind="stable")
    level = alpha / len(numbers)
    best: AuditResult | None = None
    for number in numbers:
        half = number // 2
        correct = int(included[order[m - half :]].sum() + (~included[order[:half]]).sum())
        bound = lower_bound(canaries=m, guesses=number, correct=correct, delta=delta, alpha=level)
        if best is None or bound > best.lower_bound:
            best = AuditResult(
                canaries=m,
                guesses=number,
                correct=correct,
                lower_bound=bound,
                ceiling=ceiling(canaries=m, guesses=number, delta=delta, alpha=level),
                claimed_epsilon=claimed_epsilon,
                delta=delta,
                alpha=alpha,
                verdict="FAIL" if bound > claimed_epsilon else "NOT_FALSIFIED",
            )
    assert best is not None
    return best
