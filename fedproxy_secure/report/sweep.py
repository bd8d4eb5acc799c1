"""Words for swept settings, the headline measure of each axis, and the Pareto front."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.measure import Axis, Better, MeasureKind, in_order
from fedproxy_secure.evidence.measures.privacy import EPSILON_CLAIMED
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.trilemma import Configuration, Measure

PROXY_SETTINGS = ("compression", "remove_ratio")  # settings that determine a proxy
PLAINTEXT = "unsafe_plaintext"  # the scheme without protection
UNPROTECTED = "no protection"  # its kind in words, drawn in red
TRILEMMA: tuple[Axis, ...] = ("performance", "privacy", "ip")  # cost has a table of its own
Span = tuple[float, float, float]  # a number's lower end, value and upper end
AXIS_NAMES: Mapping[Axis, str] = {
    "performance": "Performance",
    "privacy": "Privacy",
    "ip": "IP",
    "cost": "Cost",
}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A configuration with its words: `kind`, the protection; `rest`, all other settings that vary."""

    configuration: Configuration
    kind: str
    rest: str

    @property
    def name(self) -> str:
        """The configuration's name."""
        return self.configuration.name

    @property
    def is_baseline(self) -> bool:
        """Whether protections are compared with it: no scheme, no privacy, no recipe of its own."""
        return _in_plaintext(self.configuration) and not self.configuration.recipe

    def number(self, key: str) -> Number | None:
        """Return the measure with this key for display; None if it was not measured."""
        measure = self.configuration.measure(key)
        return None if measure is None else shown(measure)


def shown(measure: Measure) -> Number:
    """Return a measure for display."""
    return Number(measure.estimate, measure.source, signed=measure.kind.signed)


def labelled(configurations: Sequence[Configuration]) -> list[Labelled]:
    """Return all configurations with their words; no two have both words in common."""
    varying = [
        key
        for key in _swept(configurations)
        if key != "protection" and len({c.settings.get(key) for c in configurations}) > 1
    ]
    items = []
    for c in configurations:
        rest = ", ".join(setting_words(key, c.settings[key]) for key in varying if key in c.settings)
        items.append(Labelled(configuration=c, kind=_kind(c), rest=rest))
    pairs = [(m.kind, m.rest) for m in items]
    return [
        m
        if pairs.count((m.kind, m.rest)) == 1
        else Labelled(configuration=m.configuration, kind=m.kind, rest=m.name)
        for m in items
    ]


def kinds_of(items: Sequence[Labelled]) -> list[str]:
    """Return the kinds without repeats, no protection first, then the others in order."""
    return list(dict.fromkeys(item.kind for item in sorted(items, key=lambda item: not item.is_baseline)))


def common_settings(configurations: Sequence[Configuration]) -> list[str]:
    """Return the settings that all configurations share, in words such as `fusion fedavg`."""
    phrases = []
    for key in _swept(configurations):
        values = {c.settings.get(key) for c in configurations}
        value = values.pop()
        if key != "protection" and not values and value is not None:
            words = setting_words(key, value)
            phrases.append(words if key == "remove_ratio" else f"{key.replace('_', ' ')} {words}")
    return phrases


def keys_of(configurations: Sequence[Configuration], axis: Axis) -> list[str]:
    """Return every measure of the axis that some configuration has, in the registry's order."""
    return in_order(m.key for c in configurations for m in c.measures if m.axis == axis)


def kind_of_measure(configurations: Sequence[Configuration], key: str) -> MeasureKind:
    """Return the kind of a measure that some configuration has."""
    return next(m.kind for c in configurations if (m := c.measure(key)) is not None)


