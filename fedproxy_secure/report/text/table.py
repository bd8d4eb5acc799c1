"""The methods of a comparison as a table: Markdown for files, rich for terminals.

Shares are shown in percent, differences of shares in points. `71.3 ± 2.1` is a mean with half its 95 %
interval; `71.3 [69.0, 73.5]` has an interval that is not symmetric; `71.3` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.runtime.escape import Markdown, escaped, printable

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = (
    "method",
    "removed",
    "tuned proxy (%)",
    "fused LLM (%)",
    "gap closed (%)",
    "owner's edge (points)",
)


def cell(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return one number as text; `-` for None; `signed` shows a plus sign too."""
    if estimate is None:
        return "-"
    scale = 100.0 if estimate.unit == "share" else 1.0
    value = scale * estimate.value
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    if estimate.low is None or estimate.high is None:
        return text
    low, high = scale * estimate.low, scale * estimate.high
    if abs((low + high) / 2 - value) < 0.05:
        return f"{text} ± {(high - low) / 2:.1f}"
    return f"{text} [{low:.1f}, {high:.1f}]"


def cells(row: MethodRow) -> tuple[str, ...]:
    """Return the row's texts in the order of `HEADINGS`."""
    return (
        row.method,
        "-" if row.remove_ratio is None else f"{row.remove_ratio:.0%}",
        cell(row.tuned_proxy),
        cell(row.average),
        cell(row.gap_closed),
        cell(row.owners_edge, signed=True),
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Return a Markdown table with the first column on the left, and the others right-aligned.

    Without `right` the other columns are left-aligned as well. Texts are escaped unless they are
    `Markdown`.
    """
    rule = [Markdown(r) for r in ("---", *["---:" if right else "---"] * (len(headings) - 1))]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in (headings, rule, *rows))


def rich_table(report: Report) -> Table:
    """Return the same table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(report.name)))
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in report.rows:
        table.add_row(*(Text(printable(text)) for text in cells(row)))  # as Text: brackets are not markup
    return table
