"""The trilemma as a table: one row per configuration in Markdown, one per measure in a terminal.

It shows the measures that people compare first; the report's page has all. A measure of attacks is the
worst that any attack of the suite reached, beside what is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.measure import AXES, MeasureKind
from fedproxy_secure.evidence.number import unit_text
from fedproxy_secure.report.sweep import keys_of, kind_of_measure
from fedproxy_secure.report.text.table import cell
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.escape import printable

if TYPE_CHECKING:
    from rich.table import Table

_MB = 1e6  # bytes are shown in MB, so that all rows of a column have one unit
_NAMES_WIDTH, _COLUMN_WIDTH = 15, 21  # widths in a terminal's table, borders included


def headings(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """Return "configuration", then the heading of every column that some configuration has a number for."""
    return ("configuration", *(_heading(kind) for _, kind in _columns(configurations)))


def lines(configurations: Sequence[Configuration]) -> list[tuple[str, ...]]:
    """Return the texts of each configuration in the order of `headings`; `-` where nothing was measured."""
    columns, rows = _columns(configurations), []
    for configuration in configurations:
        texts = []
        for key, kind in columns:
            measure = configuration.measure(key)
            texts.append("-" if measure is None else _text(measure.estimate, kind))
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
        table = Table(title=Text("value ± half a 95 % interval, or [interval]"))  # brackets are no markup
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


def _columns(configurations: Sequence[Configuration]) -> list[tuple[str, MeasureKind]]:
    """Return (key, kind) of the trilemma's measures that some configuration has, axis by axis."""
    keys = [key for axis in AXES for key in keys_of(configurations, axis)]
    kinds = [(key, kind_of_measure(configurations, key)) for key in keys]
    return [(key, kind) for key, kind in kinds if kind.in_trilemma]


def _heading(kind: MeasureKind) -> str:
    unit = "MB" if kind.unit == "bytes" else unit_text(kind.unit, signed=kind.signed)
    return kind.heading or (f"{kind.title} ({unit})" if unit else kind.title)


def _text(estimate: Estimate, kind: MeasureKind) -> str:
    exact = estimate.low == estimate.value == estimate.high
    low, high = (None, None) if exact else (estimate.low, estimate.high)
    if estimate.unit == "AUC":
        ends = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        return f"{estimate.value:.2f}{ends}"
    size = _MB if estimate.unit == "bytes" else 1.0
    scaled = replace(
        estimate,
        value=estimate.value / size,
        low=None if low is None else low / size,
        high=None if high is None else high / size,
    )
    return cell(scaled, signed=kind.signed)
