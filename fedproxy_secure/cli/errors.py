"""The end of a command: one line for an error raised on purpose, and an exit code.

0 done; 2 a wrong setting, file or installation, or a check of secure aggregation that failed; 75 a
temporary failure: a round was aborted because of too few clients, or another process holds the folder; 130
interrupted; 143 stopped by SIGTERM, which `deploy stop` sends. Commands of other packages use this module
too. After an unexpected error Python itself exits with 1; commands whose exit code 1 is a verdict pass
`verdict=True` and exit with 2 instead.
"""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.runtime.escape import printable

log = logging.getLogger(__name__)
BAD, PASSING, INTERRUPTED = 2, 75, 130  # 75 is EX_TEMPFAIL of sysexits.h: a service manager tries again

SYSTEMS = {  # file errors caused by the system or the user; all others are bugs of this program
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "ENOTDIR", "EISDIR"),
        *("ENOSPC", "EROFS", "EDQUOT", "EIO"),
    )
}


@contextmanager
def plain_errors(*, again: str | None, verdict: bool = False) -> Iterator[None]:
    """Turn errors raised on purpose into one line and exit code 2 or 75; after Ctrl-C, say how to resume.

    Files that the system does not let a command open are reported in the same way, with the traceback
    logged at level debug. Other errors are shown with their traceback.

    Args:
        again: the command that goes on; None: there is no such command.
        verdict: whether the command's exit code 1 is a verdict; an error that nobody foresaw is then 2.
    """
    try:
        yield
    except FedProxyError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        raise typer.Exit(PASSING if error.passing else BAD) from None
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        if again is not None:
            typer.echo(f"resume with: {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None and error.errno in SYSTEMS:
            log.debug("raised by the system", exc_info=True)
            typer.echo(f"error: {printable(f'{error.filename}: {error.strerror}')}", err=True)
        elif verdict:
            traceback.print_exc()
        else:
            raise
        raise typer.Exit(BAD) from None
