"""The results of a benchmark as text for terminals: attacks down, cells across, 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from attacks.benchmark.providers import THIS_PROJECT, AttackEntry
from attacks.benchmark.results import Benchmark, CellResult
from attacks.commands.table import number
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.runtime.escape import printable

WIDTH = 100
CELL_WIDTH = 23
CELLS_ACROSS = 3
NAME_WIDTH = WIDTH - CELLS_ACROSS * (CELL_WIDTH + 1)
LETTERS = {
    Outcome.SUCCEEDED: "S",
    Outcome.RESISTED: "r",
    Outcome.INCONCLUSIVE: "?",
    Outcome.ERROR: "error",
    Outcome.NOT_APPLICABLE: "-",
}
EXPLAINED = (
    "value [95 % interval] of the number that decides the outcome. S: succeeded; r: resisted, which is no "
    "proof of safety; ?: inconclusive; -: not applicable; error: the attack raised an error."
)
Key = tuple[str, str]  # view, attack


def table(results: Benchmark) -> str:
    """Return all results as text; lines have at most `WIDTH` characters, unless a name is longer."""
    lines = list(_heading(results))
    measured = [cell for cell in results.cells if cell.failed is None]
    for first in range(0, len(measured), CELLS_ACROSS):
        lines += ["", *_block(measured[first : first + CELLS_ACROSS], results.attacks)]
    lines += ["", *textwrap.wrap(EXPLAINED, WIDTH), *_headlines(results.attacks)]
    lines += [f"failed: {printable(c.name)}: {printable(c.failed)}" for c in results.cells if c.failed]
    return "\n".join(lines) + "\n"


def _heading(results: Benchmark) -> Iterable[str]:
    version, profile = results.identity.version, results.identity.profile
    yield (
        f"benchmark {results.benchmark_id}: grid {version}, {printable(results.model)}, profile {profile}, "
        f"{_count(len(results.cells), 'cell')}, {_count(len(results.attacks), 'attack')}"
    )
    left_out = (len(results.cells_left_out), "cell"), (len(results.attacks_left_out), "attack")
    if results.subset:
        left_out_text = " and ".join(_count(count, what) for count, what in left_out if count)
        yield f"a part of the benchmark: without {left_out_text}"
    for entry in results.attacks:
        if entry.provided_by != THIS_PROJECT:
            source = f"{entry.provided_by} {entry.provider_version}".strip()
            yield printable(f"{entry.id} {entry.name} comes from {source}")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _block(cells: Sequence[CellResult], attacks: Sequence[AttackEntry]) -> Iterable[str]:
    """Yield the lines of a few cells: a heading, then for each view the attacks that left a number."""
    for part in zip(*(_titles(cell) for cell in cells), strict=True):
        yield _row("", part)
    by_cell = [{(f.view, f.attack): f for f in cell.findings} for cell in cells]
    for view in dict.fromkeys(view for cell in cells for view in cell.views):
        yield _rule(view)
        without: list[AttackEntry] = []
        for entry in attacks:
            findings = [by_key.get((view, entry.name)) for by_key in by_cell]
            if any(f is not None and f.headline is not None for f in findings):
                yield _row(printable(f"{entry.id} {entry.name}"), [finding_text(f) for f in findings])
            elif any(f is not None for f in findings):
                without.append(entry)
        if without:
            names = ", ".join(_outcomes_of(entry, view, by_cell) for entry in without)
            yield from textwrap.wrap(f"no number: {printable(names)}", WIDTH, subsequent_indent="  ")


def finding_text(finding: Finding | None) -> str:
    """Return headline and outcome, such as `0.594 [0.553, 0.634] S`; empty for None."""
    if finding is None:
        return ""
    letter = LETTERS[finding.outcome]
    return letter if finding.headline is None else f"{number(finding.headline)} {letter}"


def _titles(cell: CellResult) -> tuple[str, ...]:
    private = "" if cell.epsilon is None else f", DP {cell.epsilon:g}"
    scheme = cell.protection.removeprefix("unsafe_")
    return (
        cell.world,
        f"{cell.adapter}, {cell.optimizer} {cell.steps}x{cell.batch}",
        f"{cell.clients} clients",
        f"{scheme}{private}",
    )


def _outcomes_of(entry: AttackEntry, view: str, by_cell: Sequence[dict[Key, Finding]]) -> str:
    """Return an attack without numbers and its outcomes, such as `A1 embedding_bow (-)`."""
    outcomes = dict.fromkeys(
        LETTERS[f.outcome] for b in by_cell if (f := b.get((view, entry.name))) is not None
    )
    return f"{entry.id} {entry.name} ({', '.join(outcomes)})"


def _row(name: str, texts: Sequence[str]) -> str:
    return "".join([f"{name:<{NAME_WIDTH}}", *(f" {text:<{CELL_WIDTH}}" for text in texts)]).rstrip()


def _rule(view: str) -> str:
    return f"-- {view} ".ljust(WIDTH, "-")


def _headlines(attacks: Sequence[AttackEntry]) -> list[str]:
    """Return the number that judges each attack, with attacks of the same number together."""
    by_headline: dict[str, list[str]] = {}
    for entry in attacks:
        by_headline.setdefault(f"{entry.headline} (chance {entry.chance:g})", []).append(entry.id)
    parts = [f"{headline}: {', '.join(dict.fromkeys(ids))}" for headline, ids in by_headline.items()]
    return textwrap.wrap(printable(f"judged by {'; '.join(parts)}"), WIDTH)
