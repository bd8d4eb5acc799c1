"""What was swept, in words; which measure stands for an axis where only one can; the Pareto front."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedproxy_secure.report.drawing import UNPROTECTED
from fedproxy_secure.report.measure_words import words_of
from fedproxy_secure.report.number import Number
from fedproxy_secure.report.trilemma import Axis, Configuration, Measure

# In the order of preference; other measures of an axis follow in the order they were written.
PREFERRED: Mapping[Axis, tuple[str, ...]] = {
    "performance": ("gap_closed", "accuracy_fused"),
    "privacy": (
        "tpr_at_1pct_fpr",
        "token_auc",
        "exact_sequence_recall",
        "epsilon_spent",
        "effective_cohort",
    ),
    "ip": ("extraction_R", "owners_edge", "verbatim_share"),
    "cost": ("upload_bytes",),
}
AXIS_NAMES: Mapping[Axis, str] = {
    "performance": "Performance",
    "privacy": "Privacy",
    "ip": "IP",
    "cost": "Cost",
}
_PROTECTIONS = {
    "unsafe_plaintext": UNPROTECTED,
    "none": UNPROTECTED,
    "masking": "masking",
    "ckks": "CKKS",
}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A configuration with its words: `kind`, the protection; `rest`, all else that differs."""

    configuration: Configuration
    kind: str
    rest: str

    @property
    def name(self) -> str:
        """Of the configuration."""
        return self.configuration.name

    def number(self, key: str) -> Number | None:
        """The measure under `key`, to be shown."""
        measure = self.configuration.measure(key)
        return None if measure is None else shown(measure)


def shown(measure: Measure) -> Number:
    """A measure as people see it."""
    return Number(measure.estimate, measure.source, points=words_of(measure).points)


def labelled(configurations: Sequence[Configuration]) -> list[Labelled]:
    """All of them with words; no two have the same pair of them."""
    varying = [
        key
        for key in _swept(configurations)
        if key != "protection" and len({c.settings.get(key) for c in configurations}) > 1
    ]
    made = []
    for c in configurations:
        rest = ", ".join(_setting(key, c.settings[key]) for key in varying if key in c.settings)
        made.append(Labelled(configuration=c, kind=_kind(c), rest=rest))
    pairs = [(m.kind, m.rest) for m in made]
    return [
        m
        if pairs.count((m.kind, m.rest)) == 1
        else Labelled(configuration=m.configuration, kind=m.kind, rest=m.name)
        for m in made
    ]


def kinds_of(items: Sequence[Labelled]) -> list[str]:
    """Each kind once: no protection first, the others in order."""
    return sorted(dict.fromkeys(item.kind for item in items), key=lambda kind: kind != UNPROTECTED)


def common_settings(configurations: Sequence[Configuration]) -> list[str]:
    """What all have in common, in words, such as `fusion fedavg`."""
    made = []
    for key in _swept(configurations):
        values = {c.settings.get(key) for c in configurations}
        value = values.pop()
        if key != "protection" and not values and value is not None:
            words = _setting(key, value)
            made.append(words if key == "remove_ratio" else f"{key.replace('_', ' ')} {words}")
    return made


def keys_of(configurations: Sequence[Configuration], axis: Axis) -> list[str]:
    """Every measure of the axis, the preferred ones first."""
    there = dict.fromkeys(m.key for c in configurations for m in c.measures if m.axis == axis)
    return [k for k in PREFERRED[axis] if k in there] + [k for k in there if k not in PREFERRED[axis]]


def headline(configurations: Sequence[Configuration], axis: Axis) -> str | None:
    """The measure that stands for an axis: of those that most configurations have, the first preferred.

    None where no measure of the axis says which way is better.
    """
    measured = [
        (key, found)
        for key in keys_of(configurations, axis)
        if (found := [m for c in configurations if (m := c.measure(key)) is not None])
        and found[0].better != "neither"
    ]
    if not measured:
        return None
    most = max(len(found) for _, found in measured)
    return next(key for key, found in measured if len(found) == most)


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other beats in one number without losing in the other; higher is better in both.

    By the values alone: two points whose intervals overlap may change places with other seeds.
    """
    return [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]


def _swept(configurations: Sequence[Configuration]) -> list[str]:
    """Names of settings, the remove ratio first."""
    return sorted({k for c in configurations for k in c.settings}, key=lambda k: (k != "remove_ratio", k))


def _kind(configuration: Configuration) -> str:
    protection = configuration.settings.get("protection", "")
    if found := re.fullmatch(r"masking_dp(\d+)", protection):
        return f"masking + DP {found[1]}"
    kind = _PROTECTIONS.get(protection, protection.replace("_", " ")) or configuration.name
    if configuration.privacy_unit == "none":
        return kind
    claimed = configuration.measure("epsilon_claimed")
    epsilon = "" if claimed is None else f" {claimed.estimate.value:g}"
    return f"DP{epsilon}" if kind == UNPROTECTED else f"{kind} + DP{epsilon}"


def _setting(key: str, value: str) -> str:
    if key == "remove_ratio" and re.fullmatch(r"[\d.]+", value):
        return f"{float(value):.0%}".replace("%", " % removed")
    return value.replace("_", " ")
