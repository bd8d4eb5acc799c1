"""The page's tables: measures by axis, methods, stamps, failures, guarantees."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.measure import AXES, Axis
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.comparison import (
    DIFFERENCES,
    EFFECTS_ABOUT,
    EFFECTS_TITLE,
    NORM_ABOUT,
    NORM_TASKS_ABOUT,
    NORM_TITLE,
    Compared,
    difference_lines,
    effect_rows,
    effect_seeds,
    few_seeds,
    norm_columns,
    norm_tasks,
    seeds_of,
    weakest,
)
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sweep import AXIS_NAMES, TRILEMMA, keys_of, kind_of_measure, percent, shown

EDGE = "owner's edge"
_POINTERS = {
    "tuned proxy": "tuned_proxy",
    "fused LLM": "average",
    "gap closed": "gap_closed",
    EDGE: "owners_edge",
}
MethodLine = tuple[str, str, dict[str, Number]]
_AT_MOST = 3  # columns of an axis that has no measure meant for the trilemma
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A measure as a column."""

    key: str
    title: str
    unit: str  # the unit of all its numbers; empty if units differ or there is none
    arrow: str  # which way is better
    meaning: str

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


@dataclass(frozen=True, kw_only=True)
class MethodTable:
    """One more table of a comparison: name and label of each column, and a line for each method."""

    title: str
    about: str
    columns: tuple[tuple[str, str], ...]
    lines: tuple[MethodLine, ...]
    of: str = "method"  # what a line is of


def first_tables(report: Report) -> list[AxisTable]:
    """Return the trilemma's tables: for each axis the measures that people compare first."""
    tables = []
    for axis in TRILEMMA:
        there = keys_of(report.configurations, axis)
        first = [k for k in there if kind_of_measure(report.configurations, k).in_trilemma]
        if keys := first or there[:_AT_MOST]:
            tables.append(_table(report, axis, keys))
    return tables


def full_tables(report: Report) -> list[AxisTable]:
    """Return tables of every measure of every axis."""
    tables = [_table(report, axis, keys_of(report.configurations, axis)) for axis in AXES]
    return [table for table in tables if table.columns]


