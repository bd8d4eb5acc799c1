"""The end of a command: one line for an error raised on purpose, and an exit code.

0 done; 2 a wrong setting, file or installation; 75 what may pass by itself: a round was aborted, or another
process holds the folder; 130 interrupted; 143 ended by SIGTERM, as `deploy stop` does. Commands of other
packages use this too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.runtime.escape import printable

BAD, PASSING, INTERRUPTED = 2, 75, 130  # 75 is EX_TEMPFAIL of sysexits.h: a service manager tries again
TERMINATED = 143  # raised by `terminated_like_interrupted`, which the commands of `deploy` run in


@contextmanager
def plain_errors(*, again: str | None) -> Iterator[None]:
    """Turn errors raised on purpose into one line and exit code 2 or 75; after Ctrl-C, say how to go on.

    `again`: the command that goes on; None: there is no such command.
    """
    try:
        yield
    except FedProxyError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        raise typer.Exit(PASSING if error.passing else BAD) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        if again is not None:
            typer.echo(f"resume with: {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
