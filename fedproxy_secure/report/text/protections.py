"""Protections beside no protection as Markdown: verdicts as a list, attacks side by side as a table."""

from __future__ import annotations

from fedproxy_secure.report.protections.rows import ABOUT as SIDE_ABOUT
from fedproxy_secure.report.protections.rows import NOT_PAIRED, SideCell, SideRow, side_table
from fedproxy_secure.report.protections.rows import TITLE as SIDE_TITLE
from fedproxy_secure.report.protections.verdicts import ABOUT, TITLE, SurfaceVerdict, in_words, verdicts
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.table import markdown_table
from fedproxy_secure.runtime.escape import escaped_line


def verdict_lines(report: Report) -> list[str]:
    """Return the verdicts on every surface as parts of a Markdown file; none where there are none."""
    said = verdicts(report)
    if said is None:
        return []
    lines = [line for verdict in said.rows for line in _lines(verdict, said.kinds)]
    return [f"## {TITLE}", ABOUT, "\n".join(lines)]


def side_lines(report: Report) -> list[str]:
    """Return the attacks side by side as parts of a Markdown file; none where there are none."""
    table = side_table(report)
    if table is None:
        return []
    headings = ("attack", "view", "surface", "headline", table.base, "would have shown", *table.kinds)
    return [f"## {SIDE_TITLE}", markdown_table(headings, [_row(row) for row in table.rows]), SIDE_ABOUT]


def _lines(verdict: SurfaceVerdict, kinds: tuple[str, ...]) -> list[str]:
    where = ", ".join(part for part in (verdict.surface, verdict.rest) if part)
    name = f"- **{escaped_line(where[:1].upper() + where[1:])}** ({escaped_line(verdict.about)})"
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
    read = ", ".join(part for part in (row.surface or "-", row.rest) if part)
    could = "-" if row.could_show is None else f">= {row.could_show.short}"
    return (
        f"{row.id} {row.attack}",
        row.view,
        read,
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
