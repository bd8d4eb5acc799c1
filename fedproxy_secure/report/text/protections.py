"""Protections compared with no protection as Markdown: a list of verdicts, and a table of attacks."""

from __future__ import annotations

from fedproxy_secure.report.protections.rows import ABOUT as SIDE_ABOUT
from fedproxy_secure.report.protections.rows import NOT_PAIRED, SideCell, SideRow, side_table
from fedproxy_secure.report.protections.rows import TITLE as SIDE_TITLE
from fedproxy_secure.report.protections.verdicts import ABOUT, TITLE, SurfaceVerdict, in_words, verdicts
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.table import markdown_table
from fedproxy_secure.runtime.escape import escaped_line


def verdict_lines(report: Report) -> list[str]:
    """Return the verdicts on every surface as parts of a Markdown file; none without verdicts."""
    judgements = verdicts(report)
    if judgements is None:
        return []
    lines = [line for verdict in judgements.rows for line in _lines(verdict, judgements.kinds)]
    return [f"## {TITLE}", ABOUT, "\n".join(lines)]


def side_lines(report: Report) -> list[str]:
    """Return the attacks side by side as parts of a Markdown file; none without differences."""
    table = side_table(report)
    if table is None:
        return []
    headings = ("attack", "view", "surface", "headline", table.base, "would have shown", *table.kinds)
    return [f"## {SIDE_TITLE}", markdown_table(headings, [_row(row) for row in table.rows]), SIDE_ABOUT]


def _lines(verdict: SurfaceVerdict, kinds: tuple[str, ...]) -> list[str]:
    title = ", ".join(part for part in (verdict.surface, verdict.rest) if part)
    name = f"- **{escaped_line(title[:1].upper() + title[1:])}** ({escaped_line(verdict.about)})"
    if verdict.warning:
        return [f"{name}: {escaped_line(in_words(verdict.warning))}"]
    return [
        name,
        *(
            f"    - {escaped_line(kind)}: {escaped_line(' '.join(map(in_words, cell)) or 'not attacked')}"
            for kind, cell in zip(kinds, verdict.cells, strict=True)
        ),
    ]


def _row(row: SideRow) -> tuple[str, ...]:
    surface = ", ".join(part for part in (row.surface or "-", row.rest) if part)
    could = "-" if row.could_show is None else f">= {row.could_show.short}"
    return (
        f"{row.id} {row.attack}",
        row.view,
        surface,
        row.metric,
        row.base.short,
        could,
        *map(_cell, row.cells),
    )


def _cell(cell: SideCell | None) -> str:
    if cell is None:
        return "-"
    if cell.value is None or cell.difference is None:
        return "no number"
    paired = "" if cell.paired else f", {NOT_PAIRED}"
    return f"{cell.value.short}; difference {cell.difference.short}{paired}"
