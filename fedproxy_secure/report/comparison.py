"""What a comparison shows beside its methods: seeds that are missing, acc_norm, paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.report import MethodDifference, MethodRow, Report

NORM_TITLE = "Fused LLM by acc_norm"
DIFFERENCES_TITLE = "Fused LLM, paired differences"
NORM_ABOUT = (
    "acc_norm divides a choice's log-likelihood by its length in characters; everything else is by acc. "
    "Tasks where the two are the same for every method are left out."
)
DIFFERENCES_ABOUT = (
    "Each is a method's accuracy minus that of the column's method, paired by seed, or by record if there "
    "is one seed. Intervals are not corrected for multiple comparisons: some exclude zero by chance."
)
EFFECTS_TITLE = "The gap between the fused LLM and the ceiling, by cause"
EFFECTS_ABOUT = (
    "Points of accuracy, paired; the three effects add up to the gap. Size: the proxy minus the LLM, both "
    "tuned on pooled records. Federation: the method's proxy minus the proxy tuned on pooled records. "
    "Owner's edge: the fused LLM minus the method's proxy."
)
# a method, its remove ratio, and by reference its place in `Report.differences`
Line = tuple[str, float | None, dict[str, int]]


def seeds_of(row: MethodRow) -> tuple[int, ...]:
    """Return the seeds that a row's accuracy rests on; none if it has no accuracy."""
    return row.average.seeds if row.average is not None else ()


def few_seeds(seeds: Sequence[int], wanted: Sequence[int]) -> str:
    """Return what a row must say of its seeds, such as `2 of 3 seeds`; empty if it has all and several.

    >>> few_seeds((0, 1), (0, 1, 2))
    '2 of 3 seeds'
    """
    if len(seeds) == 1:
        return "one seed"
    return f"{len(seeds)} of {len(wanted)} seeds" if 0 < len(seeds) < len(wanted) else ""


def norm_tasks(report: Report) -> list[str]:
    """Return the tasks on which acc and acc_norm differ for some method."""
    return [
        task
        for task in dict.fromkeys(t for row in report.rows for t in row.tasks_norm)
        if any(_differ(row.tasks.get(task), row.tasks_norm.get(task)) for row in report.rows)
    ]


def difference_lines(report: Report) -> tuple[list[str], list[Line]]:
    """Return the methods that others are paired with, and a line for each other method and remove ratio."""
    lines: dict[tuple[str, float | None], dict[str, int]] = {}
    for index, d in enumerate(report.differences):
        lines.setdefault((d.method, d.remove_ratio), {})[d.against] = index
    order = sorted(lines, key=lambda key: (key[1] is not None, key[1] or 0))
    references = list(dict.fromkeys(d.against for d in report.differences))
    return references, [(*key, lines[key]) for key in order]


def effect_rows(report: Report) -> list[tuple[int, MethodRow]]:
    """Return the rows that have such effects, each with its place in `Report.rows`."""
    return [(i, row) for i, row in enumerate(report.rows) if row.size_effect is not None]


def effect_seeds(row: MethodRow) -> tuple[int, ...]:
    """Return the seeds that a row's effects rest on: those that the control and the ceiling have, too."""
    return row.size_effect.seeds if row.size_effect is not None else ()


def weakest(differences: Sequence[MethodDifference]) -> Estimate:
    """Return the one of a line's differences that rests on the fewest seeds."""
    return min((d.average for d in differences), key=lambda e: len(e.seeds))


def _differ(a: Estimate | None, b: Estimate | None) -> bool:
    return a is not None and b is not None and (a.value, a.low, a.high) != (b.value, b.low, b.high)
