"""The trilemma as a table: one row per configuration in Markdown, one per measure in a terminal.

It shows the main measures; the report's page has all. A measure of attacks is the worst number of any
attack of the suite, shown beside the claimed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.report.sweep import shown
from fedproxy_secure.report.tables.measures import trilemma_columns
from fedproxy_secure.report.text.table import cell
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.escape import printable

if TYPE_CHECKING:
    from rich.table import Table

_NAMES_WIDTH, _COLUMN_WIDTH = 15, 21  # widths in a terminal's table, borders included


def headings(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """Return "configuration", then the heading of every column with a number of some configuration."""
    return ("configuration", *(c.heading or c.label for c in trilemma_columns(configurations)))


def lines(configurations: Sequence[Configuration]) -> list[tuple[str, ...]]:
    """Return the texts of each configuration in the order of `headings`; `-` if nothing was measured."""
    columns, rows = trilemma_columns(configurations), []
    for configuration in configurations:
        measures = [(c, configuration.measure(c.key)) for c in columns]
        texts = [cell(None if m is None else shown(m), unit=not c.unit) for c, m in measures]
        stamp = " (unsafe)" if configuration.unsafe else ""
        rows.append((configuration.name + stamp, *texts))
    return rows


def rich_trilemma(configurations: Sequence[Configuration], *, width: int) -> list[Table]:
    """Return tables for a terminal of `width` columns, one row per measure.

    Each table has as many configurations as fit.
    """
    from rich.table import Table
    from rich.text import Text

    texts = lines(configurations)
    beside = max(1, (width - _NAMES_WIDTH) // _COLUMN_WIDTH)
    tables = []
    for start in range(0, len(texts), beside):
        table = Table(
            title=Text("value ± half a 95 % interval, or [interval]")
        )  # as Text: brackets are not markup
        table.add_column("measure", overflow="fold", max_width=_NAMES_WIDTH)
        for name, *_ in texts[start : start + beside]:
            table.add_column(Text(printable(name)), justify="right", overflow="fold")
        for row, heading in enumerate(headings(configurations)[1:], start=1):
            table.add_row(
                Text(printable(heading)),
                *(Text(row_texts[row]) for row_texts in texts[start : start + beside]),
            )
        tables.append(table)
    return tables
