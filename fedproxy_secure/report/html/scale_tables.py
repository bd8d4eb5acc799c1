"""The page's tables of what a comparison's scale is worth: tasks, gap closed on some, proxies untuned."""

from __future__ import annotations

from fedproxy_secure.evidence.number import Number
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
from fedproxy_secure.report.html.tables import MethodTable, named
from fedproxy_secure.report.report import Report, pointer


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
        numbers = {
            key: Number(
                getattr(scale, key), pointer(f"task_scales/{i}/{key}"), points=key.startswith("above")
            )
            for key in columns
        }
        few = few_seeds(scale.ceiling.seeds, report.seeds)
        about = "counts" if scale.learned else "does not count"
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
    columns = {"gap_closed": "all tasks (%)", "gap_closed_learned": "tasks that count (%)"}
    lines = []
    for i, row in learned_rows(report):
        made = {key: getattr(row, key) for key in columns}
        numbers = {key: Number(e, pointer(f"rows/{i}/{key}")) for key, e in made.items() if e is not None}
        few = few_seeds(made["gap_closed_learned"].seeds, report.seeds)
        lines.append((*named(row.method, row.remove_ratio, few), numbers))
    if not lines:
        return None
    return MethodTable(
        title=LEARNED_TITLE, about=LEARNED_ABOUT, columns=tuple(columns.items()), lines=tuple(lines)
    )


def proxy_table(report: Report) -> MethodTable | None:
    """Return how like the LLM proxies are before tuning, or None if that is not known."""
    columns = {
        "kl": "KL (nats)",
        "agreement": "same next token (%)",
        "proxy_perplexity": "perplexity",
        "llm_perplexity": "of the LLM",
        "cka": "CKA",
        "verbatim": "verbatim (%)",
        "above_llm": "accuracy (points)",
    }
    lines = []
    for i, key, likeness, above in proxy_lines(report):
        source = pointer(f"proxies/{i}")
        numbers = {
            name: Number(made, f"{source}/{key}/{name}")
            for name in columns
            if likeness is not None and (made := getattr(likeness, name, None)) is not None
        }
        if above is not None:
            numbers["above_llm"] = Number(above, f"{source}/above_llm", points=True)
        seeds = min((n.estimate.seeds for n in numbers.values()), key=len, default=())
        row = report.proxies[i]
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
