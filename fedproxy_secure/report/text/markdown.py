"""The whole report as Markdown, written to `report.md`."""

from __future__ import annotations

from collections.abc import Sequence

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.tables.comparison import comparison_tables
from fedproxy_secure.report.tables.measures import comparison_lines
from fedproxy_secure.report.text import trilemma_table
from fedproxy_secure.report.text.owner import owner_lines
from fedproxy_secure.report.text.protections import side_lines, verdict_lines
from fedproxy_secure.report.text.table import cell, markdown_items, markdown_of, markdown_table
from fedproxy_secure.runtime.escape import code, escaped, printable


def markdown_report(report: Report) -> str:
    """Return the whole report as Markdown: methods, tasks, other estimates, notes, the command."""
    parts = [f"# {escaped(report.name)}"]
    parts += [markdown_items(told)] if (told := comparison_lines(report)) else []
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
    for table in comparison_tables(report):
        parts += markdown_of(table)
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
        f"    {printable(report.command)}",  # indented, so code, which has no markup
        f"Settings: SHA-256 {code(report.config_sha256)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _estimates(estimates: Sequence[Estimate]) -> str:
    headings = ("metric", "value", "unit", "n", "seeds", "how")
    lines = []
    for e in estimates:
        number, seeds = Number(e, ""), ", ".join(map(str, e.seeds))
        lines.append((e.metric, cell(number), number.unit or e.unit, str(e.n), seeds, e.how))
    return markdown_table(headings, lines)


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
