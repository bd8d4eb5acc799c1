"""Results of attacks as text: single lines and tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedproxy_secure.dp.guarantees import rounded_down
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.runtime.escape import printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

STYLES = {Outcome.SUCCEEDED: "bold red", Outcome.ERROR: "red", Outcome.RESISTED: "green"}
EXPLAINED = (
    "value [95 % interval]; power: the smallest true value that the attack would detect in four runs of "
    "five (- if not known); pos.: positive control, on which the attack must succeed; neg.: negative "
    "control, on which there is nothing to find. RESISTED does not prove safety."
)


def number(estimate: Estimate | None) -> str:
    """Return a value with its interval, such as `0.594 [0.553, 0.634]`; `-` for None."""
    if estimate is None:
        return "-"
    if estimate.nature == "lower bound":
        return f"at least {rounded_down(estimate.value, digits=3)}"
    if estimate.exact or estimate.interval is None:
        return f"{estimate.value:.3g}"
    return "{:.3g} [{:.3g}, {:.3g}]".format(estimate.value, *estimate.interval)


def power(result: Finding) -> str:
    """Return the smallest value that the headline would have shown, such as `0.58`, `none`, or `-`."""
    effect = None if result.headline is None else result.could_show(result.headline)
    if effect is None:
        return "-"
    return "none" if effect.smallest is None else f"{effect.smallest:.2g}"


def outcome_line(result: Finding) -> str:
    """Return one line about a result, for a terminal."""
    return printable(f"{result.outcome:<14} {result.id} {result.attack}, {result.view}: {result.reason}")


def rich_tables(results: Sequence[Finding]) -> Group:
    """Return tables for 80 columns: one per view and seed, and a line per attack without numbers."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    for view, seed_folder in dict.fromkeys((r.view, r.seed_folder) for r in results):
        selected = [r for r in results if (r.view, r.seed_folder) == (view, seed_folder)]
        measured = [r for r in selected if r.headline is not None]
        title = printable(f"{view}, {seed_folder}")
        parts.append(_rich_table(title, measured) if measured else Text(title, style="italic"))
        parts += [Text(outcome_line(r), style="dim") for r in selected if r.headline is None]
    return Group(*parts, Text(EXPLAINED))


def _rich_table(title: str, results: Sequence[Finding]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("attack", overflow="fold", min_width=max(len(f"{r.id} {r.attack}") for r in results))
    table.add_column("outcome", no_wrap=True)
    for heading in ("value", "power", "pos.", "neg.", "s"):
        table.add_column(heading, justify="right", overflow="fold")
    for result in results:
        assert result.headline is not None
        name = Text(printable(f"{result.id} {result.attack}"))
        if result.headline.metric != "auc":
            name.append(f"\n{printable(result.headline.metric)}", style="dim")
        controls = [c and f"{c.value:.2g}" for c in (result.positive, result.negative)]
        table.add_row(
            name,
            Text(str(result.outcome), style=STYLES.get(result.outcome, "")),
            number(result.headline),
            power(result),
            *(c or "-" for c in controls),
            f"{result.seconds:.0f}",
        )
    return table
