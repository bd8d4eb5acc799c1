"""What runs in a deployment's folder, and its end: found by the file that the process holds locked."""

from __future__ import annotations

import os
import signal
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime import only_one
from fedproxy_secure.runtime.only_one import POLL_S, running

STOP_S = 60.0


def the_only_one(folder: Path, what: str) -> AbstractContextManager[None]:
    """Hold the folder for this process in a `with` block.

    Raises `FolderInUse` if another process holds it, `RunFolderError` if it cannot be written.
    """
    return only_one.the_only_one(folder, what, remedy="`deploy stop` ends it")


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
        time.sleep(POLL_S)
    return True
