"""Results of attacks as text: one line each, a table for terminals, Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.finding import Finding, Outcome
from fedproxy_secure.report.table import markdown_table

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("attack", "view", "outcome", "headline", "value", "positive", "negative", "seconds")
STYLES = {Outcome.SUCCEEDED: "bold red", Outcome.ERROR: "red", Outcome.RESISTED: "green"}


def number(estimate: Estimate | None) -> str:
    """`0.594 [0.553, 0.634]`; `-` for none."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def cells(result: Finding) -> tuple[str, ...]:
    """In the order of `HEADINGS`."""
    headline = result.headline
    return (
        f"{result.id} {result.attack}",
        result.view,
        str(result.outcome),
        headline.metric if headline is not None else result.reason,
        number(headline),
        number(result.positive),
        number(result.negative),
        f"{result.seconds:.1f}",
    )


def outcome_line(result: Finding) -> str:
    """For a terminal, as results come."""
    return f"{result.outcome:<14} {result.id} {result.attack}, {result.view}: {result.reason}"


def rich_table(results: Sequence[Finding]) -> Table:
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="attacks: value [95 % interval], and the same attack's controls")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index > 3 else "left", overflow="fold")
    for result in results:
        texts = [Text(c) for c in cells(result)]
        texts[2].stylize(STYLES.get(result.outcome, ""))
        table.add_row(*texts)
    return table


def markdown(results: Sequence[Finding]) -> str:
    """The same as Markdown."""
    return markdown_table(HEADINGS, [cells(r) for r in results])
