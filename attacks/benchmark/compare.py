"""Compare two results of the same benchmark, by cell, view and attack.

The difference is the new headline minus the old one. It is paired by target where both findings asked about
the same targets (see `fedproxy_secure.evidence.targets`), and has the interval of independent samples
elsewhere. Where the two attacks did not do the same amount of work, because one machine was slower or
busier, a line says so: then the difference is not of the attacks alone. Results of different ids are
refused: their numbers answer different questions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attacks.benchmark.identity import Identity
from attacks.benchmark.results import Benchmark, CellResult
from attacks.benchmark.table import WIDTH, finding_text
from attacks.commands.table import number
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding
from fedproxy_secure.evidence.targets import difference
from fedproxy_secure.runtime.escape import printable

NAME_WIDTH, TEXT_WIDTH = 28, 23
EXPLAINED = (
    "change: new minus old with its 95 % interval; *: the interval excludes 0, as one in twenty does by "
    "chance; ~: scored on different targets, so the difference is not paired; !: one of the two did less "
    "work, so the difference may be the machine's."
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One attack from one view of one cell, in both results.

    Args:
        cell: name of the cell.
        old, new: the findings; None where a result has none.
        change: the new headline minus the old one; None where one of them has no number.
        paired: whether the difference is paired by target.
    """

    cell: str
    old: Finding | None
    new: Finding | None
    change: Estimate | None
    paired: bool

    @property
    def uneven(self) -> dict[str, tuple[int, int]]:
        """What the attacks did not do equally often: the counts in both results, 0 where one has none."""
        if self.old is None or self.new is None:
            return {}
        old, new = self.old.effort, self.new.effort
        counts = {name: (old.get(name, 0), new.get(name, 0)) for name in {**old, **new}}
        return {name: both for name, both in counts.items() if both[0] != both[1]}

    @property
    def shows(self) -> bool:
        """Whether the interval of the change excludes 0."""
        return self.change is not None and (self.change.above(0) or self.change.below(0))


def check_same(old: Identity, new: Identity, *, where: str) -> None:
    """Raise `ConfigError` in one line that says what differs, unless both ids are the same."""
    if old.id != new.id:
        parts = ", ".join(new.other_parts(old))
        raise ConfigError(
            f"{where}: benchmark id {old.id}: must be {new.id}; other {parts}; compare only results of "
            "the same id"
        )


def changes(old: Benchmark, new: Benchmark) -> list[Change]:
    """Return every attack, view and cell that either result has, in the new one's order.

    Raises `ConfigError` if the ids differ.
    """
    check_same(old.identity, new.identity, where="old results")
    before = {cell.name: _by_key(cell) for cell in old.cells}
    after = {cell.name: _by_key(cell) for cell in new.cells}
    return [
        _change(name, before.get(name, {}).get(key), after.get(name, {}).get(key))
        for name in dict.fromkeys([*after, *before])
        for key in dict.fromkeys([*after.get(name, {}), *before.get(name, {})])
    ]


def text_of_changes(old: Benchmark, new: Benchmark) -> str:
    """Return all changes as text; lines have at most `WIDTH` characters, unless a name is longer.

    Raises `ConfigError` if the ids differ.
    """
    compared = changes(old, new)
    lines = [f"benchmark {new.benchmark_id}: old {_made_by(old)}, new {_made_by(new)}"]
    for name in dict.fromkeys(c.cell for c in compared):
        lines += ["", *_cell(name, [c for c in compared if c.cell == name])]
    numbers = [c for c in compared if c.change is not None]
    lines += ["", *textwrap.wrap(EXPLAINED, WIDTH)]
    uneven = sum(bool(c.uneven) for c in numbers)
    also = f", marked !: {uneven}" if uneven else ""
    lines.append(f"numbers in both: {len(numbers)}, marked *: {sum(c.shows for c in numbers)}{also}")
    return "\n".join(lines) + "\n"


def _by_key(cell: CellResult) -> dict[tuple[str, str], Finding]:
    return {(f.view, f.attack): f for f in cell.findings}


def _change(cell: str, old: Finding | None, new: Finding | None) -> Change:
    if old is None or new is None or old.headline is None or new.headline is None:
        return Change(cell=cell, old=old, new=new, change=None, paired=False)
    metric = f"{new.headline.metric}, new minus old"
    change, paired = difference(new.headline, old.headline, (new.targets, old.targets), metric=metric)
    return Change(cell=cell, old=old, new=new, change=change, paired=paired)


def _cell(name: str, changed: Iterable[Change]) -> Iterator[str]:
    """Yield the lines of one cell: numbers of both, then what has changed without a number."""
    yield printable(name)
    view = None
    for change in changed:
        known = change.new or change.old
        if known is None or (change.change is None and _outcome(change.old) == _outcome(change.new)):
            continue
        if known.view != view:
            view = known.view
            yield _row(f"-- {view} --", "old", "new", "change")
        yield _row(
            printable(f"{known.id} {known.attack}"),
            finding_text(change.old) or "not there",
            finding_text(change.new) or "not there",
            _marked(change),
        )
        if change.uneven:
            counts = (f"{name} {old:,}, then {new:,}" for name, (old, new) in change.uneven.items())
            yield from textwrap.wrap(
                printable(f"! {'; '.join(counts)}"), WIDTH, initial_indent="  ", subsequent_indent="    "
            )


def _marked(change: Change) -> str:
    if change.change is None:
        return ""
    return f"{number(change.change)}{' *' * change.shows}{' ~' * (not change.paired)}"


def _outcome(finding: Finding | None) -> str:
    return "" if finding is None else str(finding.outcome)


def _row(name: str, *texts: str) -> str:
    return "".join([f"{name:<{NAME_WIDTH}}", *(f" {text:<{TEXT_WIDTH}}" for text in texts)]).rstrip()


def _made_by(results: Benchmark) -> str:
    version = results.environment.get("packages", {}).get("fedproxy-secure", "of an unknown version")
    return printable(f"fedproxy-secure {version}")
