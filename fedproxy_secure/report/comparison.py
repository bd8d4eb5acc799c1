"""What a comparison shows beside its methods: acc_norm, losses, paired differences, tasks, proxies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.report import Fidelity, MethodDifference, MethodRow, ProxyRow, Report

NORM_TITLE = "Fused LLM by acc_norm"
NORM_ABOUT = (
    "acc_norm divides a choice's log-likelihood by its length in characters; tables that do not name it "
    "are by acc."
)
NORM_TASKS_ABOUT = "Tasks where the two are the same for every method are left out."
_DIFFERENCES_ABOUT = (
    "Each is a method's accuracy minus that of the column's method, paired by seed, or by record if there "
    "is one seed. Intervals are not corrected for multiple comparisons: some exclude zero by chance."
)
LOSS_TITLE = "Free text: loss on test records"
LOSS_ABOUT = (
    "Nats per token of the response; lower is better, and exp of it is the perplexity. Gap closed by loss: "
    "from the LLM before tuning to the LLM tuned on all records together. Accuracies leave free text out."
)
_LOSS_DIFFERENCES_ABOUT = (
    "Each is a method's loss minus that of the column's method, paired by seed, or by record if there is "
    "one seed. Below zero the method is better. Intervals are not corrected for multiple comparisons."
)
EFFECTS_TITLE = "The gap between the fused LLM and the ceiling, by cause"
EFFECTS_ABOUT = (
    "Points of accuracy, paired; the three effects add up to the gap. Size: the proxy minus the LLM, both "
    "tuned on pooled records. Federation: the method's proxy minus the proxy tuned on pooled records. "
    "Owner's edge: the fused LLM minus the method's proxy."
)
SCALES_TITLE = "What each task can show"
SCALES_ABOUT = (
    "The ceiling is the LLM tuned on all records together, zero-shot the LLM before tuning, the constant "
    "answer the one that training records have most often. A task counts where the ceiling is above both, "
    "beyond the intervals; it is chosen by the same test records."
)
LEARNED_TITLE = "Gap closed on tasks that count"
LEARNED_ABOUT = "Over all tasks, and over those that count alone, between the same two models."
PROXIES_TITLE = "Proxies before tuning"
PROXIES_ABOUT = (
    "On public text that healing does not read. compress.importance may have chosen blocks by it; "
    "the KL is then a little too low. KL: of the LLM's next-token distributions to the proxy's. "
    "Perplexity: the proxy's, and the LLM's. CKA: mean over blocks. Verbatim: weights of the LLM that the "
    "proxy holds bit for bit. Accuracy: the proxy's minus the LLM's, in points, both untuned."
)
Compared = Literal["average", "average_norm", "loss"]  # which number of a difference
# title, what it is, unit
DIFFERENCES: Mapping[Compared, tuple[str, str, str]] = {
    "average": ("Fused LLM, paired differences", _DIFFERENCES_ABOUT, "points"),
    "average_norm": ("Fused LLM by acc_norm, paired differences", _DIFFERENCES_ABOUT, "points"),
    "loss": ("Free text, paired differences in loss", _LOSS_DIFFERENCES_ABOUT, "nats"),
}
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


def norm_columns(report: Report) -> dict[str, str]:
    """Return what the table by acc_norm has beside tasks: fields of `MethodRow` and their headings."""
    titles = {
        "average_norm": "average (%)",
        "gap_closed_norm": "gap closed (%)",
        "owners_edge_norm": "owner's edge (points)",
    }
    there = (key for key in titles if any(getattr(row, key) is not None for row in report.rows))
    return {key: titles[key] for key in there}


def learned_about(report: Report) -> str:
    """Return which tasks count, and what follows for the gap closed; empty where that is not known."""
    if not report.task_scales:
        return ""
    names = [scale.task for scale in report.task_scales if scale.counts]
    if not names:
        return "No task counts: on none the ceiling is above both, beyond the intervals."
    return f"{len(names)} of {len(report.task_scales)} tasks count: {', '.join(names)}."


def learned_rows(report: Report) -> list[tuple[int, MethodRow]]:
    """Return the rows with a gap closed over the tasks that count, if some do and others do not."""
    if all(scale.counts for scale in report.task_scales):
        return []
    return [(i, row) for i, row in enumerate(report.rows) if row.gap_closed_counting is not None]


def proxy_lines(report: Report) -> list[tuple[int, str, Fidelity | None, Estimate | None]]:
    """Return the proxies before and after healing.

    Each has its place in `Report.proxies`, the field of `ProxyRow` that its fidelity stands in, that
    fidelity, and by how much its accuracy is above the LLM's, where that was measured.
    """
    lines: list[tuple[int, str, Fidelity | None, Estimate | None]] = []
    for i, row in enumerate(report.proxies):
        if row.before_healing is not None:
            lines.append((i, "before_healing", row.before_healing, None))
        lines.append((i, "fidelity", row.fidelity, row.above_llm))
    return lines


def healing_state(row: ProxyRow, key: str) -> str:
    """Return which proxy a line of `proxy_lines` is of; empty if none was healed, or that is not known."""
    if row.before_healing is None:
        return ""
    return "before healing" if key == "before_healing" else "healed"


def difference_lines(report: Report, of: Compared = "average") -> tuple[list[str], list[Line]]:
    """Return the methods that others are paired with, and a line for each other method and remove ratio.

    `of`: the number that lines must have. By acc_norm there are none where it is the same as acc.
    """
    if of == "average_norm" and not norm_tasks(report):
        return [], []
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
