"""The rows of a report as a table: Markdown for files, rich for terminals.

Shares are shown in percent, differences of shares in points. `71.3 ± 2.1` is a mean with half its
95 % interval; `71.3 [69.0, 73.5]` has an interval that is not symmetric; `71.3` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.escape import Markdown, code, escaped, escaped_line, printable
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.report import MethodRow, Report

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
    """One number as text; `-` where there is none; `signed` shows a plus sign too."""
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
    """The row's texts, in the order of `HEADINGS`."""
    return (
        row.method,
        "-" if row.remove_ratio is None else f"{row.remove_ratio:.0%}",
        cell(row.tuned_proxy),
        cell(row.average),
        cell(row.gap_closed),
        cell(row.owners_edge, signed=True),
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """A Markdown table: first column to the left, the others, unless not `right`, to the right.

    Texts are shown letter by letter, but for those that are `Markdown`.
    """
    rule = [Markdown(r) for r in ("---", *["---:" if right else "---"] * (len(headings) - 1))]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in (headings, rule, *rows))


def rich_table(report: Report) -> Table:
    """The same table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(report.name)))
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in report.rows:
        table.add_row(*(Text(printable(text)) for text in cells(row)))  # as Text: brackets are not markup
    return table


def markdown_report(report: Report) -> str:
    """The whole report as Markdown: methods, tasks, other estimates, notes, how to run it again."""
    from fedproxy_secure.report import trilemma_table

    parts = [f"# {escaped(report.name)}"]
    if report.configurations:
        parts += [
            "## Performance, privacy, IP, cost",
            markdown_table(
                trilemma_table.headings(report.configurations), trilemma_table.lines(report.configurations)
            ),
        ]
        said = [f"{c.name}: {line}" for c in report.configurations for line in (*c.unsafe, *c.failed)]
        parts += [_items([*said, *report.composition])] if said or report.composition else []
    if report.rows:
        parts += [markdown_table(HEADINGS, [cells(row) for row in report.rows])]
        parts += _tasks(report.rows)
    if report.estimates:
        parts += ["## Other estimates", _estimates(report.estimates)]
    parts += ["## How to read it", _legend(report)]
    if report.guarantees:
        parts += ["## Guarantees", _items(report.guarantees)]
    if report.not_measured:
        parts += ["## Not measured", _items(report.not_measured)]
    if report.notes:
        parts += ["## Notes", _items(report.notes)]
    parts += [
        "## Run it again",
        f"    {printable(report.command)}",  # indented: code, in which nothing is a sign
        f"Settings: SHA-256 {code(report.config_sha256)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped_line(line)}" for line in lines)


def _tasks(rows: Sequence[MethodRow]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.tasks))
    if not names:
        return []
    lines = [(*cells(row)[:2], *(cell(row.tasks.get(n)) for n in names)) for row in rows]
    return ["## Fused LLM by task (%)", markdown_table(("method", "removed", *names), lines)]


def _estimates(estimates: Sequence[Estimate]) -> str:
    headings = ("metric", "value", "unit", "n", "seeds", "how")
    lines = []
    for e in estimates:
        unit = "%" if e.unit == "share" else e.unit
        seeds = ", ".join(map(str, e.seeds))
        lines.append((e.metric, _precise(e), unit, str(e.n), seeds, e.how))
    return markdown_table(headings, lines)


def _precise(estimate: Estimate) -> str:
    """Numbers outside the table are of any size: four significant digits unless they are shares."""
    if estimate.unit == "share":
        return cell(estimate)
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def _legend(report: Report) -> str:
    seeds = ", ".join(map(str, report.seeds))
    measured = [row.average for row in report.rows if row.average is not None]
    how = "; ".join(dict.fromkeys(e.how for e in measured))
    return (
        f"Seeds: {seeds}. ± is half a 95 % interval{f' ({escaped(how)})' if how else ''}.\n"
        "Gap closed: 0 is the LLM as it came (zero-shot), 100 the LLM tuned on all data together.\n"
        "Owner's edge: the fused LLM, which only the server has, minus the tuned proxy, which\n"
        "every client has."
    )
