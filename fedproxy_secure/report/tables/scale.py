"""Tables on a comparison's scale: what each task can show, and the fidelity of the proxies."""

from __future__ import annotations

from fedproxy_secure.report.report import Report
from fedproxy_secure.report.tables.table import Table, line, method_line, numbers_of, removed, table

SCALES_TITLE = "What each task can show"
SCALES_ABOUT = (
    "The ceiling is the LLM tuned on all records together, zero-shot the LLM before tuning, the constant "
    "answer the one that training records have most often. A task counts where the ceiling is above both, "
    "beyond the intervals; it is chosen by the same test records."
)
COUNTING_TITLE = "Gap closed on tasks that count"
COUNTING_ABOUT = "Over all tasks, and over those that count alone, between the same two models."
PROXIES_TITLE = "Proxies before tuning"
PROXIES_ABOUT = (
    "On public text that nothing was chosen or healed by. KL: of the LLM's next-token distributions to the "
    "proxy's. Perplexity: the proxy's, and the LLM's. CKA: mean over blocks. Verbatim: weights of the LLM "
    "that the proxy holds bit for bit. Accuracy: the proxy's minus the LLM's, in points, both untuned."
)


def scale_table(report: Report) -> Table | None:
    """Return the table of the tasks' scales, or None if they are not known."""
    labels = {
        "constant": "constant answer (%)",
        "zero_shot": "zero-shot (%)",
        "ceiling": "ceiling (%)",
        "above_constant": "ceiling minus constant (points)",
        "above_zero_shot": "ceiling minus zero-shot (points)",
    }
    lines = [
        line(
            report,
            scale.task,
            "counts" if scale.counts else "does not count",
            numbers_of(scale, f"task_scales/{i}", labels),
            by="ceiling",
        )
        for i, scale in enumerate(report.task_scales)
    ]
    names = [scale.task for scale in report.task_scales if scale.counts]
    conclusion = (
        f"{len(names)} of {len(lines)} tasks count: {', '.join(names)}."
        if names
        else "No task counts: on none the ceiling is above both, beyond the intervals."
    )
    return table(SCALES_TITLE, f"{SCALES_ABOUT} {conclusion}", labels, lines, of="task", beside="counts")


def counting_table(report: Report) -> Table | None:
    """Return the gap closed over the tasks that count, or None if all do, or none."""
    labels = {"gap_closed": "all tasks (%)", "gap_closed_counting": "tasks that count (%)"}
    if all(scale.counts for scale in report.task_scales):
        return None
    lines = [
        method_line(report, row, numbers_of(row, f"rows/{i}", labels), by="gap_closed_counting")
        for i, row in enumerate(report.rows)
        if row.gap_closed_counting is not None
    ]
    return table(COUNTING_TITLE, COUNTING_ABOUT, labels, lines)


def proxy_table(report: Report) -> Table | None:
    """Return the table of the untuned proxies' fidelity, or None if it is not known."""
    like = {
        "kl": "KL (nats)",
        "agreement": "same next token (%)",
        "proxy_perplexity": "perplexity",
        "llm_perplexity": "of the LLM",
        "cka": "CKA",
        "verbatim": "verbatim (%)",
    }
    lines = []
    for i, row in enumerate(report.proxies):
        place, about, name = f"proxies/{i}", removed(row.remove_ratio), "proxy"
        if row.before_healing is not None:
            numbers = numbers_of(row.before_healing, f"{place}/before_healing", like)
            lines.append(line(report, "proxy before healing", about, numbers))
            name = "proxy healed"
        numbers = numbers_of(row.fidelity, f"{place}/fidelity", like)
        lines.append(line(report, name, about, numbers | numbers_of(row, place, ("above_llm",))))
    labels = like | {"above_llm": "accuracy (points)"}
    return table(PROXIES_TITLE, PROXIES_ABOUT, labels, lines, of="proxy")
