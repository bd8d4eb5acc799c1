"""What a comparison shows beside its methods: missing seeds, acc_norm, losses, paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.report import MethodDifference, MethodRow, Report

NORM_TITLE = "Fused LLM by acc_norm"
DIFFERENCES_TITLE = "Fused LLM, paired differences"
NORM_ABOUT = (
    "acc_norm divides a choice's log-likelihood by its length in characters; everything else is by acc. "
    "Tasks where the two are the same for every method are left out."
)
DIFFERENCES_ABOUT = (
    "Each is a method's accuracy minus that of the column's method, paired by seed; with one seed, by "
    "record. Every interval stands for itself: among many, some exclude zero by chance."
)
LOSS_TITLE = "Free text: loss on test records"
LOSS_ABOUT = (
    "Nats per token of the response, lower is better; perplexity is exp of it. Gap closed by loss: "
    "from the LLM before tuning to the LLM tuned on all records together. Free text is in no accuracy."
)
LOSS_DIFFERENCES_TITLE = "Free text, paired differences in loss"
LOSS_DIFFERENCES_ABOUT = (
    "Each is a method's loss minus that of the column's method, paired by seed; with one seed, by record. "
    "Below zero the method is better. Every interval stands for itself."
)
EFFECTS_TITLE = "What lies between the fused LLM and the ceiling"
EFFECTS_ABOUT = (
    "Points of accuracy, paired; the three add up. Size: the proxy minus the LLM, both tuned on pooled "
    "records. Federation: the method's proxy minus that proxy. Owner's edge: the fused LLM minus the "
    "method's proxy."
)
Compared = Literal["average", "loss"]  # which number of a difference
# a method, its remove ratio, and by reference its place in `Report.differences`
Line = tuple[str, float | None, dict[str, int]]


def seeds_of(row: MethodRow) -> tuple[int, ...]:
    """Return the seeds that a row's accuracy rests on; none if it has no accuracy."""
    return row.average.seeds if row.average is not None else ()


def loss_seeds(row: MethodRow) -> tuple[int, ...]:
    """Return the seeds that a row's loss rests on; none if it has no loss."""
    return row.loss.seeds if row.loss is not None else ()


def loss_rows(report: Report) -> list[tuple[int, MethodRow]]:
    """Return the rows that have losses, each with its place in `Report.rows`."""
    return [(i, row) for i, row in enumerate(report.rows) if row.loss is not None]


def loss_tasks(report: Report) -> list[str]:
    """Return the tasks of free text with columns of their own; a single one has none: the mean is it."""
    tasks = list(dict.fromkeys(task for row in report.rows for task in row.tasks_loss))
    return tasks if len(tasks) > 1 else []


def is_all_free_text(report: Report) -> bool:
    """Return whether methods have losses alone, so that a table of accuracies would be empty."""
    return bool(loss_rows(report)) and all(row.average is None for row in report.rows)


def perplexity_of(loss: Estimate) -> Estimate:
    """Return exp of a loss and of its ends; what no float holds stays at the largest one."""

    def exp(nats: float) -> float:
        return math.exp(min(nats, 700.0))

    return replace(
        loss,
        metric=f"perplexity: exp of {loss.metric}",
        value=exp(loss.value),
        low=None if loss.low is None else exp(loss.low),
        high=None if loss.high is None else exp(loss.high),
        unit="perplexity",
        how=f"exp of the loss; {loss.how}",
    )


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


def difference_lines(report: Report, of: Compared = "average") -> tuple[list[str], list[Line]]:
    """Return the methods that others are paired with, and a line for each other method and remove ratio.

    `of`: the number that lines must have.
    """
    lines: dict[tuple[str, float | None], dict[str, int]] = {}
    there = [(i, d) for i, d in enumerate(report.differences) if getattr(d, of) is not None]
    for index, d in there:
        lines.setdefault((d.method, d.remove_ratio), {})[d.against] = index
    order = sorted(lines, key=lambda key: (key[1] is not None, key[1] or 0))
    references = list(dict.fromkeys(d.against for _, d in there))
    return references, [(*key, lines[key]) for key in order]


def effect_rows(report: Report) -> list[tuple[int, MethodRow]]:
    """Return the rows that have such effects, each with its place in `Report.rows`."""
    return [(i, row) for i, row in enumerate(report.rows) if row.size_effect is not None]


def effect_seeds(row: MethodRow) -> tuple[int, ...]:
    """Return the seeds that a row's effects rest on: those that the control and the ceiling have, too."""
    return row.size_effect.seeds if row.size_effect is not None else ()


def weakest(differences: Sequence[MethodDifference], of: Compared = "average") -> Estimate:
    """Return the one of a line's differences that rests on the fewest seeds."""
    numbers: list[Estimate] = [e for d in differences if (e := getattr(d, of)) is not None]
    return min(numbers, key=lambda e: len(e.seeds))


def _differ(a: Estimate | None, b: Estimate | None) -> bool:
    return a is not None and b is not None and (a.value, a.low, a.high) != (b.value, b.low, b.high)
