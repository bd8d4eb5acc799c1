"""The rules that a policy can have: limits of measures, and the few rules that are not limits.

Every registered measure has its limit: `max_` and the measure's key where lower is better, `min_` and the
key where higher is better, both where neither is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from fedproxy_secure.config import ANSWERS
from fedproxy_secure.evidence.measure import MEASURES, MeasureKind, measure_kind

Side = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A rule on measures with these keys: they must be at most (`max`) or at least (`min`) the bound.

    Args:
        keys: keys of the measures.
        side: `max` or `min`.
        by_attacks: whether attacks measure them; then no such attack may have been inconclusive.
        lower_bound: whether they are lower bounds, which can break the rule but never show that it is kept.
        low, high: the bound must lie between them.
    """

    keys: tuple[str, ...]
    side: Side
    by_attacks: bool = False
    lower_bound: bool = False
    low: float = 0.0
    high: float = math.inf

    @property
    def bound_text(self) -> str:
        """The text for errors that says what a bound must be."""
        ends = [f">= {self.low:g}"] if math.isfinite(self.low) else []
        ends += [f"<= {self.high:g}"] if math.isfinite(self.high) else []
        return " ".join(["a number", " and ".join(ends)]).strip()


# limits whose names do not follow from their measures' keys
_NAMED: Mapping[str, tuple[Side, tuple[str, ...]]] = {
    "max_epsilon": ("max", ("epsilon_claimed", "epsilon_spent")),  # spent by all seeds together
    "max_audited_epsilon": ("max", ("epsilon_audited",)),
    "max_exposure_bits": ("max", ("canary_exposure_bits",)),
    "min_cohort": ("min", ("effective_cohort",)),
}
TOTAL_EPSILON = "max_total_epsilon"  # for all configurations together
# rules that are not limits -> what their value must be
OTHERS: Mapping[str, str] = {
    "forbid_unsafe": "true",
    "require_unit": "record or client",
    "require_api": f"the most that the API may tell: {', '.join(ANSWERS)}",
    "require_audit_within_claim": "true",
    "resist": "attacks by id or name, such as [A2, A3]",
    "min_seeds": "a whole number >= 1",
}


def limit_of(name: str) -> Limit | None:
    """Return the limit with this name, or None if no limit has it; loads only the measures that it names.

    Raises `ConfigError` if a measure of another package cannot be loaded.
    """
    if name == TOTAL_EPSILON:
        return Limit(keys=(), side="max")
    if name in _NAMED:
        return _limit(*_NAMED[name])
    if name in OTHERS:  # even if another package has a measure of that name
        return None
    for side in get_args(Side):
        key = name.removeprefix(f"{side}_")
        if key != name and key in MEASURES.names() and side in _sides(measure_kind(key)):
            return _limit(side, (key,))
    return None


def limit_names() -> list[str]:
    """Return the names of all limits, including those of other packages' measures.

    Raises `ConfigError` if a measure of another package cannot be loaded.
    """
    by_measure = [f"{side}_{key}" for key in MEASURES.names() for side in _sides(measure_kind(key))]
    return [TOTAL_EPSILON, *_NAMED, *(name for name in by_measure if name not in OTHERS)]


def _sides(kind: MeasureKind) -> tuple[Side, ...]:
    sides: Mapping[str, tuple[Side, ...]] = {
        "lower": ("max",),
        "higher": ("min",),
        "neither": ("max", "min"),
    }
    return sides[kind.better]


def _limit(side: Side, keys: tuple[str, ...]) -> Limit:
    kinds = [measure_kind(key) for key in keys]
    return Limit(
        keys=keys,
        side=side,
        by_attacks=all(kind.by == "attacks" for kind in kinds),
        lower_bound=side == "max" and any(kind.lower_bound for kind in kinds),
        low=max(kind.within[0] for kind in kinds),
        high=min(kind.within[1] for kind in kinds),
    )
