"""What runs in a folder: one process at a time, found and stopped by the file that it holds locked.

running.json    process id and start; locked by the process for as long as it lives
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.untrusted import parse_json

FILE = "running.json"
STOP_S = 60.0
LOOKS = 3
_POLL_S = 0.2


@contextmanager
def the_only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder for this process in a `with` block.

    Raises `RunFolderError` if another process holds it, or it cannot be written.
    """
    try:
        file = (folder / FILE).open("a+b")
    except OSError as error:
        raise RunFolderError(f"{folder / FILE}: cannot be written: {error.strerror}") from error
    with file:
        if not _locked(file.fileno()):
            raise RunFolderError(
                f"{folder}: {what} runs here already, process {running(folder)}; `deploy stop` ends it"
            )
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "since": since}).encode())
        file.flush()
        yield
        file.truncate(0)


def _locked(descriptor: int) -> bool:
    """Return whether a file could be locked; tried a few times, because `running` holds it for a moment."""
    for _ in range(LOOKS):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_POLL_S)
    return False


def running(folder: Path) -> int | None:
    """Return the id of the process that holds a folder, or None."""
    try:
        with (folder / FILE).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(parse_json(file.read())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def stop(folder: Path) -> bool:
    """End the process that holds a folder, and wait until it has let go; return whether there was one.

    Raises `RunFolderError` if it has not ended after a minute.
    """
    process = running(folder)
    if process is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while running(folder) is not None:
        if time.monotonic() > deadline:
            raise RunFolderError(f"{folder}: process {process} has not ended in {STOP_S:.0f} s")
        time.sleep(_POLL_S)
    return True
