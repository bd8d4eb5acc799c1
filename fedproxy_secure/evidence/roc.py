"""ROC curves of attacks: how many targets are found, by the number of false positives.

A threshold takes all targets with a score above it as present. The curve has the best threshold for each
number of false positives. Targets of equal scores are on the same side of every threshold, so that a curve
with ties lies below the straight line that an AUC assumes there.

Guarantees: a curve holds counts, and neither scores nor anything about a single target.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.targets import Targets

MOST_STEPS = 40  # of a curve in a report; with more, the ones beside a grid of false positives are kept
READ_AT = (0.001, 0.01, 0.1)  # false-positive rates at which a curve is exact, however many steps it has


@dataclass(frozen=True, kw_only=True)
class Roc:
    """An ROC curve as counts. To read it at x false positives, take the last step that has at most x.

    Args:
        positives, negatives: how many targets were present, and how many were not.
        steps: (false positives, found), both growing; the first has no false positive.

    Raises `DataError` for counts that cannot be those of a curve.
    """

    positives: int
    negatives: int
    steps: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        grows = all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(self.steps))
        if not self.steps or not grows or self.steps[0][0] != 0 or self.steps[0][1] < 0:
            raise DataError("roc: steps: must begin without false positives, and grow")
        if self.steps[-1][0] > self.negatives or self.steps[-1][1] > self.positives:
            raise DataError(
                f"roc: steps: must be of {self.negatives} negatives, {self.positives} positives"
            )
        if min(self.positives, self.negatives) < 1:
            raise DataError("roc: must have a target of each kind")

    def found(self, rate: float) -> int:
        """Return how many present targets are found with at most this share of false positives."""
        allowed = allowed_at(rate, self.negatives)
        return max(found for wrong, found in self.steps if wrong <= allowed)


def allowed_at(rate: float, negatives: int) -> int:
    """Return the number of false positives that a rate allows.

    >>> allowed_at(0.29, 100)
    29
    """
    return int(rate * negatives + 1e-9)  # in floating point .29 x 100 lies just below 29


def roc_of(targets: Targets | None) -> Roc | None:
    """Return the ROC curve of an AUC's targets; None for a mean over targets, or without targets."""
    if targets is None or not targets.kinds:
        return None
    ranks, positive = np.array(targets.values), targets.positive
    levels = np.unique(ranks)[::-1]
    below = {True: np.sort(ranks[positive]), False: np.sort(ranks[~positive])}
    found, wrong = (
        [0, *(len(r) - np.searchsorted(r, levels)).tolist()] for r in (below[True], below[False])
    )
    best = dict(zip(wrong, found, strict=True))  # the last, and so most found, of each number
    steps: list[tuple[int, int]] = []
    for step in best.items():
        if not steps or step[1] > steps[-1][1]:
            steps.append(step)
    negatives = len(below[False])
    return Roc(positives=len(below[True]), negatives=negatives, steps=_thinned(steps, negatives))


def _thinned(steps: list[tuple[int, int]], negatives: int) -> tuple[tuple[int, int], ...]:
    """Return at most `MOST_STEPS` steps of the curve; between them it is nowhere above the whole curve."""
    if len(steps) <= MOST_STEPS:
        return tuple(steps)
    read = {0, negatives, *(allowed_at(rate, negatives) for rate in READ_AT)}
    grid = np.geomspace(1, negatives, MOST_STEPS - len(read)).round().astype(int)
    kept = {max(s for s in steps if s[0] <= allowed) for allowed in read | set(grid.tolist())}
    return tuple(sorted(kept))
