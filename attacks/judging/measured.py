"""Estimates that carry what they could have shown, and how each target of the exam was judged.

`attacks.statistics` makes them, so an attack gets its power stated, and its findings paired with others on
the same exam, without further work. An estimate that an attack makes itself is judged by its interval, and
is not paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from attacks.judging.power import Power
from fedproxy_secure.evidence.estimate import Estimate, Nature
from fedproxy_secure.evidence.targets import midranks

DIGITS = 6  # significant digits of a score that a finding keeps


class Judged(NamedTuple):
    """Kinds, values, scores and parts as in `Targets`."""

    kinds: str
    values: tuple[float, ...]
    scores: tuple[float, ...] = ()
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measured(Estimate):
    """An estimate of an attack, before it becomes part of a finding.

    Args:
        nature: as in `Estimate`; what an attack measures is sampled unless it says otherwise.
        chance: the value where there is nothing to find; None if only the attack's headline has one.
        power: how far above a bar the truth must be to be seen.
        judged: kinds, values, scores and parts of the targets; None if they cannot be paired.
    """

    nature: Nature = "sampled"
    chance: float | None = None
    power: Power | None = field(default=None, compare=False, repr=False)
    judged: Judged | None = field(default=None, compare=False, repr=False)


def of_kinds(scores: np.ndarray, positive: np.ndarray, parts: Sequence[int] = ()) -> Judged:
    """Return how an AUC over `scores`, float [n], judged its targets; labels are bool [n].

    Ranks are those of the scores before rounding. `parts` is as in `Targets`.
    """
    return Judged(
        kinds="".join("1" if p else "0" for p in positive),
        values=tuple(midranks(scores).tolist()),
        scores=tuple(float(f"{score:.{DIGITS}g}") for score in scores.tolist()),
        parts=tuple(parts),
    )


def with_power(estimate: Estimate, power: Power) -> Measured:
    """Return the estimate with its power."""
    return Measured(**vars(estimate), power=power)


def plain(estimate: Estimate) -> Estimate:
    """Return the estimate without power and targets, which findings keep elsewhere."""
    return Estimate(**{f.name: getattr(estimate, f.name) for f in fields(Estimate)})
