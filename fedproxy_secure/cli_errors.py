"""How commands end: one line for what was raised on purpose, and the exit code that goes with it.

0 done; 2 a wrong setting, file or installation; 130 interrupted. Commands of other packages use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.escape import printable

INTERRUPTED = 130


@contextmanager
def plain_errors(*, again: str | None) -> Iterator[None]:
    """Errors raised on purpose become one line and exit code 2; Ctrl-C says how to go on."""
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
