"""The end of a command: one line for an error raised on purpose, and an exit code.

0 done; 2 a wrong setting, file or installation; 130 interrupted. Commands of other packages use this too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.runtime.escape import printable

INTERRUPTED = 130


@contextmanager
def plain_errors(*, again: str | None) -> Iterator[None]:
    """Turn errors raised on purpose into one line and exit code 2; after Ctrl-C, say how to go on.

    `again`: the command that goes on; None: there is no such command.
    """
    try:
        yield
    except FedProxyError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        if again is not None:
            typer.echo(f"resume with: {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
