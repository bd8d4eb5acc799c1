"""The report as a comment on a pull request that fits a screen, written to `summary.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.page_words import attacks_in_order
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import labelled
from fedproxy_secure.report.tables.comparison import methods_table
from fedproxy_secure.report.tables.measures import first_tables, stamps
from fedproxy_secure.report.text.table import cell, markdown_table, table_rows
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.escape import Markdown, code, escaped, escaped_line
from fedproxy_secure.runtime.files.names import REPORT_PAGE

SUMMARY_NAME = "summary.md"
RED = (Outcome.SUCCEEDED, Outcome.ERROR)
_MOST = 20  # most red findings that are listed; further ones are only counted


def write_pull_request_summary(report: Report, folder: Path) -> Path:
    """Write `summary.md` into `folder`, atomically, and return its path.

    Raises `RunFolderError` if the folder cannot be written.
    """
    write_bytes(folder / SUMMARY_NAME, pull_request_summary(report).encode())
    return folder / SUMMARY_NAME


def pull_request_summary(report: Report) -> str:
    """Return stamps, the trilemma, what went wrong, and where to read on."""
    parts = [f"## {escaped(report.name)}: performance, privacy, IP"]
    parts += [
        f"> [!CAUTION]\n> **Unsafe.** {escaped(stamp)}\n> {escaped_line('; '.join(names))}"
        for stamp, names in stamps(report)
    ]
    lacking = [f"Not finished: {line}" for line in report.unfinished]
    lacking += [f"Failed: {c.name}: {line}" for c in report.configurations for line in c.failed]
    if lacking:
        parts.append("> [!WARNING]\n" + "\n".join(f"> {escaped(line)}" for line in lacking))
    if report.configurations:
        parts.append(_trilemma(report))
    if report.composition:
        parts.append("\n".join(f"- {escaped_line(line)}" for line in report.composition))
    if methods := methods_table(report):
        parts.append(markdown_table(*table_rows(methods)))
    parts += _findings(report)
    missing = len(report.not_measured)
    if missing:
        parts.append(f"{missing} {'thing was' if missing == 1 else 'things were'} not measured.")
    parts.append(
        f"All numbers, sources and guarantees: [{REPORT_PAGE}]({REPORT_PAGE}). "
        f"Settings {code(report.config_sha256[:12])}, seeds {', '.join(map(str, report.seeds))}."
    )
    return "\n\n".join(parts) + "\n"


def _trilemma(report: Report) -> str:
    columns = [c for table in first_tables(report) for c in table.columns]
    headings = ["configuration", *(f"{c.label} {c.arrow}".strip() for c in columns)]
    rows = []
    for item in labelled(report.configurations):
        stamp = " **(unsafe)**" if item.configuration.unsafe else ""
        name = Markdown(escaped(item.name) + stamp)
        rows.append([name, *(cell(item.number(c.key), unit=not c.unit) for c in columns)])
    legend = "± is half a 95 % interval; ↑ higher is better, ↓ lower."
    return f"{markdown_table(headings, rows)}\n\n{legend}"


def _findings(report: Report) -> list[str]:
    """Return the red findings as a table, and counts of all outcomes."""
    every = [(c.name, f) for c in report.configurations for f in c.findings]
    if not every:
        return []
    by_outcome = [(o, sum(f.outcome == o for _, f in every)) for o in Outcome]
    counts = ", ".join(f"{n} {str(o).lower().replace('_', ' ')}" for o, n in by_outcome if n)
    parts = [f"**Attacks:** {counts}. Resisted is no proof of safety."]
    red = [row for o in RED for row in _red_rows([p for p in every if p[1].outcome == o])]
    if red:
        headings = ["attack", "view", "outcome", "configurations", "highest measured"]
        parts.append(markdown_table(headings, red[:_MOST], right=False))
    if len(red) > _MOST:
        parts.append(f"and {len(red) - _MOST} more.")
    return parts


def _red_rows(every: Sequence[tuple[str, Finding]]) -> list[list[str]]:
    """Return one line for each attack and view, with all configurations in which it is red."""
    rows = []
    for id, attack in attacks_in_order([f for _, f in every]):
        for view in dict.fromkeys(f.view for _, f in every if f.attack == attack):
            group = [(n, f) for n, f in every if (f.id, f.attack, f.view) == (id, attack, view)]
            heads = [f.headline for _, f in group if f.headline is not None]
            worst = max(heads, key=lambda e: e.value, default=None)
            measured = group[0][1].reason if worst is None else f"{worst.metric} {Number(worst, '').short}"
            names = "; ".join(dict.fromkeys(n for n, _ in group))
            rows.append([f"{id} {attack}", view, str(group[0][1].outcome), names, measured])
    return rows
