"""The command `attack run`: a suite of attacks on a recorded run."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from attacks.commands.options import (
    RunOption,
    SeedOption,
    StrictOption,
    SuiteOption,
    check_seconds,
    end,
    profile_of,
    show,
)
from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.options import typed
from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.runtime.files.names import FINDINGS, SETTINGS_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attacks.base import Attack
    from fedproxy_secure.evidence.finding import Finding, Profile

MOST_JOBS = 4


def run_command(
    run: RunOption,
    spec: Annotated[
        list[str] | None,
        typer.Option("--spec", metavar="ATTACK", help="Only this attack, by name or id; may be repeated."),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            "--view", metavar="NAME", help="Threat model; may be repeated. Default: server, client."
        ),
    ] = None,
    suite: SuiteOption = "smoke",
    budget_seconds: Annotated[
        float,
        typer.Option(
            min=1.0, help="Time limit for one attack from one view, controls included, in seconds."
        ),
    ] = 600.0,
    seed: SeedOption = 0,
    jobs: Annotated[
        int,
        typer.Option(
            min=0, help=f"How many attacks run at once. Default: one per core, at most {MOST_JOBS}."
        ),
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the results that an earlier call finished.")
    ] = False,
    strict: StrictOption = False,
) -> None:
    """Run a suite of attacks on a recorded run; works offline, writes `attacks/results.json` below it.

    On the demo, `smoke` takes about a minute and `standard` about a quarter of an hour. An attack that
    fails gets a row in the table and does not stop the others. If you interrupt the suite, the results so
    far are kept, and `attack report` shows them. Earlier results are kept until new ones replace them.

    Example: `fedproxy-secure attack run --run runs/demo_attacked --view server --spec A2`
    """
    views = view or ["server", "client"]
    options = {"run": run, "suite": suite, "seed": seed, "view": views, "spec": spec}
    limits = {"budget_seconds": f"{budget_seconds:g}", "jobs": jobs or None}
    again = typed("attack", "run", **options, **limits, resume=True, strict=strict)
    with plain_errors(again=again, verdict=strict):
        profile = profile_of(suite)
        check_seconds(budget_seconds)
        at_once = jobs or min(os.cpu_count() or 1, MOST_JOBS)
        _warmed_up(at_once)
        results = _attacked(
            run,
            attacks=_chosen(spec or [], profile),
            views=views,
            profile=profile,
            seconds=budget_seconds,
            seed=seed,
            jobs=at_once,
            resume=resume,
        )
        show(results)
        typer.echo(f"results: {run / FINDINGS}")
    end(results, strict)


def _warmed_up(jobs: int) -> None:
    """Preload what attacks need in the server of worker processes, if there will be any."""
    from attacks.entry import WORKERS_NEED
    from fedproxy_secure.runtime.preload import warm_up

    if jobs > 1:
        warm_up(WORKERS_NEED)


def _chosen(specs: Sequence[str], profile: Profile) -> list[Attack]:
    """Return the attacks with these names or ids, each once; without any, those of the profile's suite."""
    from attacks import registry

    named = {a.info.name: a for spec in specs for a in registry.find(spec)}
    return list(named.values()) or registry.suite(profile)


def _attacked(
    run: Path,
    *,
    attacks: Sequence[Attack],
    views: Sequence[str],
    profile: Profile,
    seconds: float,
    seed: int,
    jobs: int,
    resume: bool,
) -> list[Finding]:
    """Run attacks on a run that no other process works on; print a line for each finding as it comes.

    On an interrupt, prints the findings so far as a table, then raises it again.
    """
    from attacks.commands.table import outcome_line
    from attacks.suite import run_suite, seed_folders
    from fedproxy_secure.audit.witness import reopen_findings
    from fedproxy_secure.cli.progress import shown_on
    from fedproxy_secure.evidence.finding import read_findings
    from fedproxy_secure.runtime.only_one import only_run_in
    from threat_models import get as threat_model

    models = [threat_model(v) for v in views]
    lock = only_run_in(run) if run.is_dir() else nullcontext()  # nothing is made for a wrong name
    try:
        with lock, shown_on(Console(stderr=True)) as progress:
            seed_folders(run)  # first: nothing is reopened where nothing can be attacked
            reopen_findings(run)
            return run_suite(
                run,
                attacks=attacks,
                threat_models=models,
                profile=profile,
                seconds=seconds,
                seed=seed,
                resume=resume,
                llm=llm_of(run),
                jobs=jobs,
                progress=progress,
                on_result=lambda r: typer.echo(outcome_line(r)),
            )
    except KeyboardInterrupt:
        with suppress(FedProxyError):  # there may be none yet
            show(read_findings(run))
        raise


def llm_of(run: Path) -> str | None:
    """Return the path of the owner's model from the run's settings, or None if they cannot be read."""
    import yaml

    from fedproxy_secure.runtime.untrusted import parse_yaml

    try:
        raw = parse_yaml((run / SETTINGS_FILE).read_bytes())
        return str(raw["model"]["path"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None