def guarantee_groups(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return (whose, sentences): first the report's, then configurations', with equal ones joined."""
    groups: dict[tuple[str, ...], list[str]] = {}
    if report.guarantees:
        groups[report.guarantees] = ["all configurations" if report.configurations else ""]
    for c in report.configurations:
        if c.guarantees:
            groups.setdefault(c.guarantees, []).append(c.name)
    return [("; ".join(names), lines) for lines, names in groups.items()]


def stamps(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return each stamp with the names of the configurations that bear it."""
    return _whose((stamp, c.name) for c in report.configurations for stamp in c.unsafe)


def failures(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """Return each seed with its error, and the names of the configurations where it failed."""
    return _whose((line, c.name) for c in report.configurations for line in c.failed)


def method_columns(report: Report) -> list[tuple[str, str]]:
    """Return (name, name with unit) of the columns of a comparison that have a number."""
    there = dict.fromkeys(name for *_, numbers in method_rows(report) for name in numbers)
    ordered = [name for name in _POINTERS if name in there] + [n for n in there if n not in _POINTERS]
    return [(name, f"{name} ({'points' if name == EDGE else '%'})") for name in ordered]


def numbers_of(
    part: object, path: str, keys: Iterable[str], *, signed: Container[str] = ()
) -> dict[str, Number]:
    """Return the numbers of a part of the report, by field name.

    Args:
        part: the part, such as a row of `report.rows`.
        path: its place in the report, such as `rows/0`.
        keys: names of its estimates; those that are None are left out.
        signed: names of those that are differences.
    """
    estimates = {key: getattr(part, key) for key in keys}
    return {
        key: Number(made, pointer(f"{path}/{key}"), signed=key in signed)
        for key, made in estimates.items()
        if made is not None
    }


def method_rows(report: Report) -> list[MethodLine]:
    """Return (method, removed and few seeds, numbers by column) of a comparison."""
    rows = []
    for i, row in enumerate(report.rows):
        estimates: dict[str, Estimate | None] = {
            **{name: getattr(row, key) for name, key in _POINTERS.items()},
            **row.tasks,
        }
        numbers = {
            name: Number(
                e,
                pointer(f"rows/{i}/{_POINTERS.get(name, f'tasks/{name}')}"),
                signed=name == EDGE,
            )
            for name, e in estimates.items()
            if e is not None
        }
        few = few_seeds(seeds_of(row), report.seeds)
        rows.append((*named(row.method, row.remove_ratio, few), numbers))
    return rows


def norm_table(report: Report) -> MethodTable | None:
    """Return the accuracies by acc_norm, or None if they are those by acc."""
    tasks = norm_tasks(report)
    if not tasks:
        return None
    beside, lines = norm_columns(report), []
    for i, row in enumerate(report.rows):
        if row.average_norm is None:
            continue
        numbers = numbers_of(row, f"rows/{i}", beside, signed=("owners_edge_norm",))
        numbers |= {
            t: Number(row.tasks_norm[t], pointer(f"rows/{i}/tasks_norm/{t}"))
            for t in tasks
            if t in row.tasks_norm
        }
        few = few_seeds(seeds_of(row), report.seeds)
        lines.append((*named(row.method, row.remove_ratio, few), numbers))
    columns = (*beside.items(), *((name, f"{name} (%)") for name in tasks))
    about = f"{NORM_ABOUT} {NORM_TASKS_ABOUT}"
    return MethodTable(title=NORM_TITLE, about=about, columns=columns, lines=tuple(lines))


def difference_table(report: Report, of: Compared = "average") -> MethodTable | None:
    """Return the paired differences of methods in one number, or None if there are none."""
    references, grid = difference_lines(report, of)
    if not grid:
        return None
    (title, about, unit), lines = DIFFERENCES[of], []
    for method, ratio, by_reference in grid:
        numbers = {
            r: Number(made, pointer(f"differences/{i}/{of}"), signed=True)
            for r, i in by_reference.items()
            if (made := getattr(report.differences[i], of)) is not None
        }
        seeds = weakest([report.differences[i] for i in by_reference.values()], of).seeds
        lines.append((*named(method, ratio, few_seeds(seeds, report.seeds)), numbers))
    columns = tuple((r, f"minus {r.replace('_', ' ')} ({unit})") for r in references)
    return MethodTable(title=title, about=about, columns=columns, lines=tuple(lines))


def effect_table(report: Report) -> MethodTable | None:
    """Return what lies between methods and the ceiling, or None if that is not known."""
    columns = {
        "size_effect": "size",
        "federation_effect": "federation",
        "owners_edge_effect": "owner's edge",
    }
    lines = []
    for i, row in effect_rows(report):
        numbers = numbers_of(row, f"rows/{i}", columns, signed=columns)
        lines.append(
            (*named(row.method, row.remove_ratio, few_seeds(effect_seeds(row), report.seeds)), numbers)
        )
    if not lines:
        return None
    return MethodTable(
        title=EFFECTS_TITLE,
        about=EFFECTS_ABOUT,
        columns=tuple((key, f"{name} (points)") for key, name in columns.items()),
        lines=tuple(lines),
    )


def named(method: str, ratio: float | None, seeds: str) -> tuple[str, str]:
    """Return a method and, as people read it, what was removed and that it has few seeds."""
    removed = "" if ratio is None else f"{percent(ratio)} % removed"
    return method.replace("_", " "), ", ".join(part for part in (removed, seeds) if part)


def _whose(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return each line once, with all names."""
    names_of: dict[str, list[str]] = {}
    for line, name in pairs:
        names_of.setdefault(line, []).append(name)
    return [(line, tuple(names)) for line, names in names_of.items()]


def _table(report: Report, axis: Axis, keys: Sequence[str]) -> AxisTable:
    columns = []
    for key in keys:
        measures = [m for c in report.configurations if (m := c.measure(key)) is not None]
        kind = measures[0].kind
        units = {shown(m).unit for m in measures}
        columns.append(
            Column(
                key=key,
                title=kind.title,
                unit=units.pop() if len(units) == 1 else "",
                arrow=_ARROWS[measures[0].better],
                meaning=kind.meaning,
            )
        )
    return AxisTable(axis=axis, name=AXIS_NAMES[axis], columns=tuple(columns))
