"""The page's tables of what a comparison's scale is worth: tasks, gap closed on some, proxies untuned."""

from __future__ import annotations

from fedproxy_secure.report.comparison import (
    LEARNED_ABOUT,
    LEARNED_TITLE,
    PROXIES_ABOUT,
    PROXIES_TITLE,
    SCALES_ABOUT,
    SCALES_TITLE,
    few_seeds,
    healing_state,
    learned_rows,
    proxy_lines,
)
from fedproxy_secure.report.html.tables import MethodTable, named, numbers_of
from fedproxy_secure.report.report import Report


def scale_table(report: Report) -> MethodTable | None:
    """Return what each task can show, or None if that is not known."""
    columns = {
        "constant": "constant answer (%)",
        "zero_shot": "zero-shot (%)",
        "ceiling": "ceiling (%)",
        "above_constant": "ceiling minus constant (points)",
        "above_zero_shot": "ceiling minus zero-shot (points)",
    }
    lines = []
    for i, scale in enumerate(report.task_scales):
        differences = ("above_constant", "above_zero_shot")
        numbers = numbers_of(scale, f"task_scales/{i}", columns, signed=differences)
        few = few_seeds(scale.ceiling.seeds, report.seeds)
        about = "counts" if scale.counts else "does not count"
        lines.append((scale.task, f"{about}, {few}" if few else about, numbers))
    if not lines:
        return None
    return MethodTable(
        title=SCALES_TITLE,
        about=SCALES_ABOUT,
        columns=tuple(columns.items()),
        lines=tuple(lines),
        of="task",
    )


def learned_table(report: Report) -> MethodTable | None:
    """Return the gap closed over the tasks that count, or None if all do, or none."""
    columns = {"gap_closed": "all tasks (%)", "gap_closed_counting": "tasks that count (%)"}
    lines = []
    for i, row in learned_rows(report):
        numbers = numbers_of(row, f"rows/{i}", columns)
        few = few_seeds(numbers["gap_closed_counting"].estimate.seeds, report.seeds)
        lines.append((*named(row.method, row.remove_ratio, few), numbers))
    if not lines:
        return None
    return MethodTable(
        title=LEARNED_TITLE, about=LEARNED_ABOUT, columns=tuple(columns.items()), lines=tuple(lines)
    )


def proxy_table(report: Report) -> MethodTable | None:
    """Return how like the LLM proxies are before tuning, or None if that is not known."""
    like = {
        "kl": "KL (nats)",
        "agreement": "same next token (%)",
        "proxy_perplexity": "perplexity",
        "llm_perplexity": "of the LLM",
        "cka": "CKA",
        "verbatim": "verbatim (%)",
    }
    columns = {**like, "above_llm": "accuracy (points)"}
    lines = []
    for i, key, made, above in proxy_lines(report):
        row = report.proxies[i]
        numbers = {} if made is None else numbers_of(made, f"proxies/{i}/{key}", like)
        if above is not None:
            numbers |= numbers_of(row, f"proxies/{i}", ("above_llm",), signed=("above_llm",))
        seeds = min((n.estimate.seeds for n in numbers.values()), key=len, default=())
        name, about = named("proxy", row.remove_ratio, few_seeds(seeds, report.seeds))
        lines.append((f"{name} {healing_state(row, key)}".strip(), about, numbers))
    if not lines:
        return None
    return MethodTable(
        title=PROXIES_TITLE,
        about=PROXIES_ABOUT,
        columns=tuple(columns.items()),
        lines=tuple(lines),
        of="proxy",
    )
