"""The commands `run`, `compare`, `matrix` and `report`: settings in, table and report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Console

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.evidence import signed_lines
from fedproxy_secure.cli.options import (
    ConfigArgument,
    DryRunOption,
    OutOption,
    RecordOption,
    ResumeOption,
    SetOption,
    SigningKeyOption,
    find_config,
    typed,
)
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.runtime.artifacts import is_new
from fedproxy_secure.runtime.files.names import REPORT_PAGE

if TYPE_CHECKING:
    from fedproxy_secure.report.report import Report
    from fedproxy_secure.runtime.progress import Progress


def run_command(
    config: ConfigArgument,
    changes: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    record: RecordOption = False,
    suite: Annotated[
        str,
        typer.Option(metavar="none|smoke|standard|full", help="Then attack the run; implies `--record`."),
    ] = "none",
    signing_key: SigningKeyOption = None,
) -> None:
    """Run FedProxy once per seed (compress, federate, fuse, evaluate) and print the run's trilemma.

    CONFIG is a YAML file of settings, or the name of a shipped one, such as `quickstart`.

    Example: `fedproxy-secure run quickstart --set federate.rounds=2`
    """
    recording = ["audit.record=true"] if record or suite != "none" else []
    attacks = [] if suite == "none" else [f"attacks.suite={suite}"]
    more = [*recording, *attacks, *_signed_with(signing_key)]
    _start("run", config, [*(changes or []), *more], out=out, resume=resume, dry_run=dry_run, suite=suite)


def compare_command(
    config: ConfigArgument,
    changes: SetOption = None,
    out: OutOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume in DIR; seeds, methods and remove ratios may change, all other settings may not.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Run nothing; write the report of the cells that DIR has."),
    ] = False,
) -> None:
    """Run FedProxy and the methods it is compared with, on the same data and seeds.

    CONFIG is a YAML file of settings, or the name of a shipped one, such as `quickstart`.

    The section `compare` of the settings says which methods and remove ratios run, in how many processes.
    Cells (`DIR/cells/`) that other machines made with the same settings can be copied into DIR.

    Example: `fedproxy-secure compare quickstart --out runs/first`
    """
    if report_only and not dry_run:
        _report_cells(config, changes or [], out)
    else:
        _start("compare", config, changes or [], out=out, resume=resume, dry_run=dry_run)


def matrix_command(
    config: ConfigArgument,
    changes: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    signing_key: SigningKeyOption = None,
) -> None:
    """Sweep protection x compression x remove ratio x fusion x adapter x seed; run, attack, measure each.

    CONFIG is a YAML file of settings, or the name of a shipped one, such as `quickstart`.

    The section `matrix` of the settings says what is swept, and in how many processes. The section
    `attacks` says which suite of attacks runs. A cell that fails is listed in the report, and the other
    cells still run. Exit code 2: none has finished.

    Example: `fedproxy-secure matrix demo_matrix --out runs/first`
    """
    more = _signed_with(signing_key)
    _start("matrix", config, [*(changes or []), *more], out=out, resume=resume, dry_run=dry_run)


def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the report.")] = Path(
        "runs/joined"
    ),
) -> None:
    """Join runs and matrices into one report: tables, `report.html`, `report.json`, `report.sarif`.

    DIR... are folders that `run` or `matrix` wrote. Runs of the same settings become one configuration over
    their seeds.

    Example: `fedproxy-secure report runs/a runs/b --out runs/both`
    """
    with plain_errors(again=None):
        from fedproxy_secure.experiments.join import join

        show_report(join(folders, out, command=typed("report", *folders, out=out)), out)


class _Work(Protocol):
    def __call__(
        self,
        config: Config,
        out: Path,
        *,
        resume: bool,
        progress: Progress | None,
        command: str,
    ) -> Report: ...


def _start(
    command: str,
    name: str,
    changes: list[str],
    *,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    suite: str = "none",
) -> None:
    """Do what `run`, `compare` and `matrix` share: read settings, show progress, print table and report."""
    with plain_errors(again=None):
        config = load_config(find_config(name), changes)
        if suite != "none":
            from fedproxy_secure.experiments.attacked import check_attacks, check_transcript

            check_attacks(config)
            check_transcript(config)
    folder = out or Path("runs") / config.name
    words = _typed(command, name, changes, folder, suite)
    with plain_errors(again=f"{words} --resume"):
        if dry_run:
            for label, value in _plan_rows(command, config):
                typer.echo(f"{label}: {value}")
            return
        from fedproxy_secure.cli.progress import shown_on

        if resume and is_new(folder):
            typer.echo(f"{folder}: has nothing to resume; a new {command} begins in it", err=True)
        work = _work(command)
        with shown_on(Console(stderr=True)) as progress:
            report = work(config, folder, resume=resume, progress=progress, command=words)
            if suite != "none":
                from fedproxy_secure.experiments.attacked import attacked_report

                report = attacked_report(config, folder, progress=progress, command=words)
        show_report(report, folder)
        if command == "matrix" and not any(c.seeds for c in report.configurations):
            raise FedProxyError(
                f"{folder}: no cell of the matrix finished; see why above, then add --resume"
            )


def _report_cells(name: str, changes: list[str], out: Path | None) -> None:
    """Write and print the report of the cells that a comparison's folder has."""
    with plain_errors(again=None):
        from fedproxy_secure.experiments.compare import compare_report

        config = load_config(find_config(name), changes)
        folder = out or Path("runs") / config.name
        report = compare_report(config, folder, command=_typed("compare", name, changes, folder))
        show_report(report, folder)


