"""The trilemma as a table: one line a configuration in Markdown, one a measure in a terminal.

The full list of measures is in the report's page; here stand those that people compare first. Of privacy,
the worst that any attack of the suite reached, beside what is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.escape import printable
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.table import cell
from fedproxy_secure.report.trilemma import Configuration

if TYPE_CHECKING:
    from rich.table import Table

# heading, key of the measure, how many of its unit make one of the column's
COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("fused LLM (%)", "accuracy_fused", 1),
    ("gap closed (%)", "gap_closed", 1),
    ("epsilon claimed, one seed", "epsilon_claimed", 1),
    ("epsilon spent, all seeds", "epsilon_spent", 1),
    ("token AUC", "token_auc", 1),
    ("sequences (%)", "exact_sequence_recall", 1),
    ("TPR at 1% FPR (%)", "tpr_at_1pct_fpr", 1),
    ("exposure (bits)", "canary_exposure_bits", 1),
    ("weights held (%)", "verbatim_share", 1),
    ("owner's edge (points)", "owners_edge", 1),
    ("extraction R (%)", "extraction_R", 1),
    ("upload (MB)", "upload_bytes", 1e6),
    ("seconds", "seconds_total", 1),
)

_NAMES_WIDTH, _COLUMN_WIDTH = 15, 21  # of a terminal's table, with borders


def headings(configurations: Sequence[Configuration]) -> tuple[str, ...]:
    """First the configuration's name, then every column that some configuration has a number for."""
    return ("configuration", *(heading for heading, key, _ in _columns(configurations)))


def lines(configurations: Sequence[Configuration]) -> list[tuple[str, ...]]:
    """The texts of each configuration, in the order of `headings`; `-` where nothing was measured."""
    made = []
    for configuration in configurations:
        texts = []
        for _, key, size in _columns(configurations):
            measure = configuration.measure(key)
            texts.append("-" if measure is None else _text(measure.estimate, key, size))
        stamp = " (unsafe)" if configuration.unsafe else ""
        made.append((configuration.name + stamp, *texts))
    return made


def rich_trilemma(configurations: Sequence[Configuration], *, width: int) -> list[Table]:
    """For a terminal of `width` columns: a line a measure; as many configurations to a table as fit."""
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
            table.add_row(Text(heading), *(Text(own[row]) for own in texts[start : start + beside]))
        tables.append(table)
    return tables


def _columns(configurations: Sequence[Configuration]) -> list[tuple[str, str, float]]:
    return [c for c in COLUMNS if any(x.measure(c[1]) is not None for x in configurations)]


def _text(estimate: Estimate, key: str, size: float) -> str:
    exact = estimate.low == estimate.value == estimate.high
    low, high = (None, None) if exact else (estimate.low, estimate.high)
    scaled = Estimate(
        **{
            **vars(estimate),
            "value": estimate.value / size,
            "low": None if low is None else low / size,
            "high": None if high is None else high / size,
        }
    )
    if estimate.unit == "AUC":
        ends = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        return f"{estimate.value:.2f}{ends}"
    return cell(scaled, signed=key == "owners_edge")