def headline(configurations: Sequence[Configuration], axis: Axis) -> str | None:
    """Return the measure that represents an axis, or None if no measure of it has a better direction.

    It is the highest-ranked of the measures that most configurations have. If the configurations' proxies
    differ, measures relative to the proxy rank last.
    """
    counts: dict[str, int] = {}
    for key in keys_of(configurations, axis):
        measures = [m for c in configurations if (m := c.measure(key)) is not None]
        if measures[0].better != "neither":
            counts[key] = len(measures)
    if not counts:
        return None
    most_common = [key for key, count in counts.items() if count == max(counts.values())]
    proxies = {tuple(c.settings.get(key) for key in PROXY_SETTINGS) for c in configurations}

    def rank(key: str) -> tuple[bool, int]:
        kind = kind_of_measure(configurations, key)
        return not (kind.relative and len(proxies) > 1), kind.headline

    return max(most_common, key=rank)


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which points are on the Pareto front, where higher is better in both numbers.

    Only values count; `may_be_beaten` says for which points other seeds may give another front.
    """
    return [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]


def upward(estimate: Estimate, better: Better) -> Span:
    """Return an estimate with its interval, turned so that higher is better; one without has no bounds."""
    low, high = (-math.inf, math.inf) if estimate.interval is None else estimate.interval
    if better == "higher":
        return low, estimate.value, high
    return -high, -estimate.value, -low


def may_be_beaten(points: Sequence[tuple[Span, Span]]) -> list[bool]:
    """Return which points another one may beat or equal in both numbers, as far as intervals tell."""
    worst = [(x[0], y[0]) for x, y in points]
    best = [(x[2], y[2]) for x, y in points]
    return [
        any(i != j and x >= a and y >= b and (x, y) != (a, b) for j, (x, y) in enumerate(best))
        for i, (a, b) in enumerate(worst)
    ]


def front_in_words(names: Sequence[str], points: Sequence[tuple[Span, Span]]) -> str:
    """Return which configurations are on the Pareto front, and for which of them that is not sure."""
    there = on_front([(x[1], y[1]) for x, y in points])
    beaten = may_be_beaten(points)
    on_it = [name for name, on in zip(names, there, strict=True) if on]
    unsure = [name for name, on, may in zip(names, there, beaten, strict=True) if on and may]
    sure = "no other configuration may beat any of them on both axes"
    if unsure:
        which = "each of them" if unsure == on_it else f"some of them ({'; '.join(unsure)})"
        sure = f"another configuration may beat {which} on both axes"
    return f"On the front by mean values: {'; '.join(on_it)}. Within the 95 % intervals {sure}."


def setting_words(key: str, value: str) -> str:
    """Return a swept setting in words, such as `50 % removed`."""
    if key == "remove_ratio" and re.fullmatch(r"[\d.]+", value):
        return f"{percent(float(value))} % removed"
    return value.replace("_", " ")


def percent(ratio: float) -> str:
    """Return a remove ratio in percent, without the sign, as exactly as settings distinguish ratios.

    >>> percent(0.5), percent(0.125)
    ('50', '12.5')
    """
    return f"{100 * float(f'{ratio:g}'):g}"


def _swept(configurations: Sequence[Configuration]) -> list[str]:
    """Return the names of the settings that were swept, the remove ratio first."""
    return sorted({k for c in configurations for k in c.settings}, key=lambda k: (k != "remove_ratio", k))


def _kind(configuration: Configuration) -> str:
    """Return a configuration's protection for display, such as `masking + DP 8 (large batches)`."""
    title, recipe = _title(configuration.scheme), configuration.recipe
    if _in_plaintext(configuration):
        title = UNPROTECTED
    elif configuration.privacy_unit != "none":
        claimed = configuration.measure(EPSILON_CLAIMED.key)
        private = "DP" if claimed is None else f"DP {claimed.estimate.value:g}"
        title = private if configuration.scheme == PLAINTEXT else f"{title} + {private}"
    return f"{title} ({recipe})" if recipe else title


def _in_plaintext(configuration: Configuration) -> bool:
    """Return whether neither a scheme nor differential privacy protects a configuration."""
    return configuration.scheme == PLAINTEXT and configuration.privacy_unit == "none"


def _title(scheme: str) -> str:
    """Return a protection's title; its name in words if no installed package has it."""
    if scheme not in PROTECTIONS.names():
        return scheme.replace("_", " ")
    return PROTECTIONS.get(scheme).title
