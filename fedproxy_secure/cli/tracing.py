"""The commands `trace find` (which client's copy of a proxy leaked) and `trace copy` (remake a copy).

Exit codes of `trace find`: 0 a client is accused; 1 no client can be; 2 a wrong option, file or key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors

NOBODY = 1

trace_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Find out which client's copy of a proxy was passed on (runs with `compress.trace=true`).",
)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run with `compress.trace=true`.")
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="The seed whose proxy it is; left out, the run's only one."),
]


@trace_app.command("find")
def find_command(
    run: RunArgument,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The folder of the model that was found (safetensors).")
    ],
    seed: SeedOption = None,
    error: Annotated[
        float,
        typer.Option(help="Upper bound on the probability that any innocent client is accused."),
    ] = 1e-6,
) -> None:
    """Say whose copy of the proxy a model was made from, or that nobody can be accused.

    The model may be a copy as it was sent or a model that was tuned from one. Exit code 0: somebody is
    accused. 1: nobody can be. 2: a wrong option, file or key.

    Example: `fedproxy-secure trace find runs/demo found/model`
    """
    with plain_errors(again=None, verdict=True):
        from fedproxy_secure.audit.tracing import find_leak, only_seed

        leak = find_leak(run, model, seed=only_seed(run) if seed is None else seed, error=error)
        typer.echo(f"{'client':<24}{'score':>10}  an innocent client scores as high")
        for suspect in leak.suspects:
            chance = f"at most {suspect.chance:.1e}" if suspect.chance < 1 else "likely"
            mark = "  ACCUSED" if suspect.accused(leak.threshold) else ""
            typer.echo(f"{suspect.client:<24}{suspect.score:>10.1f}  {chance}{mark}")
        typer.echo(
            f"threshold {leak.threshold:.1f}: an innocent client is accused with probability at most "
            f"{leak.error:g}; {leak.positions} positions, strength {leak.strength:.2f} of 1"
        )
        if leak.accused:
            typer.echo(f"made from the copy of: {', '.join(leak.accused)}")
        else:
            typer.echo("nobody can be accused: no client's score reaches the threshold")
    raise typer.Exit(0 if leak.accused else NOBODY)


@trace_app.command("copy")
def copy_command(
    run: RunArgument,
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="The client whose copy to make again.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; must not be there yet.")],
    seed: SeedOption = None,
) -> None:
    """Write the proxy that one client was sent, to check `trace find` or to send it again.

    Example: `fedproxy-secure trace copy runs/demo clinic --out found/model`
    """
    with plain_errors(again=None):
        from fedproxy_secure.audit.tracing import only_seed, write_copy

        write_copy(run, client, out, seed=only_seed(run) if seed is None else seed)
        typer.echo(f"{out}: the copy of {client}")
