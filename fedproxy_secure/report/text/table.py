"""The methods of a comparison as a table: Markdown for files, rich for terminals.

Shares are shown in percent, differences of shares in points. `71.3 ± 2.1` is a mean with half its 95 %
interval; `71.3 [69.0, 73.5]` has an interval that is not symmetric; `71.3` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.comparison import (
    DIFFERENCES,
    EFFECTS_ABOUT,
    EFFECTS_TITLE,
    LEARNED_ABOUT,
    LEARNED_TITLE,
    LOSS_ABOUT,
    LOSS_TITLE,
    NORM_ABOUT,
    NORM_TITLE,
    PROXIES_ABOUT,
    PROXIES_TITLE,
    SCALES_ABOUT,
    SCALES_TITLE,
    Compared,
    difference_lines,
    effect_rows,
    effect_seeds,
    few_seeds,
    healing_state,
    is_all_free_text,
    learned_about,
    learned_rows,
    loss_rows,
    loss_seeds,
    loss_tasks,
    norm_columns,
    norm_tasks,
    perplexity_of,
    proxy_lines,
    seeds_of,
    weakest,
)
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.report.sweep import percent
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
_PLACES = {"nats": 3, "CKA": 2}  # a KL of .03 nats is much, and must not be shown as 0


def cell(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return one number as text; `-` for None; `signed` shows a plus sign too."""
    if estimate is None:
        return "-"
    scale = 100.0 if estimate.unit == "share" else 1.0
    places = _PLACES.get(estimate.unit, 1)
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
    return "-" if ratio is None else f"{percent(ratio)}%"


def norm_table(report: Report, *, by_task: bool = True) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of accuracies by acc_norm; no lines if they are those by acc."""
    tasks, columns = norm_tasks(report), norm_columns(report)
    shown = tasks if by_task else []
    lines = [
        (
            row.method,
            removed(row.remove_ratio),
            *(cell(getattr(row, key), signed=key == "owners_edge_norm") for key in columns),
            *(cell(row.tasks_norm.get(t)) for t in shown),
        )
        for row in report.rows
        if row.average_norm is not None
    ]
    headings = ("method", "removed", *columns.values(), *(f"{t} (%)" for t in shown))
    return headings, lines if tasks else []


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
        made = {r: getattr(report.differences[i], of) for r, i in by_reference.items()}
        numbers = (cell(made.get(r), signed=True) for r in references)
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
            cell(row.owners_edge_effect, signed=True),
            _count(effect_seeds(row), report.seeds),
        )
        for _, row in effect_rows(report)
    ]
    return ("method", "removed", "size", "federation", "owner's edge", "seeds"), lines


def scale_table(report: Report) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of what each task can show; no lines if that is not known."""
    lines: Lines = [
        (
            scale.task,
            "yes" if scale.counts else "no",
            *map(cell, (scale.constant, scale.zero_shot, scale.ceiling)),
            *(cell(e, signed=True) for e in (scale.above_constant, scale.above_zero_shot)),
            _count(scale.ceiling.seeds, report.seeds),
        )
        for scale in report.task_scales
    ]
    percent = ("constant answer (%)", "zero-shot (%)", "ceiling (%)")
    return ("task", "counts", *percent, "ceiling minus constant", "minus zero-shot", "seeds"), lines


def learned_table(report: Report) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of the gap closed over tasks that count; no lines if all do, or none."""
    lines: Lines = [
        (
            row.method,
            removed(row.remove_ratio),
            cell(row.gap_closed),
            cell(row.gap_closed_counting),
            str(row.gap_closed_counting.n),
            _count(row.gap_closed_counting.seeds, report.seeds),
        )
        for _, row in learned_rows(report)
        if row.gap_closed_counting is not None
    ]
    return ("method", "removed", "all tasks (%)", "tasks that count (%)", "n", "seeds"), lines


def proxy_table(report: Report) -> tuple[tuple[str, ...], Lines]:
    """Return headings and lines of how like the LLM proxies are; no lines if that is not known."""
    lines: Lines = []
    for i, key, made, above in proxy_lines(report):
        row = report.proxies[i]
        state = healing_state(row, key)
        numbers = (
            (made.kl, made.agreement, made.proxy_perplexity, made.llm_perplexity, made.cka, made.verbatim)
            if made is not None
            else (None,) * 6
        )
        known = [e.seeds for e in (made.kl if made is not None else None, above) if e is not None]
        seeds = min(known, key=len, default=())
        name = " ".join(part for part in ("at", f"{row.remove_ratio:g}", state) if part)
        lines.append((name, *map(cell, numbers), cell(above, signed=True), _count(seeds, report.seeds)))
    perplexities = ("perplexity", "of the LLM")
    columns = ("KL (nats)", "same token (%)", *perplexities, "CKA", "verbatim (%)", "accuracy", "seeds")
    return ("proxy", *columns), lines


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
    """Return a comparison's tables for a terminal: methods, acc_norm, losses, differences, tasks, proxies.

    Tables without lines are left out.

    The column of seeds is left out where every row has all seeds, and several.
    """
    rows = [] if is_all_free_text(report) else [cells(row, report.seeds) for row in report.rows]
    short = any(few_seeds(seeds_of(row), report.seeds) for row in report.rows)
    shown = len(HEADINGS) if short else len(HEADINGS) - 1  # a column less is what narrow terminals need
    parts = [
        (report.name, "", HEADINGS[:shown], [row[:shown] for row in rows]),
        (NORM_TITLE, NORM_ABOUT, *norm_table(report, by_task=False)),
        (LOSS_TITLE, LOSS_ABOUT, *loss_table(report)),
        *(
            (f"{title} ({unit})", "" if of == "average_norm" else about, *difference_table(report, of))
            for of, (title, about, unit) in DIFFERENCES.items()
        ),
        (SCALES_TITLE, f"{SCALES_ABOUT} {learned_about(report)}", *scale_table(report)),
        (LEARNED_TITLE, LEARNED_ABOUT, *learned_table(report)),
        (EFFECTS_TITLE, EFFECTS_ABOUT, *effect_table(report)),
        (PROXIES_TITLE, PROXIES_ABOUT, *proxy_table(report)),
    ]
    return [_rich(*part) for part in parts if part[-1]]


def _rich(title: str, about: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    caption = Text(printable(about), style="table.caption") if about else None
    table = Table(title=Text(printable(title)), caption=caption, caption_justify="left")
    for index, heading in enumerate(headings):
        # as Text: brackets are not markup
        table.add_column(Text(printable(heading)), justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(text)) for text in line))
    return table
