"""One table of a comparison: its title, its explanation, and lines of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.report import MethodRow, Report, pointer
from fedproxy_secure.report.sweep import percent

# fields of a report's parts that are differences, shown with their signs
DIFFERENCES = frozenset(
    {
        *("owners_edge", "owners_edge_norm", "size_effect", "federation_effect", "owners_edge_effect"),
        *("above_constant", "above_zero_shot", "above_llm"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table.

    Args:
        name: its subject; a method as settings spell it.
        about: what else distinguishes it from other lines, such as `25 % removed`; may be empty.
        numbers: its numbers by column, without columns for which it has no number.
        rests_on: the number whose n and seeds the line shows; None without numbers.
        few: `one seed`, or for example `2 of 3 seeds` if the report has more; otherwise empty.
    """

    name: str
    about: str
    numbers: Mapping[str, Number]
    rests_on: Estimate | None
    few: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Args:
        title: its title.
        about: what a reader must know to read it.
        columns: key and label, with the unit, of each column that some line has a number for.
        lines: its lines, at least one.
        name_heading: the heading of `Line.name`.
        beside: the heading of `Line.about`.
    """

    title: str
    about: str
    columns: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]
    name_heading: str
    beside: str


def table(
    title: str,
    about: str,
    labels: Mapping[str, str],
    lines: Sequence[Line],
    *,
    name_heading: str = "method",
    beside: str = "removed",
) -> Table | None:
    """Return a table without the columns for which no line has a number; None if no column is left.

    `labels`: the labels of columns, by key. `Table` describes the other arguments.
    """
    used = {key for line in lines for key in line.numbers}
    columns = tuple((key, label) for key, label in labels.items() if key in used)
    if not columns:
        return None
    return Table(
        title=title,
        about=about,
        columns=columns,
        lines=tuple(lines),
        name_heading=name_heading,
        beside=beside,
    )


def line(report: Report, name: str, about: str, numbers: Mapping[str, Number], *, by: str = "") -> Line:
    """Return a line of a table of `report`.

    `by`: the key of the number that it rests on; without such a number, the one with the fewest seeds.
    """
    of_seeds = [numbers[by]] if by in numbers else numbers.values()
    rests_on = min((n.estimate for n in of_seeds), key=lambda e: len(e.seeds), default=None)
    few = "" if rests_on is None else few_seeds(rests_on.seeds, report.seeds)
    return Line(name=name, about=about, numbers=numbers, rests_on=rests_on, few=few)


def method_line(report: Report, row: MethodRow, numbers: Mapping[str, Number], *, by: str = "") -> Line:
    """Return the line of a method; `by` as in `line`."""
    return line(report, row.method, removed(row.remove_ratio), numbers, by=by)


def removed(ratio: float | None) -> str:
    """Return what a proxy lacks in words, such as `25 % removed`; empty for None."""
    return "" if ratio is None else f"{percent(ratio)} % removed"


def few_seeds(seeds: Sequence[int], wanted: Sequence[int]) -> str:
    """Return a line's note on its seeds, such as `2 of 3 seeds`; empty if it has all and several.

    >>> few_seeds((0, 1), (0, 1, 2))
    '2 of 3 seeds'
    """
    if len(seeds) == 1:
        return "one seed"
    return f"{len(seeds)} of {len(wanted)} seeds" if 0 < len(seeds) < len(wanted) else ""


def numbers_of(part: object, path: str, keys: Iterable[str]) -> dict[str, Number]:
    """Return the numbers of a part of the report, by field name, without those that are None.

    Args:
        part: the part, such as a row of `report.rows`.
        path: its place in the report, such as `rows/0`.
        keys: names of its estimates.
    """
    estimates = {key: getattr(part, key, None) for key in keys}
    return {
        key: Number(estimate, pointer(f"{path}/{key}"), signed=key in DIFFERENCES)
        for key, estimate in estimates.items()
        if estimate is not None
    }


def numbers_by_task(by_task: Mapping[str, Estimate], path: str, tasks: Iterable[str]) -> dict[str, Number]:
    """Return the numbers of `tasks`, by the key of the task's column; `path`: the place of `by_task`."""
    return {on(t): Number(by_task[t], pointer(f"{path}/{t}")) for t in tasks if t in by_task}


def on(task: str) -> str:
    """Return the key of a task's column."""
    return f"on {task}"
