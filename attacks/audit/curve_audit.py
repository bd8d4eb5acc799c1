"""Bound epsilon from below by guesses in one run, for a mechanism that is known up to its noise.

The claim under test is a whole privacy profile, not one (epsilon, delta): "this mechanism, with at least
this much noise". The bound asks which amounts of noise the guesses rule out: it tries the same mechanism
with different amounts of noise, applies `one_run` to each, and takes the least amount that is refuted. The
epsilon of that profile, at the claim's delta, is the lower bound.

Guarantees: for any mechanism, let n be the most noise with which the family's profile lies nowhere below
the mechanism's. With probability at least 1 - alpha no noise up to n is refuted, and so the bound is at
most the epsilon that the family's profile gives noise n. For A8 that is the mechanism's own epsilon, up to
the profile's grid, if it is one of the family, as the code claims to be. A9's profile comes from Rényi
bounds and lies above the mechanism's own: at delta 1e-5 it says 8 where a Gaussian's is 7.43. If the claim
is true, the verdict is FAIL with probability at most alpha. No independence between canaries is assumed.
`without_curve` uses nothing but (epsilon, delta)-DP (`dp_audit`), so it bounds the epsilon of any
mechanism, with an error probability alpha of its own.

Not guaranteed: what `lower_bound` says of a mechanism outside the family is about the noise of the family
that covers it, not about its epsilon at this delta. A small bound does not mean privacy: `ceiling` is what
perfect guesses would have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from attacks.audit.dp_audit import ALPHA, lower_bound
from attacks.audit.one_run import Guesses, refutes
from fedproxy_secure.dp.guarantees import rounded_down
from fedproxy_secure.dp.profile import PrivacyProfile
from fedproxy_secure.errors import DataError

FINEST = 2 ** (1 / 32)  # ratio between amounts of noise that are tried
MOST_STEPS = 224  # steps of that ratio, up and down from the claim
SHARES = (0.5, 0.25, 0.1, 0.05, 0.02)  # possible numbers of guesses, as shares of the canaries
REHEARSALS = 6
PARTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the claimed noise, tried by `found_share`


@dataclass(frozen=True, kw_only=True)
class Family:
    """A mechanism with any amount of noise, as a multiple of the claimed noise.

    Args:
        profile: the mechanism's profile at this multiple of the claimed noise; of both directions if the
            second argument is true, else of the direction "in against out".
        delta: delta of the claim.
        canaries: number of canaries that have scores.
        scores: scores of a run at this multiple of the claimed noise, as an outsider would imitate it,
            float [m], and the coins, bool [m]. Used for planning only.
    """

    profile: Callable[[float, bool], PrivacyProfile]
    delta: float
    canaries: int
    scores: Callable[[float, np.random.Generator], tuple[np.ndarray, np.ndarray]]

    def epsilon(self, part: float) -> float:
        """Return the epsilon, at `delta`, of the mechanism with `part` times the claimed noise."""
        return self.profile(part, False).epsilon(self.delta)


@dataclass(frozen=True, kw_only=True)
class CurveAudit:
    """The lower bound on epsilon and the claim; the module says what each number bounds.

    `fails_at`: the largest share of the claimed noise with which the audit would fail (`found_share`).
    """

    canaries: int
    guesses: Guesses
    correct: int
    lower_bound: float
    ceiling: float
    without_curve: float
    claimed_epsilon: float
    delta: float
    alpha: float
    verdict: Literal["FAIL", "NOT_FALSIFIED"]
    fails_at: float | None = None

    def summary(self) -> str:
        """Return the audit's result in one line."""
        verdict = "REFUTES the claim of" if self.verdict == "FAIL" else "does not refute the claim of"
        return (
            f"{self.correct} of {self.guesses.count} guesses right over {self.canaries} canaries: epsilon "
            f">= {rounded_down(self.lower_bound, digits=3)} by the mechanism's own curve, "
            f">= {rounded_down(self.without_curve, digits=3)} by any "
            f"(confidence {1 - self.alpha:g} each; at most {self.ceiling:.3g} could be shown), which "
            f"{verdict} {self.claimed_epsilon:.3g}"
        )


