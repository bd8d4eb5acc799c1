"""The whole report as Markdown, written to `report.md`."""

from __future__ import annotations

from collections.abc import Sequence

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.comparison import (
    DIFFERENCES,
    EFFECTS_ABOUT,
    EFFECTS_TITLE,
    LEARNED_ABOUT,
    LEARNED_TITLE,
    LOSS_ABOUT,
    LOSS_TITLE,
    NORM_ABOUT,
    NORM_TASKS_ABOUT,
    NORM_TITLE,
    PROXIES_ABOUT,
    PROXIES_TITLE,
    SCALES_ABOUT,
    SCALES_TITLE,
    is_all_free_text,
    learned_about,
)
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.report.text import trilemma_table
from fedproxy_secure.report.text.owner import owner_lines
from fedproxy_secure.report.text.protections import side_lines, verdict_lines
from fedproxy_secure.report.text.table import (
    HEADINGS,
    cell,
    cells,
    difference_table,
    effect_table,
    learned_table,
    loss_table,
    markdown_items,
    markdown_table,
    norm_table,
    proxy_table,
    scale_table,
)
from fedproxy_secure.runtime.escape import code, escaped, escaped_line, printable


def markdown_report(report: Report) -> str:
    """Return the whole report as Markdown: methods, tasks, other estimates, notes, the command."""
    parts = [f"# {escaped(report.name)}"]
    parts += verdict_lines(report)
    if report.configurations:
        parts += [
            "## Performance, privacy, IP, cost",
            markdown_table(
                trilemma_table.headings(report.configurations), trilemma_table.lines(report.configurations)
            ),
        ]
        lines = [f"{c.name}: {line}" for c in report.configurations for line in (*c.unsafe, *c.failed)]
        parts += [markdown_items([*lines, *report.composition])] if lines or report.composition else []
    parts += owner_lines(report)
    parts += side_lines(report)
    if report.rows:
        if not is_all_free_text(report):
            parts += [markdown_table(HEADINGS, [cells(row, report.seeds) for row in report.rows])]
        parts += _tasks(report.rows)
        parts += _more(NORM_TITLE, norm_table(report), f"{NORM_ABOUT} {NORM_TASKS_ABOUT}")
        parts += _more(LOSS_TITLE, loss_table(report), LOSS_ABOUT)
        for of, (title, said, unit) in DIFFERENCES.items():
            parts += _more(f"{title} ({unit})", difference_table(report, of), said)
        about = escaped_line(f"{SCALES_ABOUT} {learned_about(report)}")  # with tasks' names
        parts += _more(SCALES_TITLE, scale_table(report), about)
        parts += _more(LEARNED_TITLE, learned_table(report), LEARNED_ABOUT)
        parts += _more(f"{EFFECTS_TITLE} (points)", effect_table(report), EFFECTS_ABOUT)
    parts += _more(PROXIES_TITLE, proxy_table(report), PROXIES_ABOUT)
    if report.estimates:
        parts += ["## Other estimates", _estimates(report.estimates)]
    parts += ["## How to read it", _legend(report)]
    if report.guarantees:
        parts += ["## Guarantees", markdown_items(report.guarantees)]
    if report.not_measured:
        parts += ["## Not measured", markdown_items(report.not_measured)]
    if report.notes:
        parts += ["## Notes", markdown_items(report.notes)]
    parts += [
        "## Run it again",
        f"    {printable(report.command)}",  # indented: code, in which no character is markup
        f"Settings: SHA-256 {code(report.config_sha256)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _tasks(rows: Sequence[MethodRow]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.tasks))
    if not names:
        return []
    lines = [(*cells(row)[:2], *(cell(row.tasks.get(n)) for n in names)) for row in rows]
    return ["## Fused LLM by task (%)", markdown_table(("method", "removed", *names), lines)]


def _more(title: str, table: tuple[Sequence[str], Sequence[Sequence[str]]], about: str) -> list[str]:
    headings, lines = table
    return [f"## {title}", markdown_table(headings, lines), about] if lines else []


def _estimates(estimates: Sequence[Estimate]) -> str:
    headings = ("metric", "value", "unit", "n", "seeds", "how")
    lines = []
    for e in estimates:
        unit = "%" if e.unit == "share" else e.unit
        seeds = ", ".join(map(str, e.seeds))
        lines.append((e.metric, _precise(e), unit, str(e.n), seeds, e.how))
    return markdown_table(headings, lines)


def _precise(estimate: Estimate) -> str:
    """Return a share in percent, and any other number with four significant digits."""
    if estimate.unit == "share":
        return cell(estimate)
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def _legend(report: Report) -> str:
    seeds = ", ".join(map(str, report.seeds))
    measured = [e for row in report.rows for e in (row.average, row.loss) if e is not None]
    how = "; ".join(dict.fromkeys(e.how for e in measured))
    return (
        f"Seeds: {seeds}. ± is half a 95 % interval{f' ({escaped(how)})' if how else ''}.\n"
        "Gap closed: 0 is the LLM before tuning (zero-shot), 100 the LLM tuned on all records together.\n"
        "Owner's edge: the fused LLM, which only the server has, minus the tuned proxy, which\n"
        "every client has."
    )
