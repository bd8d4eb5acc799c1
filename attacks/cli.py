"""The command `fedproxy-secure attack`: lists, explains, runs and reports attacks on a recorded run."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from attacks.commands.options import check_seconds, profile_of
from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.options import typed
from fedproxy_secure.errors import FedProxyError

if TYPE_CHECKING:
    from fedproxy_secure.evidence.finding import Finding

FINDING, INCONCLUSIVE = 1, 3
MOST_JOBS = 4

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Attack a recorded run: what could the server, a client or an outsider find out?\n\n"
    "Record one with `fedproxy-secure run demo_attacked --record`, then\n\n"
    "`fedproxy-secure attack run --run runs/demo_attacked`",
)

RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="The run's folder.")]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Exit with code 1 if an attack succeeded, with 3 if one was inconclusive or failed.",
    ),
]


@app.command("list")
def list_command() -> None:
    """List all attacks: id, name, the smallest suite that runs them, what they find."""
    with plain_errors(again=None):
        from attacks.registry import every

        for one in every().values():
            smallest = "smoke" if one.info.smoke else "standard"
            typer.echo(f"{one.info.id:<4} {one.info.name:<22} {smallest:<9} {one.info.title}")


@app.command()
def info(name: str) -> None:
    """Explain one attack, or all with an id: what it needs, which threat models fit, how it is judged.

    Example: `fedproxy-secure attack info A2`
    """
    with plain_errors(again=None):
        from attacks.fit import fitting
        from attacks.registry import find

        for one in find(name):
            i = one.info
            typer.echo(f"{i.id} {i.name}: {i.title}")
            typer.echo(f"paper: {i.paper}")
            typer.echo(f"needs: {' or '.join('+'.join(sorted(n)) for n in i.needs)}")
            typer.echo(f"fits: {', '.join(fitting(one)) or 'no threat model'}")
            typer.echo(
                f"succeeds: if the interval of {i.headline} begins above {i.chance + i.margin:g} "
                f"(chance {i.chance:g})"
            )
            for framework, version, key in i.mapping:
                typer.echo(f"maps to: {framework} {version} {key}")
            text = sys.modules[type(one).__module__].__doc__ or type(one).__doc__ or ""
            typer.echo(f"\n{text.strip()}\n")


@app.command("run")
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
    suite: Annotated[
        str, typer.Option("--suite", metavar="smoke|standard|full", help="How much to spend.")
    ] = "smoke",
    budget_seconds: Annotated[
        float,
        typer.Option(
            min=1.0, help="Time limit for one attack from one view, controls included, in seconds."
        ),
    ] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same guesses.")] = 0,
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
    fails gets a row in the table and stops nothing else. If you interrupt the suite, the results so far are
    kept, and `attack report` shows them. Results of before stay until others take their place.

    Example: `fedproxy-secure attack run --run runs/demo_attacked --view server --spec A2`
    """
    views = view or ["server", "client"]
    options = {"run": run, "suite": suite, "seed": seed, "view": views, "spec": spec}
    limits = {"budget_seconds": f"{budget_seconds:g}", "jobs": jobs or None}
    with plain_errors(again=typed("attack", "run", **options, **limits, resume=True, strict=strict)):
        from attacks.entry import WORKERS_NEED
        from fedproxy_secure.runtime.preload import warm_up

        profile = profile_of(suite)
        check_seconds(budget_seconds)
        at_a_time = jobs or min(os.cpu_count() or 1, MOST_JOBS)
        if at_a_time > 1:
            warm_up(WORKERS_NEED)

        from attacks import registry
        from attacks.commands.table import outcome_line
        from attacks.suite import run_suite
        from fedproxy_secure.audit.witness import reopen_findings
        from fedproxy_secure.cli.progress import shown_on
        from fedproxy_secure.evidence.finding import RESULTS, read_findings
        from fedproxy_secure.runtime.only_one import only_run_in
        from threat_models import get as threat_model

        attacks = {a.info.name: a for s in spec or [] for a in registry.find(s)}
        models = [threat_model(v) for v in views]
        held = only_run_in(run) if run.is_dir() else nullcontext()  # nothing is made for a wrong name
        try:
            with held, shown_on(Console(stderr=True)) as progress:
                reopen_findings(run)
                results = run_suite(
                    run,
                    attacks=list(attacks.values()) or registry.suite(profile),
                    threat_models=models,
                    profile=profile,
                    seconds=budget_seconds,
                    seed=seed,
                    resume=resume,
                    llm=llm_of(run),
                    jobs=at_a_time,
                    progress=progress,
                    on_result=lambda r: typer.echo(outcome_line(r)),
                )
        except KeyboardInterrupt:
            with suppress(FedProxyError):  # there may be none yet
                _show(read_findings(run))
            raise
        _show(results)
        typer.echo(f"results: {run / 'attacks' / RESULTS}")
    _exit(results, strict)


