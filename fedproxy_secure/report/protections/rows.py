"""Attacks side by side: a row for each attack, view and surface, a column for each protection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.finding import in_order
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.evidence.surfaces import PRIVACY_SURFACES
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sweep import UNPROTECTED, kinds_of, labelled
from fedproxy_secure.report.trilemma import AttackDifference

TITLE = "Attacks side by side"
ABOUT = (
    "Each attack's headline without protection, then under each protection with the difference and its "
    "interval. Differences are paired by seed, and also by target if both attacks were scored on the same "
    "targets; otherwise they are not paired by target and the interval is wider. Intervals are not "
    "corrected for multiple comparisons: of twenty true zero differences, one is expected to exclude zero."
)
NOT_PAIRED = "not paired"


@dataclass(frozen=True, kw_only=True)
class SideCell:
    """One attack under one protection.

    Args:
        value: the headline; None if the attack has none.
        difference: the headline minus that without protection.
        paired: whether the difference is paired by target.
        why: why there is no headline.
    """

    value: Number | None
    difference: Number | None
    paired: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class SideRow:
    """One attack from one view, on configurations that differ only in the protection.

    Args:
        id, attack, view: the attack.
        surface: what it read without protection; empty if that is no surface of privacy.
        rest: the other settings of the configurations, in words.
        metric: name of the headline.
        base: the headline without protection.
        could_show: the smallest value that would have been detected there; None if that is not known.
        cells: one for each protection, in the order of `SideTable.kinds`; None if it was not attacked.
    """

    id: str
    attack: str
    view: str
    surface: str
    rest: str
    metric: str
    base: Number
    could_show: Number | None
    cells: tuple[SideCell | None, ...]


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """All attacks side by side; `kinds`: the protections, in the order of the cells."""

    base: str
    kinds: tuple[str, ...]
    rows: tuple[SideRow, ...]


def side_table(report: Report) -> SideTable | None:
    """Return the table, or None if no protection can be compared with no protection."""
    if not report.attack_differences:
        return None
    items = labelled(report.configurations)
    words = {i.name: (i.kind, i.rest) for i in items}
    kinds = tuple(kinds_of([i for i in items if not i.is_baseline]))
    cells: dict[tuple[str, ...], dict[str, tuple[int, AttackDifference]]] = {}
    for index, d in enumerate(report.attack_differences):
        if d.configuration in words:
            kind, rest = words[d.configuration]
            cells.setdefault((rest, d.surface, d.id, d.attack, d.view), {})[kind] = index, d
    rows = [_row(rest, by_kind, kinds) for (rest, *_), by_kind in cells.items()]
    return SideTable(base=UNPROTECTED, kinds=kinds, rows=tuple(sorted(rows, key=_order)))


def base_of(d: AttackDifference, index: int) -> Number:
    """Return the headline without protection for display."""
    return Number(d.base, f"{_place(index)}/base")


def value_of(d: AttackDifference, index: int) -> Number | None:
    """Return the headline under the protection for display."""
    return None if d.value is None else Number(d.value, f"{_place(index)}/value")


def difference_of(d: AttackDifference, index: int) -> Number | None:
    """Return the difference for display, with its sign."""
    return (
        None if d.difference is None else Number(d.difference, f"{_place(index)}/difference", signed=True)
    )


def why_without(d: AttackDifference) -> str:
    """Return the outcome of an attack without a number under the protection, and why."""
    return f"{d.outcome}: {d.why}"


def could_show_of(d: AttackDifference, index: int) -> Number | None:
    """Return the smallest value that the unprotected run would have shown."""
    if d.could_show is None:
        return None
    return Number(smallest(d.base, d.could_show), f"{_place(index)}/could_show")


def smallest(estimate: Estimate, value: float, *, how: str = "") -> Estimate:
    """Return the smallest true value that an estimate would have detected, without an interval."""
    exact = counted(
        value,
        metric=f"smallest {estimate.metric} that would have been seen",
        unit=estimate.unit,
        seeds=estimate.seeds,
        n=estimate.n,
    )
    meaning = "its interval would lie above the bar with probability 0.8"
    return replace(exact, how=f"{meaning}; from {how}" if how else meaning)


def _place(index: int) -> str:
    return pointer(f"attack_differences/{index}")


def _row(rest: str, by_kind: dict[str, tuple[int, AttackDifference]], kinds: tuple[str, ...]) -> SideRow:
    index, first = next(iter(by_kind.values()))
    return SideRow(
        id=first.id,
        attack=first.attack,
        view=first.view,
        surface=first.surface,
        rest=rest,
        metric=first.base.metric,
        base=base_of(first, index),
        could_show=could_show_of(first, index),
        cells=tuple(_cell(by_kind.get(kind)) for kind in kinds),
    )


def _cell(entry: tuple[int, AttackDifference] | None) -> SideCell | None:
    if entry is None:
        return None
    index, d = entry
    return SideCell(
        value=value_of(d, index),
        difference=difference_of(d, index),
        paired=d.paired,
        why=why_without(d) if d.value is None else d.why,
    )


def _order(row: SideRow) -> tuple[object, ...]:
    """Return the sort key of a row: other settings, then surface of privacy, then attack, A2 before A10."""
    surfaces = [*PRIVACY_SURFACES, ""]
    place = surfaces.index(row.surface) if row.surface in surfaces else len(surfaces)
    return row.rest, place, in_order(row.id), row.attack, row.view
