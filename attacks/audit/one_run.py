"""How many right guesses about canaries, from one run, refute a privacy profile.

A fair coin decides for each of m canaries whether it is put into the data. The adversary sees what was
released and makes r guesses, for canaries of its choice: for each, "in" or "out". C of them are right.

Claim. Let the mechanism have a profile with trade-off g (`fedproxy_secure.dp.profile`): for each canary,
whatever the other coins are, P1(S) <= g(P0(S)) for all events S, where P1 and P0 are its laws with the
canary in and out; where "out" is guessed too, also P0(S) <= g(P1(S)). g is concave and grows. Then for
c = 1 .. r

    E[C; C >= c] <= m g(E[r - C; C >= c - 1] / m)               guesses of both kinds
    E[C; C >= c] <= m / 2 g(2 E[r - C; C >= c - 1] / m)         guesses "in" alone

Proof. Fix a canary and all other coins. Let S be the outputs for which its guess is "in" and at least
c - 1 guesses about others are right. If it is in, S means: it is guessed rightly and C >= c. If it is out,
S means: it is guessed wrongly and C >= c - 1. So P[right, C >= c, in] = P1(S) / 2 <= g(P0(S)) / 2 =
g(2 P[wrong, C >= c - 1, out]) / 2. The same holds for "out". Adding both kinds, averaging over the other
coins and over the m canaries only moves averages into the concave g. Summed over canaries,
P[right, C >= c] gives E[C; C >= c], and P[wrong, C >= c - 1] gives E[r - C; C >= c - 1].

These inequalities limit P[C >= v]. Let q_c = P[C >= c] and z_c = E[C - c + 1; C >= c], and write x_c =
E[C; C >= c] = z_c + (c - 1) q_c. With h(x) = m g^-1(x / m), or m / 2 g^-1(2 x / m), the inequality says
E[r - C; C >= c] + (r - c + 1) P[C = c - 1] >= h(x_c), and this is

    q_{c-1} >= (z_c + h(x_c)) / (r - c + 1),     and always    q_{c-1} >= q_c,   z_{c-1} = z_c + q_{c-1}.

All of it grows with q_c and z_c, and z_v >= q_v. So, from q_v = z_v = alpha downwards with equality, one
gets numbers below those of every law with P[C >= v] >= alpha. If q_0 comes out above 1, there is no such
law.

Guarantees: if `refutes` is true, then P[C >= correct] < alpha for every mechanism with the profile, however
guesses depend on one another and on the output, as long as their number was fixed before it was seen.
Nothing is assumed about independence between canaries. Not guaranteed: that many right guesses refute: a
mechanism may leak about all canaries at once, seldom, and the bound allows for it.

After Mahloujifar, Melis & Chaudhuri 2025 (arXiv 2410.22235), derived again for guesses of one kind; on
guessing a part and abstaining for the rest see Keinan, Shenfeld & Ligett 2025 (arXiv 2503.07199).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedproxy_secure.dp.profile import PrivacyProfile
from fedproxy_secure.errors import DataError

_MOST_EPSILON = 300.0


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """The guesses: `count` canaries, those that seem most surely in, or with `both` half of them out.

    They must be fixed before the scores are seen.
    """

    count: int
    both: bool

    def correct(self, scores: np.ndarray, included: np.ndarray) -> int:
        """Return how many of the guesses are right.

        Args:
            scores: float [m], higher for canaries that seem to have been in; finite.
            included: bool [m], the coins.

        Raises `DataError` for shapes that differ, scores that are not finite, or a count that does not fit.
        """
        m = len(scores)
        if scores.shape != (m,) or included.shape != (m,) or included.dtype != np.bool_:
            raise DataError(f"scores {scores.shape}, included {included.shape}: must be [m] and bool [m]")
        if not np.isfinite(scores).all():
            raise DataError("scores: hold NaN or infinity; must be finite")
        if not 1 <= self.count <= m or (self.both and self.count % 2):
            raise DataError(f"guesses={self.count}: must be in [1, {m}], and even if of both kinds")
        order = np.argsort(scores, kind="stable")
        top = self.count // 2 if self.both else self.count
        right = int(included[order[m - top :]].sum())
        return right + int((~included[order[:top]]).sum()) if self.both else right


def refutes(
    profile: PrivacyProfile, *, canaries: int, guesses: Guesses, correct: int, alpha: float
) -> bool:
    """Return whether `correct` or more right guesses have a probability below alpha under the profile.

    Args:
        profile: of the direction "in against out"; of both directions if guesses are of both kinds.

    Raises `DataError` unless 0 <= correct <= guesses <= canaries and alpha is in (0, 1).
    """
    if not 0 <= correct <= guesses.count <= canaries:
        raise DataError(
            f"correct={correct}, guesses={guesses.count}, canaries={canaries}: must be "
            "0 <= correct <= guesses <= canaries"
        )
    if not 0 < alpha < 1:
        raise DataError(f"alpha={alpha}: must be in (0, 1)")
    return _least_total(_Inverse(profile), canaries, guesses, correct, alpha) > 1


def _least_total(inverse: _Inverse, canaries: int, guesses: Guesses, correct: int, alpha: float) -> float:
    """Return the least P[C >= 0] given P[C >= correct] = alpha; it is above 1 if there is no law."""
    parts = float(canaries if guesses.both else canaries / 2)
    r = guesses.count
    q = z = alpha
    for c in range(correct, 0, -1):
        share = (z + (c - 1) * q) / parts
        if share > 1:
            return math.inf
        q = max(q, (z + parts * inverse(share)) / (r - c + 1))
        if q > 1:
            return q
        z += q
    return q


class _Inverse:
    """The least x with g(x) >= y, for g the minimum of the lines delta + e^epsilon x.

    It is the maximum of the lines e^-epsilon (y - delta) and of zero: convex, kept as its upper envelope.
    Lines that float64 cannot hold are left out, which makes g larger and refutes less.
    """

    def __init__(self, profile: PrivacyProfile) -> None:
        held = np.abs(profile.epsilons) < _MOST_EPSILON
        slopes = np.exp(-profile.epsilons[held])[::-1]
        offsets = -slopes * profile.deltas[held][::-1]
        envelope = [(0.0, 0.0)]  # (slope, offset), slopes ascending
        for line in zip(slopes.tolist(), offsets.tolist(), strict=True):
            while len(envelope) > 1 and _crossing(envelope[-1], line) <= _crossing(*envelope[-2:]):
                envelope.pop()
            envelope.append(line)
        self._lines = envelope
        self._ends = [_crossing(a, b) for a, b in pairwise(envelope)]

    def __call__(self, y: float) -> float:
        slope, offset = self._lines[bisect_left(self._ends, y)]
        return max(slope * y + offset, 0.0)


def _crossing(flat: tuple[float, float], steep: tuple[float, float]) -> float:
    """Return the y from which on the steeper line is above."""
    if steep[0] == flat[0]:
        return -math.inf if steep[1] >= flat[1] else math.inf
    return (flat[1] - steep[1]) / (steep[0] - flat[0])
