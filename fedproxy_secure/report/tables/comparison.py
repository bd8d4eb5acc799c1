"""The tables of a comparison's methods: accuracies, losses, paired differences, causes of the gap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.tables.scale import counting_table, proxy_table, scale_table
from fedproxy_secure.report.tables.table import (
    Table,
    line,
    method_line,
    numbers_by_task,
    numbers_of,
    on,
    removed,
    table,
)

METHODS_TITLE = "Methods"
NORM_TITLE = "Fused LLM by acc_norm"
NORM_ABOUT = (
    "acc_norm divides a choice's log-likelihood by its length in characters; tables that do not name it "
    "are by acc."
)
NORM_TASKS_ABOUT = "Tasks where the two are the same for every method are left out."
LOSS_TITLE = "Free text: loss on test records"
LOSS_ABOUT = (
    "Nats per token of the response; lower is better, and exp of it is the perplexity. Gap closed by loss: "
    "from the LLM before tuning to the LLM tuned on all records together. Accuracies leave free text out."
)
EFFECTS_TITLE = "The gap between the fused LLM and the ceiling, by cause"
EFFECTS_ABOUT = (
    "Points of accuracy, paired; the three effects add up to the gap. Size: the proxy minus the LLM, both "
    "tuned on pooled records. Federation: the method's proxy minus the proxy tuned on pooled records. "
    "Owner's edge: the fused LLM minus the method's proxy."
)
_DIFFERENCES_ABOUT = (
    "Each is a method's accuracy minus that of the column's method, paired by seed, or by record if there "
    "is one seed. Intervals are not corrected for multiple comparisons: some exclude zero by chance."
)
_LOSS_DIFFERENCES_ABOUT = (
    "Each is a method's loss minus that of the column's method, paired by seed, or by record if there is "
    "one seed. Below zero the method is better. Intervals are not corrected for multiple comparisons."
)
Compared = Literal["average", "average_norm", "loss"]  # which number of a difference
# title, what it is, unit
COMPARED: Mapping[Compared, tuple[str, str, str]] = {
    "average": ("Fused LLM, paired differences", _DIFFERENCES_ABOUT, "points"),
    "average_norm": ("Fused LLM by acc_norm, paired differences", _DIFFERENCES_ABOUT, "points"),
    "loss": ("Free text, paired differences in loss", _LOSS_DIFFERENCES_ABOUT, "nats"),
}


def comparison_tables(report: Report, *, by_task: bool = True) -> list[Table]:
    """Return a comparison's tables in reading order, without empty ones.

    `by_task`: whether accuracies have a column for each task, which needs space.
    """
    tables = (
        methods_table(report, by_task=by_task),
        norm_table(report, by_task=by_task),
        loss_table(report),
        *(difference_table(report, of) for of in COMPARED),
        scale_table(report),
        counting_table(report),
        effect_table(report),
        proxy_table(report),
    )
    return [t for t in tables if t is not None]


def methods_table(report: Report, *, by_task: bool = True) -> Table | None:
    """Return the methods' accuracies, or None if all tasks are free text."""
    labels = {
        "tuned_proxy": "tuned proxy (%)",
        "average": "fused LLM (%)",
        "gap_closed": "gap closed (%)",
        "owners_edge": "owner's edge (points)",
    }
    tasks = _names(row.tasks for row in report.rows) if by_task else []
    lines = [
        method_line(
            report,
            row,
            numbers_of(row, f"rows/{i}", labels) | numbers_by_task(row.tasks, f"rows/{i}/tasks", tasks),
            by="average",
        )
        for i, row in enumerate(report.rows)
    ]
    return table(METHODS_TITLE, "", labels | {on(t): f"{t} (%)" for t in tasks}, lines)


