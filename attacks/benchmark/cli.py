"""The command `fedproxy-secure benchmark`: attacks on a fixed grid, and two results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.options import typed
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    from fedproxy_secure.evidence.finding import Profile

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure attacks on a fixed grid of runs, so that versions and attacks can be compared.\n\n"
    "`fedproxy-secure benchmark attacks --quick`",
)


@app.command("attacks")
def attacks_command(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="A Hugging Face folder, a .gguf file, demo or smollm2."
        ),
    ] = "demo",
    profile: Annotated[
        str, typer.Option("--profile", metavar="smoke|standard", help="How much the attacks spend.")
    ] = "smoke",
    quick: Annotated[bool, typer.Option("--quick", help="Only the grid's quick part.")] = False,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            "--cells", metavar="PATTERN", help="Only cells of this name; `*` is any text; may be repeated."
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help="Only this attack, by name or id; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")] = Path(
        "runs/benchmark"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what DIR has of the same benchmark, and do the rest.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="OLD.json", help="Then compare with these results of the same id."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, help="How many cells run at once. Default: one for each core.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the id, the cells and the attacks, then stop.")
    ] = False,
) -> None:
    """Record every cell of the grid, run every registered attack on it, print and write the results.

    Attacks that other packages register run beside this project's own. Results go to `benchmark.json` and
    `benchmark.txt` in DIR. Two results can be compared if their benchmark ids are the same: the id follows
    from the grid, the records, the model's files and the profile.

    Example: `fedproxy-secure benchmark attacks --quick --attack A6 --out runs/quick`
    """
    grid = {"quick": quick, "model": model, "profile": profile, "cells": cells, "attack": attack}
    command = typed("benchmark", "attacks", **grid, jobs=jobs or None, out=out)
    more = typed(against=against, resume=True).removeprefix("fedproxy-secure")
    with plain_errors(again=command + more):
        from attacks.benchmark.compare import check_same, text_of_changes
        from attacks.benchmark.grid import GRID
        from attacks.benchmark.results import JSON_NAME, Benchmark
        from attacks.benchmark.run import checked_identity, run_benchmark
        from attacks.benchmark.table import table
        from fedproxy_secure.cli.progress import shown_on

        spends = _profile(profile)
        old = None if against is None else Benchmark.read(against)
        if dry_run or old is not None:
            identity = checked_identity(GRID, model=model, profile=spends)
            if old is not None:  # before hours of work
                check_same(old.identity, identity, where=str(against))
            if dry_run:
                _show_plan(identity.id, quick, cells or [], attack or [])
                return
        with shown_on(Console(stderr=True)) as progress:
            results = run_benchmark(
                out,
                model=model,
                profile=spends,
                quick=quick,
                patterns=cells or [],
                attacks=attack or [],
                resume=resume,
                jobs=jobs,
                progress=progress,
                command=command,
            )
        typer.echo(table(results), nl=False)
        if old is not None:
            typer.echo("\n" + text_of_changes(old, results), nl=False)
        typer.echo(f"results: {out / JSON_NAME}")


@app.command("compare")
def compare_command(
    old: Annotated[Path, typer.Argument(metavar="OLD.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json")],
) -> None:
    """Compare two results of the same benchmark: both headlines and their difference, everywhere.

    Results of different benchmark ids are refused with exit code 2.

    Example: `fedproxy-secure benchmark compare runs/before/benchmark.json runs/after/benchmark.json`
    """
    with plain_errors(again=None):
        from attacks.benchmark.compare import check_same, text_of_changes
        from attacks.benchmark.results import Benchmark

        before, after = Benchmark.read(old), Benchmark.read(new)
        check_same(before.identity, after.identity, where=str(old))
        typer.echo(text_of_changes(before, after), nl=False)


def _profile(name: str) -> Profile:
    if name == "smoke":
        return "smoke"
    if name == "standard":
        return "standard"
    raise ConfigError(f"--profile {name}: must be smoke or standard")


def _show_plan(benchmark_id: str, quick: bool, patterns: list[str], names: list[str]) -> None:
    """Print the benchmark id, the cells with their views, and the attacks that would run."""
    from attacks.benchmark.grid import GRID, chosen
    from attacks.benchmark.run import asked_for
    from attacks.registry import every

    typer.echo(f"benchmark {benchmark_id}")
    for cell in chosen(GRID, quick=quick, patterns=patterns):
        typer.echo(f"cell {cell.name}: {', '.join(cell.views)}")
    for entry in asked_for(names, every()):
        typer.echo(f"attack {entry.info.id} {entry.info.name}")
