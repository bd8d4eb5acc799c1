"""The trilemma's tables: columns of measures, and guarantees, stamps and failures by configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.measure import AXES, Axis
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import AXIS_NAMES, TRILEMMA, keys_of, kind_of_measure, shown
from fedproxy_secure.report.trilemma import Configuration

_AT_MOST = 3  # columns of an axis that has no measure meant for the trilemma
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table, which shows one measure."""

    key: str
    title: str
    unit: str  # the unit of all its numbers; empty if units differ or there is none
    arrow: str  # which way is better
    meaning: str
    heading: str = ""  # in Markdown and terminals; empty: the label

    @property
    def label(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, kw_only=True)
class AxisTable:
    """A table of configurations by measures of one axis."""

    axis: Axis
    name: str
    columns: tuple[Column, ...]


def first_tables(report: Report) -> list[AxisTable]:
    """Return the trilemma's tables: for each axis the main measures."""
    tables = []
    for axis in TRILEMMA:
        available = keys_of(report.configurations, axis)
        first = [k for k in available if kind_of_measure(report.configurations, k).in_trilemma]
        if keys := first or available[:_AT_MOST]:
            tables.append(_table(report, axis, keys))
    return tables


def full_tables(report: Report) -> list[AxisTable]:
    """Return tables of every measure of every axis."""
    tables = [_table(report, axis, keys_of(report.configurations, axis)) for axis in AXES]
    return [table for table in tables if table.columns]


def trilemma_columns(configurations: Sequence[Configuration]) -> list[Column]:
    """Return the trilemma's measures that some configuration has, cost included, axis by axis."""
    keys = [key for axis in AXES for key in keys_of(configurations, axis)]
    return [
        _column(configurations, key) for key in keys if kind_of_measure(configurations, key).in_trilemma
    ]


def guarantee_groups(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return (names, sentences): first the report's, then the configurations', with equal ones joined."""
    groups: dict[tuple[str, ...], list[str]] = {}
    if report.guarantees:
        groups[report.guarantees] = ["all configurations" if report.configurations else ""]
    for c in report.configurations:
        if c.guarantees:
            groups.setdefault(c.guarantees, []).append(c.name)
    return [("; ".join(names), lines) for lines, names in groups.items()]


def stamps(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return each stamp with the names of its configurations, or of a comparison's methods."""
    whose = _whose((stamp, c.name) for c in report.configurations for stamp in c.unsafe)
    return [*report.unsafe.items(), *whose]


def comparison_lines(report: Report) -> list[str]:
    """Return the stamps of a comparison and what it lacks, for the top of a text."""
    unsafe = [f"{stamp} Methods: {', '.join(names)}." for stamp, names in report.unsafe.items()]
    return [*unsafe, *(f"Not finished: {line}" for line in report.unfinished)]


def failures(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return each seed with its error, and the names of the configurations where it failed."""
    return _whose((line, c.name) for c in report.configurations for line in c.failed)


def _whose(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the lines without repeats, each with all its names."""
    names_of: dict[str, list[str]] = {}
    for line, name in pairs:
        names_of.setdefault(line, []).append(name)
    return [(line, tuple(names)) for line, names in names_of.items()]


def _table(report: Report, axis: Axis, keys: Sequence[str]) -> AxisTable:
    columns = tuple(_column(report.configurations, key) for key in keys)
    return AxisTable(axis=axis, name=AXIS_NAMES[axis], columns=columns)


def _column(configurations: Sequence[Configuration], key: str) -> Column:
    measures = [m for c in configurations if (m := c.measure(key)) is not None]
    kind = measures[0].kind
    units = {shown(m).unit for m in measures}
    return Column(
        key=key,
        title=kind.title,
        unit=units.pop() if len(units) == 1 else "",
        arrow=_ARROWS[measures[0].better],
        meaning=kind.meaning,
        heading=kind.heading,
    )
