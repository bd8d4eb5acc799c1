"""The methods of a comparison as a table: Markdown for files, rich for terminals.

Shares are shown in percent, differences of shares in points. `71.3 ± 2.1` is a mean with half its 95 %
interval; `71.3 [69.0, 73.5]` has an interval that is not symmetric; `71.3` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.comparison import (
    DIFFERENCES_ABOUT,
    DIFFERENCES_TITLE,
    EFFECTS_ABOUT,
    EFFECTS_TITLE,
    LOSS_ABOUT,
    LOSS_DIFFERENCES_ABOUT,
    LOSS_DIFFERENCES_TITLE,
    LOSS_TITLE,
    NORM_ABOUT,
    NORM_TITLE,
    Compared,
    difference_lines,
    effect_rows,
    effect_seeds,
    few_seeds,
    is_all_free_text,
    loss_rows,
    loss_seeds,
    loss_tasks,
    norm_tasks,
    perplexity_of,
    seeds_of,
    weakest,
)
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.runtime.escape import Markdown, escaped, escaped_line, printable

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = (
    "method",
    "removed",
    "tuned proxy (%)",
    "fused LLM (%)",
    "gap closed (%)",
    "owner's edge (points)",
    "seeds",
)
Lines = list[tuple[str, ...]]


def cell(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return one number as text; `-` for None; `signed` shows a plus sign too."""
    if estimate is None:
        return "-"
    scale = 100.0 if estimate.unit == "share" else 1.0
    places = 3 if estimate.unit == "nats" else 1  # a KL of .03 nats is much, and must not be shown as 0
    value = scale * estimate.value
    text = f"{value:{'+' if signed else ''}.{places}f}"
    if estimate.low is None or estimate.high is None:
        return text
    low, high = scale * estimate.low, scale * estimate.high
    if abs((low + high) / 2 - value) < 0.5 * 10.0**-places:
        return f"{text} ± {(high - low) / 2:.{places}f}"
    return f"{text} [{low:.{places}f}, {high:.{places}f}]"


def cells(row: MethodRow, seeds: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the row's texts in the order of `HEADINGS`.

    `seeds`: those of the report; a row with fewer of them says so.
    """
    return (
        row.method,
        removed(row.remove_ratio),
        cell(row.tuned_proxy),
        cell(row.average),
        cell(row.gap_closed),
        cell(row.owners_edge, signed=True),
        _count(seeds_of(row), seeds),
    )


def removed(ratio: float | None) -> str:
    """Return a remove ratio in percent; `-` for None."""
    return "-" if ratio is None else f"{ratio:.0%}"


def norm_table(report: Report) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of accuracies by acc_norm; no lines if they are those by acc."""
    tasks = norm_tasks(report)
    lines = [
        (
            row.method,
            removed(row.remove_ratio),
            cell(row.average_norm),
            *(cell(row.tasks_norm.get(t)) for t in tasks),
        )
        for row in report.rows
        if row.average_norm is not None
    ]
    return ("method", "removed", "average (%)", *(f"{t} (%)" for t in tasks)), lines if tasks else []


def loss_table(report: Report) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of the losses on free text; no lines if there is none."""
    tasks = loss_tasks(report)
    lines: Lines = [
        (
            row.method,
            removed(row.remove_ratio),
            cell(row.tuned_proxy_loss),
            cell(row.loss),
            "-" if row.loss is None else cell(perplexity_of(row.loss)),
            cell(row.loss_gap_closed),
            *(cell(row.tasks_loss.get(t)) for t in tasks),
            _count(loss_seeds(row), report.seeds),
        )
        for _, row in loss_rows(report)
    ]
    headings = ("tuned proxy (nats)", "fused LLM (nats)", "perplexity", "gap closed by loss (%)")
    return ("method", "removed", *headings, *(f"{t} (nats)" for t in tasks), "seeds"), lines


def difference_table(report: Report, of: Compared = "average") -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of the paired differences, points or nats; no lines if there are none."""
    references, grid = difference_lines(report, of)
    lines = []
    for method, ratio, by_reference in grid:
        least = weakest([report.differences[i] for i in by_reference.values()], of)
        numbers = (
            cell(getattr(report.differences[by_reference[r]], of), signed=True)
            if r in by_reference
            else "-"
            for r in references
        )
        rests_on = (str(least.n), _count(least.seeds, report.seeds))
        lines.append((method, removed(ratio), *numbers, *rests_on))
    return ("method", "removed", *(f"minus {r}" for r in references), "n", "seeds"), lines


def effect_table(report: Report) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of what lies between methods and the ceiling; none if unknown."""
    lines: Lines = [
        (
            row.method,
            removed(row.remove_ratio),
            cell(row.size_effect, signed=True),
            cell(row.federation_effect, signed=True),
            cell(row.way_back_effect, signed=True),
            _count(effect_seeds(row), report.seeds),
        )
        for _, row in effect_rows(report)
    ]
    return ("method", "removed", "size", "federation", "owner's edge", "seeds"), lines


def _count(seeds: Sequence[int], wanted: Sequence[int]) -> str:
    return few_seeds(seeds, wanted).removesuffix(" seeds") or (str(len(seeds)) if seeds else "-")


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


def rich_tables(report: Report) -> list[Table]:
    """Return a comparison's tables for a terminal: methods, acc_norm, losses, differences, effects.

    Tables without lines are left out.

    The column of seeds is left out where every row has all seeds, and several.
    """
    rows = [] if is_all_free_text(report) else [cells(row, report.seeds) for row in report.rows]
    short = any(few_seeds(seeds_of(row), report.seeds) for row in report.rows)
    shown = len(HEADINGS) if short else len(HEADINGS) - 1  # a column less is what narrow terminals need
    parts = [
        (report.name, "", HEADINGS[:shown], [row[:shown] for row in rows]),
        (f"{NORM_TITLE} (%)", NORM_ABOUT, *norm_table(report)),
        (LOSS_TITLE, LOSS_ABOUT, *loss_table(report)),
        (f"{DIFFERENCES_TITLE} (points)", DIFFERENCES_ABOUT, *difference_table(report)),
        (f"{LOSS_DIFFERENCES_TITLE} (nats)", LOSS_DIFFERENCES_ABOUT, *difference_table(report, "loss")),
        (EFFECTS_TITLE, EFFECTS_ABOUT, *effect_table(report)),
    ]
    return [_rich(*part) for part in parts if part[-1]]


def _rich(title: str, about: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), caption=about or None, caption_justify="left")
    for index, heading in enumerate(headings):
        # as Text: brackets are not markup
        table.add_column(Text(printable(heading)), justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(text)) for text in line))
    return table
