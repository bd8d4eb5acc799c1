"""Render a gate's judgement: a table for terminals, Markdown for pull requests, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from fedproxy_secure.dp.guarantees import rounded_down, rounded_up
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.gate.verdict import Judged, Judgement, Verdict
from fedproxy_secure.report.text.table import markdown_table
from fedproxy_secure.runtime.escape import escaped, printable

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
HEADINGS = ("rule", "configuration", "verdict", "measured", "why")
STYLES = {Verdict.FAILED: "bold red", Verdict.MISSING: "yellow", Verdict.INCONCLUSIVE: "yellow"}


def cells(row: Judged) -> tuple[str, ...]:
    """Return the row's texts in the order of `HEADINGS`; numbers have the unit of the rule's bound."""
    measured = "-" if row.measured is None else measured_text(row.measured)
    return (row.rule, row.configuration, row.verdict.value, measured, row.why)


def measured_text(estimate: Estimate) -> str:
    """Return a number with its interval, such as `0.93 [0.91, 0.95], n = 3`.

    A counted number has no interval to show, and a lower bound has `at least` before it.
    """
    if estimate.nature == "lower bound":
        return f"at least {rounded_down(estimate.value)}, n = {estimate.n}"
    if estimate.exact and estimate.unit in ("epsilon", "delta"):
        return f"{rounded_up(estimate.value)}, exact, n = {estimate.n}"
    if estimate.exact:
        interval = ", exact"
    elif estimate.interval is None:
        interval = ", no interval"
    else:
        interval = " [{:.4g}, {:.4g}]".format(*estimate.interval)
    return f"{estimate.value:.4g}{interval}, n = {estimate.n}"


def summary(judgement: Judgement) -> str:
    """Return one line for a terminal: the verdict, and the number of rows with each verdict."""
    counts = {v: sum(row.verdict == v for row in judgement.rows) for v in Verdict}
    parts = ", ".join(f"{count} {verdict.value.lower()}" for verdict, count in counts.items() if count)
    name = printable(judgement.policy.name)
    return f"gate {name}: {judgement.verdict.value} ({parts or 'nothing to judge'})"


def rich_gate(judgement: Judgement) -> Table:
    """Return the judgement as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(f"policy {judgement.policy.name}")))
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in judgement.rows:
        style = STYLES.get(row.verdict, "")
        texts = map(printable, cells(row))
        table.add_row(*(Text(text, style=style if i == 2 else "") for i, text in enumerate(texts)))
    return table


def markdown_gate(judgement: Judgement) -> str:
    """Return the judgement as Markdown for a comment on a pull request."""
    table = markdown_table(HEADINGS, [cells(row) for row in judgement.rows])
    return f"**{escaped(summary(judgement))}**\n\n{table}\n"


def json_gate(judgement: Judgement) -> str:
    """Return the judgement as JSON for programs, every row in full."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "policy": judgement.policy.name,
        "policy_sha256": judgement.policy.sha256,
        "verdict": judgement.verdict,
        "exit_code": judgement.exit_code,
        "rows": [asdict(row) for row in judgement.rows],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
