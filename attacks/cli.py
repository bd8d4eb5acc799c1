"""The command `fedproxy-secure attack`: lists, explains, runs and reports attacks on a recorded run."""

from __future__ import annotations

import sys

import typer

from attacks.commands.ancestry import ancestry_command
from attacks.commands.model import model_command
from attacks.commands.options import RunOption, StrictOption, end, show
from attacks.commands.run import run_command
from attacks.commands.scores import scores_command
from fedproxy_secure.cli.errors import plain_errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Attack a recorded run: what could the server, a client or an outsider find out?\n\n"
    "Record one with `fedproxy-secure run demo_attacked --record`, then\n\n"
    "`fedproxy-secure attack run --run runs/demo_attacked`",
)


@app.command("list")
def list_command() -> None:
    """List all attacks: id, name, the smallest suite that runs them, what they find."""
    with plain_errors(again=None):
        from attacks.registry import every

        for entry in every().values():
            smallest = "smoke" if entry.info.smoke else "standard"
            typer.echo(f"{entry.info.id:<4} {entry.info.name:<22} {smallest:<9} {entry.info.title}")


@app.command()
def info(name: str) -> None:
    """Explain one attack, or all with an id: what it needs, which threat models fit, how it is judged.

    Example: `fedproxy-secure attack info A2`
    """
    with plain_errors(again=None):
        from attacks.fit import fitting
        from attacks.registry import find

        for entry in find(name):
            i = entry.info
            typer.echo(f"{i.id} {i.name}: {i.title}")
            typer.echo(f"paper: {i.paper}")
            typer.echo(f"needs: {' or '.join('+'.join(sorted(n)) for n in i.needs)}")
            typer.echo(f"fits: {', '.join(fitting(entry)) or 'no threat model'}")
            typer.echo(
                f"succeeds: if the interval of {i.headline} begins above {i.chance + i.margin:g} "
                f"(chance {i.chance:g})"
            )
            for framework, version, key in i.mapping:
                typer.echo(f"maps to: {framework} {version} {key}")
            text = sys.modules[type(entry).__module__].__doc__ or type(entry).__doc__ or ""
            typer.echo(f"\n{text.strip()}\n")


app.command("run")(run_command)


@app.command()
def report(run: RunOption, strict: StrictOption = False) -> None:
    """Show the results of attacks on a run as a table."""
    with plain_errors(again=None, verdict=strict):
        from fedproxy_secure.evidence.finding import read_findings

        results = read_findings(run)
        show(results)
    end(results, strict)


app.command("scores")(scores_command)
app.command("model")(model_command)
app.command("ancestry")(ancestry_command)
