"""`fedproxy-secure attack`: list, explain, run and report attacks on a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedproxy_secure.cli_errors import plain_errors
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    from fedproxy_secure.report.finding import Finding

FINDING, INCONCLUSIVE = 1, 3

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
    typer.Option("--strict", help="End with 1 if an attack succeeded, with 3 if one was inconclusive."),
]


@app.command("list")
def list_command() -> None:
    """All attacks: id, name, what they find, which suites run them."""
    with plain_errors(again=None):
        from attacks.base import every

        for one in every().values():
            suites = "smoke" if one.info.smoke else "standard"
            typer.echo(f"{one.info.id:<4} {one.info.name:<22} {suites:<9} {one.info.title}")


@app.command()
def info(name: str) -> None:
    """One attack: what it needs, which threat models fit, how it is judged, where it comes from.

    Example: `fedproxy-secure attack info A2`
    """
    with plain_errors(again=None):
        from attacks.base import get
        from attacks.fit import fitting

        one = get(name)
        doc = (type(one).__module__, one.info)
        typer.echo(f"{doc[1].id} {doc[1].name}: {doc[1].title}")
        typer.echo(f"paper: {doc[1].paper}")
        typer.echo(f"needs: {' or '.join('+'.join(sorted(n)) for n in doc[1].needs)}")
        typer.echo(f"fits: {', '.join(fitting(one)) or 'no threat model'}")
        typer.echo(
            f"succeeds: if {doc[1].headline} is above {doc[1].chance + doc[1].margin:g} by its interval "
            f"(chance {doc[1].chance:g})"
        )
        for framework, version, key in doc[1].mapping:
            typer.echo(f"maps to: {framework} {version} {key}")
        text = __import__(doc[0], fromlist=["x"]).__doc__ or ""
        typer.echo(f"\n{text.strip()}")


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
        float, typer.Option(min=1.0, help="Most seconds for one attack from one view, controls included.")
    ] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same guesses.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what was finished before.")] = False,
    strict: StrictOption = False,
) -> None:
    """Run a suite of attacks on a recorded run; works offline, writes `attacks/results.json` below it.

    `smoke` takes about a minute on the demo, `standard` about a quarter of an hour. An attack that fails is
    a row of the table.

    Example: `fedproxy-secure attack run --run runs/demo_attacked --view server --spec A2`
    """
    typed = f"fedproxy-secure attack run --run {run} --suite {suite} --seed {seed} --resume"
    with plain_errors(again=typed):
        from attacks.base import every, get
        from attacks.suite import run_suite
        from attacks.table import outcome_line
        from fedproxy_secure.cli_progress import shown_on
        from fedproxy_secure.report.finding import RESULTS
        from threat_models import get as threat_model

        if suite not in ("smoke", "standard", "full"):
            raise ConfigError(f"--suite {suite}: must be smoke, standard or full")
        chosen = [get(s) for s in spec or []]
        if not chosen:
            chosen = [a for a in every().values() if a.info.smoke or suite != "smoke"]
        models = [threat_model(v) for v in view or ("server", "client")]
        with shown_on(Console(stderr=True)) as progress:
            results = run_suite(
                run,
                attacks=chosen,
                threat_models=models,
                profile=suite,  # type: ignore[arg-type]
                seconds=budget_seconds,
                seed=seed,
                resume=resume,
                llm=llm_of(run),
                progress=progress,
                on_result=lambda r: typer.echo(outcome_line(r)),
            )
        _show(results)
        typer.echo(f"results: {run / 'attacks' / RESULTS}")
    _exit(results, strict)


@app.command()
def report(run: RunOption, strict: StrictOption = False) -> None:
    """The table of the last suite on a run."""
    with plain_errors(again=None):
        from fedproxy_secure.report.finding import read_findings

        results = read_findings(run)
        _show(results)
    _exit(results, strict)


@app.command()
def model(
    path: Annotated[Path, typer.Argument(metavar="FOLDER")],
    members: Annotated[
        Path | None, typer.Option(help="A6: JSONL of `text` that may have been trained on.")
    ] = None,
    others: Annotated[Path | None, typer.Option(help="A6: JSONL of `text` that was not.")] = None,
    proxy: Annotated[
        Path | None, typer.Option(help="A12: the smaller model the adversary holds; FOLDER is the victim.")
    ] = None,
    suite: Annotated[str, typer.Option(metavar="smoke|standard|full")] = "smoke",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Attack a Hugging Face folder alone: membership (A6) and extraction through a proxy (A12).

    Example: `fedproxy-secure attack model runs/x/seed-0/fused --proxy runs/x/seed-0/proxy`
    """
    with plain_errors(again=None):
        from attacks.folder import attack_folder

        results = attack_folder(path, members=members, others=others, proxy=proxy, profile=suite, seed=seed)
        _show(results)


def llm_of(run: Path) -> str | None:
    """The owner's model, as the run's settings name it."""
    import yaml

    try:
        raw = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return str(raw["model"]["path"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None


def _show(results: list[Finding]) -> None:
    from attacks.table import rich_table

    Console().print(rich_table(results))


def _exit(results: list[Finding], strict: bool) -> None:
    if not strict:
        return
    outcomes = {str(r.outcome) for r in results}
    if "SUCCEEDED" in outcomes:
        raise typer.Exit(FINDING)
    if outcomes & {"INCONCLUSIVE", "ERROR"}:
        raise typer.Exit(INCONCLUSIVE)
