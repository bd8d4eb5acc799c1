"""Tables as text: Markdown for files, rich for terminals.

Shares are shown in percent, differences of shares in points. `71.3 ± 2.1` is a mean with half its 95 %
interval; `71.3 [69.0, 73.5]` has an asymmetric interval; `71.3` has none, or was counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.tables.comparison import comparison_tables
from fedproxy_secure.report.tables.table import Line, Table
from fedproxy_secure.runtime.escape import Markdown, escaped, escaped_line, printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def cell(number: Number | None, *, unit: bool = False) -> str:
    """Return a number's value and interval, with its unit if `unit`; `-` for None."""
    if number is None:
        return "-"
    return number.short if unit else f"{number.text} {number.spread}".rstrip()


def table_rows(table: Table) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return a table's headings and its lines as texts; the last two columns are n and seeds."""
    headings = (table.name_heading, table.beside, *(label for _, label in table.columns), "n", "seeds")
    return headings, [_cells(table, line) for line in table.lines]


def markdown_of(table: Table) -> list[str]:
    """Return a table as parts of a Markdown file: its title, its lines, and its explanation."""
    about = [escaped_line(table.about)] if table.about else []
    return [f"## {table.title}", markdown_table(*table_rows(table)), *about]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Return a Markdown table with the first column on the left, and the others right-aligned.

    Without `right` the other columns are left-aligned as well. Texts are escaped unless they are
    `Markdown`.
    """
    rule = [Markdown(r) for r in ("---", *["---:" if right else "---"] * (len(headings) - 1))]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in (headings, rule, *rows))


def markdown_items(lines: Sequence[str]) -> str:
    """Return a Markdown list of lines, which are escaped."""
    return "\n".join(f"- {escaped_line(line)}" for line in lines)


def rich_tables(report: Report) -> list[RichTable]:
    """Return a comparison's tables for a terminal, as narrow as possible.

    Accuracies by task and n are left out, and so is the column of seeds if every line has all seeds, and
    several. An explanation that several tables share is shown once.
    """
    tables = comparison_tables(report, by_task=False)
    first_of = {t.about: t for t in reversed(tables)}  # the first table of each
    return [_rich(table, table.about if first_of[table.about] is table else "") for table in tables]


def _cells(table: Table, line: Line) -> tuple[str, ...]:
    estimate = line.rests_on
    return (
        line.name,
        line.about.removesuffix(f" {table.beside}") or "-",
        *(cell(line.numbers.get(key)) for key, _ in table.columns),
        "-" if estimate is None else str(estimate.n),
        line.few.removesuffix(" seeds") or ("-" if estimate is None else str(len(estimate.seeds))),
    )


def _rich(table: Table, about: str) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    caption = Text(printable(about), style="table.caption") if about else None
    rich_table = RichTable(title=Text(printable(table.title)), caption=caption, caption_justify="left")
    headings, lines = table_rows(table)
    left_out = {len(headings) - 2, *([] if any(line.few for line in table.lines) else [len(headings) - 1])}
    for index, heading in enumerate(headings):
        if index not in left_out:  # as Text: brackets are not markup
            rich_table.add_column(
                Text(printable(heading)), justify="right" if index else "left", overflow="fold"
            )
    for line in lines:
        rich_table.add_row(*(Text(printable(text)) for i, text in enumerate(line) if i not in left_out))
    return rich_table