def norm_table(report: Report, *, by_task: bool = True) -> Table | None:
    """Return the accuracies by acc_norm, or None if they equal those by acc."""
    labels = {
        "average_norm": "average (%)",
        "gap_closed_norm": "gap closed (%)",
        "owners_edge_norm": "owner's edge (points)",
    }
    tasks = _norm_tasks(report)
    if not tasks:
        return None
    task_columns = tasks if by_task else []
    lines = [
        method_line(
            report,
            row,
            numbers_of(row, f"rows/{i}", labels)
            | numbers_by_task(row.tasks_norm, f"rows/{i}/tasks_norm", task_columns),
            by="average_norm",
        )
        for i, row in enumerate(report.rows)
        if row.average_norm is not None
    ]
    about = f"{NORM_ABOUT} {NORM_TASKS_ABOUT}" if by_task else NORM_ABOUT
    return table(NORM_TITLE, about, labels | {on(t): f"{t} (%)" for t in task_columns}, lines)


def loss_table(report: Report) -> Table | None:
    """Return the losses on free text, or None without free text."""
    labels = {
        "tuned_proxy_loss": "tuned proxy (nats)",
        "loss": "fused LLM (nats)",
        "perplexity": "perplexity",
        "loss_gap_closed": "gap closed by loss (%)",
    }
    tasks, lines = _names(row.tasks_loss for row in report.rows), []
    tasks = tasks if len(tasks) > 1 else []  # a single one is the mean
    for i, row in enumerate(report.rows):
        if row.loss is None:
            continue
        numbers = numbers_of(row, f"rows/{i}", labels)
        numbers["perplexity"] = Number(perplexity_of(row.loss), pointer(f"rows/{i}/loss"))
        numbers |= numbers_by_task(row.tasks_loss, f"rows/{i}/tasks_loss", tasks)
        lines.append(method_line(report, row, numbers, by="loss"))
    return table(LOSS_TITLE, LOSS_ABOUT, labels | {on(t): f"{t} (nats)" for t in tasks}, lines)


def difference_table(report: Report, of: Compared = "average") -> Table | None:
    """Return the paired differences of methods in one number, or None if there are none.

    There are none by acc_norm if it equals acc.
    """
    if of == "average_norm" and not _norm_tasks(report):
        return None
    title, about, unit = COMPARED[of]
    grid: dict[tuple[str, float | None], dict[str, Number]] = {}
    for i, pair in enumerate(report.differences):
        estimate: Estimate | None = getattr(pair, of)
        if estimate is not None:
            number = Number(estimate, pointer(f"differences/{i}/{of}"), signed=True)
            grid.setdefault((pair.method, pair.remove_ratio), {})[pair.against] = number
    order = sorted(grid, key=lambda key: (key[1] is not None, key[1] or 0))
    lines = [line(report, method, removed(ratio), grid[method, ratio]) for method, ratio in order]
    labels = {pair.against: f"minus {pair.against} ({unit})" for pair in report.differences}
    return table(title, about, labels, lines)


def effect_table(report: Report) -> Table | None:
    """Return the gap between methods and the ceiling by cause, or None if it is not known."""
    labels = {
        "size_effect": "size (points)",
        "federation_effect": "federation (points)",
        "owners_edge_effect": "owner's edge (points)",
    }
    lines = [
        method_line(report, row, numbers_of(row, f"rows/{i}", labels))
        for i, row in enumerate(report.rows)
        if row.size_effect is not None
    ]
    return table(EFFECTS_TITLE, EFFECTS_ABOUT, labels, lines)


def perplexity_of(loss: Estimate) -> Estimate:
    """Return exp of a loss and of its interval's ends, at most exp(700), which a float can hold."""

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


def _names(by_task: Iterable[Mapping[str, Estimate]]) -> list[str]:
    """Return the names of all tasks, without repeats."""
    return list(dict.fromkeys(task for tasks in by_task for task in tasks))


def _norm_tasks(report: Report) -> list[str]:
    """Return the tasks on which acc and acc_norm differ for some method."""
    return [
        task
        for task in _names(row.tasks_norm for row in report.rows)
        if any(_differ(row.tasks.get(task), row.tasks_norm.get(task)) for row in report.rows)
    ]


def _differ(a: Estimate | None, b: Estimate | None) -> bool:
    return a is not None and b is not None and (a.value, a.low, a.high) != (b.value, b.low, b.high)
