"""An attack's judgement of each target of its exam, for paired differences of two findings.

Two findings of one attack are paired if they judge the same targets, such as the same records under two
protections. Differences in difficulty between targets then cancel out. For an AUC the paired interval is
that of DeLong, DeLong & Clarke-Pearson (1988) for two correlated AUCs; for a mean over targets it is
Student's t of the targets' differences.

Guarantees: targets hold no text, no token and no secret, only scores with their ranks, or numbers between
the bounds of the attack's headline, and whether a target was present. `exam` is a keyed digest (see
`attacks.judging.targets`). Not guaranteed: that a score tells nothing. Whoever has a text, and the models
that an attack read, may compute the text's score, look for it here, and learn whether it was present.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.estimate import (
    CONFIDENCE,
    Estimate,
    counted,
    independent_difference,
    mean_interval,
)

FEWEST = 2  # fewest targets of each kind
NORMAL_QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The targets of one exam, in its order.

    Args:
        exam: fingerprint of the exam, hex: equal for exams with the same targets.
        kinds: for an AUC one character per target, `1` if it was present and `0` if not; empty for a mean
            over targets.
        values: one number per target. For an AUC it is the rank of the target's score among all, from 1,
            with the mean rank for ties; for a mean it is the target's own number.
        scores: for an AUC the score of each target, rounded; empty for a mean, and if only ranks are kept.
        parts: of an exam of several questions, how many targets of each were judged, its first ones; empty
            for an exam of one question.

    Raises `DataError` for numbers that are not finite, kinds or scores of another length, kinds with other
    characters, parts of another sum, and fewer than 2 targets (for an AUC, of each kind).
    """

    exam: str
    kinds: str
    values: tuple[float, ...]
    scores: tuple[float, ...] = ()
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, numbers in (("values", self.values), ("scores", self.scores)):
            if not all(math.isfinite(v) for v in numbers):
                raise DataError(f"targets: {name} must be finite")
        if self.scores and len(self.scores) != len(self.kinds):
            raise DataError(f"targets: scores: must be {len(self.kinds)}, one for each of an AUC's targets")
        if self.kinds and (len(self.kinds) != len(self.values) or set(self.kinds) - {"0", "1"}):
            raise DataError(f"targets: kinds: must be {len(self.values)} of the characters 0 and 1")
        if self.parts and (sum(self.parts) != len(self.values) or min(self.parts) < 0):
            raise DataError(f"targets: parts: must be >= 0 and add up to {len(self.values)}")
        counts = [self.kinds.count(k) for k in "01"] if self.kinds else [len(self.values)]
        if min(counts) < FEWEST:
            raise DataError(f"targets: {min(counts)} of a kind: must be >= {FEWEST}")

    @property
    def positive(self) -> np.ndarray:
        """Which targets were present, bool [n]; of length 0 for a mean over targets."""
        return np.array([k == "1" for k in self.kinds], dtype=bool)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The question of each target, and its place among those of the question, both from 0."""
        counts = self.parts or (len(self.values),)
        return [(question, place) for question, count in enumerate(counts) for place in range(count)]


def components(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's structural components of an AUC; the mean of either is the AUC.

    Args:
        scores: float [m + n], finite, higher for those taken as positive; ties count half.
        positive: bool [m + n], m of them true.

    Returns:
        For each positive the share of negatives below it, float64 [m], and for each negative the share of
        positives above it, float64 [n], in the order of `scores`.
    """
    x, y = scores[positive].astype(np.float64), scores[~positive].astype(np.float64)
    m, n = len(x), len(y)
    ranks = midranks(np.concatenate([x, y]))
    return (ranks[:m] - midranks(x)) / n, 1 - (ranks[m:] - midranks(y)) / m


def midranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, float64 [n]; equal values share the mean of their ranks.

    It equals `scipy.stats.rankdata`, whose import takes too long for reading reports.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def paired_by_target(a: Targets | None, b: Targets | None, *, metric: str, unit: str) -> Estimate | None:
    """Return the difference `a - b` of two headlines with its paired interval.

    The result is None unless both have the same exam. If one has fewer targets of a question, because time
    ran out, both are compared on the first ones that they share.

    If both findings judge every target equally, the difference is 0. It is exact for equal rankings of an
    AUC and for means of numbers outside [0, 1], which are equal to the last digit only if both read the
    same data. For a mean of numbers in [0, 1], such as found or not found, the interval is that of the rule
    of three: up to 3/n of other targets may differ. The same holds for an AUC of two different rankings
    with the same spread, such as two perfect ones. If the difference is the same nonzero number for every
    target, there is no interval, and the result is None.

    Args:
        a, b: targets of two findings of one attack.
        metric: name of the difference.
        unit: unit of the difference.
    """
    if a is None or b is None or a.exam != b.exam or bool(a.kinds) != bool(b.kinds):
        return None
    shared = set(a.places) & set(b.places)
    chosen = [np.array([place in shared for place in t.places], dtype=bool) for t in (a, b)]
    x, y = (np.array(t.values, dtype=np.float64)[own] for t, own in zip((a, b), chosen, strict=True))
    count, positive = len(shared), a.positive[chosen[0]] if a.kinds else a.positive
    if a.kinds and (positive != b.positive[chosen[1]]).any():
        return None
    alike = bool((midranks(x) == midranks(y)).all()) if a.kinds else bool((x == y).all())
    if alike:
        exact = counted(0.0, metric=metric, unit=unit, seeds=(0,), n=count)
        how = "difference paired by target: every target was judged alike"
        if a.kinds or not ((x >= 0) & (x <= 1)).all():
            return replace(exact, how=how)
        half = min(1.0, 3 / count)
        return replace(exact, low=-half, high=half, how=f"{how}, rule of three 95 %", nature="sampled")
    if not a.kinds:
        differences = dict(enumerate((x - y).tolist()))
        estimate = mean_interval(differences, metric=metric, unit=unit)
        how = "difference paired by target, Student t 95 %"
        without_width = (
            estimate.low is None or estimate.high is None or math.isclose(estimate.low, estimate.high)
        )
        return None if without_width else replace(estimate, seeds=(0,), how=how)
    if min(positive.sum(), (~positive).sum()) < FEWEST:
        return None
    (x10, x01), (y10, y01) = components(x, positive), components(y, positive)
    d10, d01 = x10 - y10, x01 - y01
    value = float(d10.mean())
    spread = math.sqrt(float(d10.var(ddof=1)) / len(d10) + float(d01.var(ddof=1)) / len(d01))
    half = NORMAL_QUANTILE * spread if spread > 0 else 3 / min(len(d10), len(d01))
    return Estimate(
        metric=metric,
        value=value,
        low=max(-1.0, value - half),
        high=min(1.0, value + half),
        n=count,
        unit=unit,
        seeds=(0,),
        how="difference paired by target, DeLong 95 %",
        nature="sampled",
    )


def difference(
    a: Estimate, b: Estimate, targets: tuple[Targets | None, Targets | None], *, metric: str
) -> tuple[Estimate, bool]:
    """Return `a - b` of one seed, and whether it is paired by target.

    Args:
        a, b: the headlines.
        targets: their targets, if they are known.
        metric: name of the difference.
    """
    paired = paired_by_target(*targets, metric=metric, unit=a.unit)
    if paired is not None:
        return replace(paired, seeds=a.seeds), True
    return independent_difference(a, b, metric=metric), False