@app.command()
def report(run: RunOption, strict: StrictOption = False) -> None:
    """Show the results of attacks on a run as a table."""
    with plain_errors(again=None):
        from fedproxy_secure.evidence.finding import read_findings

        results = read_findings(run)
        _show(results)
    _exit(results, strict)


@app.command()
def model(
    path: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A Hugging Face folder, a .gguf file, demo or smollm2."),
    ],
    members: Annotated[
        Path | None, typer.Option(help="A6: JSONL of `text` that the model may have been trained on.")
    ] = None,
    others: Annotated[
        Path | None, typer.Option(help="A6: JSONL of `text` that it was not trained on.")
    ] = None,
    canaries: Annotated[
        Path | None, typer.Option(help="A7: JSONL of `prompt`, `secret` (4 digits) and `repeats`.")
    ] = None,
    proxy: Annotated[
        Path | None, typer.Option(help="A12: the smaller model the adversary holds; MODEL is the victim.")
    ] = None,
    api: Annotated[
        list[str] | None,
        typer.Option(
            "--api",
            metavar="KEY=VALUE",
            help="What MODEL's API tells, as in the section `api` of the settings; may be repeated. "
            "Example: `--api answers=text`",
        ),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", metavar="smoke|standard|full", help="How much to spend.")
    ] = "smoke",
    budget_seconds: Annotated[
        float, typer.Option(min=1.0, help="Time limit for one attack, controls included, in seconds.")
    ] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same guesses.")] = 0,
    strict: StrictOption = False,
) -> None:
    """Attack a model alone, offline: membership (A6), canaries (A7), extraction (A12).

    The search for the model's hidden size always runs. The other attacks need the files that the options
    name.

    Example: `fedproxy-secure attack model runs/x/seed-0/fused --proxy runs/x/seed-0/proxy`
    """
    with plain_errors(again=None):
        from attacks.folder import attack_folder
        from fedproxy_secure.config import apply_overrides, parse_config

        check_seconds(budget_seconds)
        policy = parse_config(apply_overrides({}, [f"api.{change}" for change in api or []])).api
        results = attack_folder(
            path,
            members=members,
            others=others,
            canaries=canaries,
            proxy=proxy,
            api=policy,
            profile=suite,
            seconds=budget_seconds,
            seed=seed,
        )
        _show(results)
    _exit(results, strict)


def llm_of(run: Path) -> str | None:
    """Return the path of the owner's model from the run's settings, or None if they cannot be read."""
    import yaml

    from fedproxy_secure.runtime.untrusted import parse_yaml

    try:
        raw = parse_yaml((run / "config.yaml").read_bytes())
        return str(raw["model"]["path"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None


def _show(results: list[Finding]) -> None:
    from attacks.commands.table import rich_tables

    Console().print(rich_tables(results))


def _exit(results: list[Finding], strict: bool) -> None:
    if not strict:
        return
    outcomes = {str(r.outcome) for r in results}
    if "SUCCEEDED" in outcomes:
        raise typer.Exit(FINDING)
    if outcomes & {"INCONCLUSIVE", "ERROR"}:
        raise typer.Exit(INCONCLUSIVE)
