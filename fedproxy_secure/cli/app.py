"""The command `fedproxy-secure`: it reads settings, calls the library and prints the results.

Exit codes: 0 done; 2 a wrong setting, file or installation, explained in one line; 130 interrupted.
Everything heavy is imported inside the commands, so that `--help` does not load torch.
"""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer
import typer.main

from fedproxy_secure import __version__
from fedproxy_secure.cli import (
    api,
    bundle,
    deploy,
    evidence,
    experiments,
    federation,
    installation,
    tracing,
)
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.escape import printable

QUIET = {  # environment variables of the libraries; a user's own values win
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
COMMANDS, OWN = "fedproxy_secure.commands", "fedproxy-secure"

app = typer.Typer(
    name="fedproxy-secure",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Tune an LLM with the private data of many clients; the whole LLM stays on its server.\n\n"
    "The server compresses its LLM to a proxy, clients tune the proxy on their records, the server "
    "merges their updates and plugs them back into the LLM.\n\n"
    "Start here: `fedproxy-secure matrix demo_trilemma`",
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if version:
        typer.echo(f"fedproxy-secure {__version__}")
        raise typer.Exit


def add_commands(to: typer.Typer) -> None:
    """Add the commands of other packages, found by the entry point group `COMMANDS`.

    The attacks' commands are found this way too, because this package never imports the attacks. A command
    that cannot be loaded, or whose name is taken, is skipped with a warning: no package may disable or
    replace a command such as `gate` or `attack`.
    """
    taken = {one.name for one in to.registered_commands} | {one.name for one in to.registered_groups}
    for point in sorted(entry_points(group=COMMANDS), key=_ours_first):
        try:
            if point.name in taken:
                raise ConfigError("a command of this name exists already; rename the entry point")
            commands = point.load()
            if not isinstance(commands, typer.Typer):
                raise ConfigError("must be an object of typer.Typer")
            alone = typer.Typer()
            alone.add_typer(commands, name=point.name)
            typer.main.get_command(alone)  # a parameter that Typer cannot read would end every command
        except (Exception, SystemExit) as error:  # somebody else's module may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, SystemExit):
                reason = "ends the process when it is imported"
            line = f"warning: command {point.name!r} of {point.value} is left out: {reason}"
            typer.echo(printable(line), err=True)
            continue
        to.add_typer(commands, name=point.name)
        taken.add(point.name)


def _ours_first(point: EntryPoint) -> tuple[bool, str, str]:
    return point.dist is None or point.dist.name != OWN, point.name, point.value


app.command("run")(experiments.run_command)
app.command("compare")(experiments.compare_command)
app.command("matrix")(experiments.matrix_command)
app.command("report")(experiments.report_command)
app.command("pretrain-demo")(installation.pretrain_demo)
app.command("doctor")(installation.doctor)
app.command("privacy")(federation.privacy)
app.command("provision")(federation.provision)
app.command("selftest")(federation.selftest)
app.add_typer(deploy.app, name="deploy")
app.add_typer(api.api_app, name="api")
app.command("gate")(evidence.gate)
app.add_typer(evidence.audit_app, name="audit")
app.add_typer(bundle.evidence_app, name="evidence")
app.add_typer(tracing.trace_app, name="trace")
add_commands(app)
