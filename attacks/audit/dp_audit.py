"""A lower bound on epsilon from guesses in one run, valid for any (epsilon, delta)-DP mechanism.

A fair coin decides for each of m canaries whether it is put into the data. The adversary sees only what was
released, and guesses for some canaries whether they were in. Under (epsilon, delta)-DP a guess is right
with probability at most `e^epsilon / (1 + e^epsilon)`, nearly independently of the others. Many right
guesses therefore speak against a small epsilon.

    p(epsilon) = P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i,  B ~ Bin(r, 1 / (1 + e^-epsilon))

with r guesses, v of them right. The lower bound is the largest epsilon with p < alpha.

Guarantees: for a mechanism that is (epsilon, delta)-DP and canaries put in by independent fair coins, the
lower bound exceeds epsilon with probability at most alpha. The number of guesses must be fixed before the
scores are seen. Not guaranteed: that a small bound means privacy. Even perfect guesses show a limited
epsilon, and for a mechanism like DP-SGD the bound stays far below its epsilon: `curve_audit` uses more
knowledge of the mechanism and shows more.

After Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom

from fedproxy_secure.errors import DataError

ALPHA = 0.05
_MOST_EPSILON = 60.0


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