def _plan_rows(command: str, config: Config) -> list[tuple[str, str]]:
    from fedproxy_secure.experiments import compare, matrix
    from fedproxy_secure.experiments.dry_run import plan

    if command == "run":
        planned = plan(config)
        return [*planned.rows(), planned.time_row()]
    sweep = matrix if command == "matrix" else compare
    rows, planned = sweep.plan_rows(config), plan(config, in_cells=True)
    return [*rows, *planned.rows(), sweep.time_row(config, planned.pace)]


def _work(command: str) -> _Work:
    if command == "compare":
        from fedproxy_secure.experiments.compare import compare

        return compare
    if command == "matrix":
        from fedproxy_secure.experiments.matrix import matrix

        return matrix
    from fedproxy_secure.experiments.run import run

    return run


def show_report(report: Report, folder: Path) -> None:
    """Print a report's tables, what is unsafe or failed, its notes, and where it lies."""
    from fedproxy_secure.report.tables.measures import comparison_lines
    from fedproxy_secure.report.text.table import rich_tables
    from fedproxy_secure.report.text.trilemma_table import rich_trilemma
    from fedproxy_secure.runtime.escape import printable

    console = Console()
    for table in rich_tables(report):
        console.print(table)
    if report.configurations:
        console.print(*rich_trilemma(report.configurations, width=console.width))
    for configuration in report.configurations:
        for line in (*configuration.unsafe, *configuration.failed):
            console.print(printable(f"{configuration.name}: {line}"), markup=False, highlight=False)
    for line in comparison_lines(report):
        console.print(printable(line), markup=False, highlight=False)
    for note in (*report.composition, *report.notes):
        console.print(printable(f"note: {note}"), markup=False, highlight=False)
    console.print(f"report: {folder / REPORT_PAGE}", markup=False, highlight=False, soft_wrap=True)
    for line in signed_lines(folder):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _signed_with(key: Path | None) -> list[str]:
    return [] if key is None else [f"audit.signing_key={json.dumps(str(key))}"]


def _typed(command: str, name: str, changes: list[str], folder: Path, suite: str = "none") -> str:
    attacks = None if suite == "none" else suite
    return typed(command, name, set=changes, suite=attacks, out=folder)
