"""Common parts of the commands of `attack`: options and their checks, output of results, exit codes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedproxy_secure.evidence.finding import Finding, Profile

FINDING, INCONCLUSIVE = 1, 3

RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="The run's folder.")]
SuiteOption = Annotated[
    str, typer.Option("--suite", metavar="smoke|standard|full", help="How much to spend.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="The same seed gives the same guesses.")]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit with code 1 if an attack succeeded, with 3 if one was inconclusive or failed.",
    ),
]


def profile_of(suite: str) -> Profile:
    """Return the profile with this name. Raises `ConfigError` if there is none."""
    for profile in ("smoke", "standard", "full"):
        if suite == profile:
            return profile
    raise ConfigError(f"--suite {suite}: must be smoke, standard or full")


def check_seconds(seconds: float) -> None:
    """Raise `ConfigError` for a time limit that is not finite."""
    if not math.isfinite(seconds):
        raise ConfigError(f"--budget-seconds {seconds:g}: must be a finite number; for no limit say 1e9")


def show(results: Sequence[Finding]) -> None:
    """Print findings as tables."""
    from attacks.commands.table import rich_tables

    Console().print(rich_tables(list(results)))


def end(results: Sequence[Finding], strict: bool) -> None:
    """Raise `typer.Exit` with the code of the gravest outcome, if `strict` and it has a code."""
    if not strict:
        return
    outcomes = {str(r.outcome) for r in results}
    if "SUCCEEDED" in outcomes:
        raise typer.Exit(FINDING)
    if outcomes & {"INCONCLUSIVE", "ERROR"}:
        raise typer.Exit(INCONCLUSIVE)
