"""How much of the LLM clients obtain as Markdown: a list with an entry for each proxy."""

from __future__ import annotations

from fedproxy_secure.report.owner import ABOUT, TITLE, owners_rows
from fedproxy_secure.report.protections.verdicts import in_words
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.escape import escaped_line


def owner_lines(report: Report) -> list[str]:
    """Return the sentences on each proxy as parts of a Markdown file; none if nothing was measured."""
    rows = owners_rows(report)
    if not rows:
        return []
    lines = []
    for row in rows:
        text = escaped_line(" ".join(map(in_words, row.sentences)))
        name = f"**{escaped_line(row.proxy[:1].upper() + row.proxy[1:])}**: " if row.proxy else ""
        lines.append(f"- {name}{text}")
    return [f"## {TITLE}", "\n".join(lines), ABOUT]