def audit(
    family: Family,
    scores: np.ndarray,
    included: np.ndarray,
    *,
    guesses: Guesses,
    claimed_epsilon: float,
    alpha: float = ALPHA,
    fails_at: float | None = None,
) -> CurveAudit:
    """Return the audit of scores, float [m], against the coins, bool [m].

    Raises `DataError` for scores that do not fit or numbers out of range.
    """
    if not claimed_epsilon >= 0:
        raise DataError(f"claimed_epsilon={claimed_epsilon}: must be >= 0")
    correct, m = guesses.correct(scores, included), len(scores)
    bound = shown(family, guesses=guesses, canaries=m, correct=correct, alpha=alpha)
    return CurveAudit(
        canaries=m,
        guesses=guesses,
        correct=correct,
        lower_bound=bound,
        ceiling=shown(family, guesses=guesses, canaries=m, correct=guesses.count, alpha=alpha),
        without_curve=lower_bound(
            canaries=m, guesses=guesses.count, correct=correct, delta=family.delta, alpha=alpha
        ),
        claimed_epsilon=claimed_epsilon,
        delta=family.delta,
        alpha=alpha,
        verdict="FAIL" if bound > claimed_epsilon else "NOT_FALSIFIED",
        fails_at=fails_at,
    )


def shown(family: Family, *, guesses: Guesses, canaries: int, correct: int, alpha: float) -> float:
    """Return the epsilon of the least noise that `correct` right guesses refute; 0 if none is refuted."""

    def refuted(step: int) -> bool:
        profile = family.profile(FINEST**step, guesses.both)
        return refutes(profile, canaries=canaries, guesses=guesses, correct=correct, alpha=alpha)

    low, high = -MOST_STEPS - 1, MOST_STEPS + 1  # taken as not refuted and refuted
    near = 8
    for step in (0, near, -near, 4 * near, -4 * near):  # profiles of little noise are expensive: last
        if low < step < high:
            low, high = (low, step) if refuted(step) else (step, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return family.epsilon(FINEST**high) if high <= MOST_STEPS else 0.0


def planned(family: Family, *, claimed_epsilon: float, alpha: float = ALPHA) -> Guesses:
    """Return the guesses to make, from imitated runs only: nothing of the audited run is used.

    Candidates are the numbers and kinds of guesses with which half of the claimed noise fails in every
    imitated run, or all if there are none (`found_share` tells which). The result is the candidate with the
    largest average bound when the claim is true.
    """
    half, whole = (_rehearsed(family, part) for part in (0.5, 1.0))

    def worth(guesses: Guesses) -> tuple[bool, float]:
        def bound(right: int) -> float:
            return shown(family, guesses=guesses, canaries=family.canaries, correct=right, alpha=alpha)

        worst_case = min(guesses.correct(*run) for run in half)
        typical = sum(guesses.correct(*run) for run in whole) // REHEARSALS
        return bound(worst_case) > claimed_epsilon, bound(typical)

    return max(_designs(family.canaries), key=worth)


def found_share(family: Family, guesses: Guesses, *, claimed_epsilon: float, alpha: float = ALPHA) -> float:
    """Return the largest of `PARTS` of the claimed noise that fails in every imitated run; 0 if none does.

    With more noise than that, but less than is claimed, the audit may well not fail the claim.
    """

    def fails(right: int) -> bool:
        bound = shown(family, guesses=guesses, canaries=family.canaries, correct=right, alpha=alpha)
        return bound > claimed_epsilon

    if not fails(guesses.count):
        return 0.0
    low, least = 0, guesses.count  # does not fail, or is not tried; fails
    while least - low > 1:
        middle = (low + least) // 2
        low, least = (low, middle) if fails(middle) else (middle, least)
    for part in PARTS:
        if all(guesses.correct(*_one(family, part, seed)) >= least for seed in range(REHEARSALS)):
            return part
    return 0.0


def _designs(canaries: int) -> Iterable[Guesses]:
    for share in SHARES:
        for both in (True, False):
            yield Guesses(count=max(2, int(share * canaries) // 2 * 2), both=both)


def _rehearsed(family: Family, part: float) -> list[tuple[np.ndarray, np.ndarray]]:
    return [_one(family, part, seed) for seed in range(REHEARSALS)]


def _one(family: Family, part: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # an audited run's coins are unlikely to be among these: the suite draws its seed from 2^31 values
    return family.scores(part, np.random.default_rng(seed))
