"""Lock a folder for one process at a time; the lock ends with the process.

    running.json    id and start of the process that holds the folder; removed on release

Guarantees: at most one holder, threads of one process included. The operating system frees the lock when
its holder ends in any way, so no stale lock remains, and no program that the holder has started keeps it. A
link in the file's place is refused.
Not guaranteed: between machines on a network file system that locks on each machine separately, or after
the file is deleted while it is held.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fedproxy_secure.errors import FolderInUse, RunFolderError
from fedproxy_secure.runtime.files.locks import locked, waited_for
from fedproxy_secure.runtime.files.names import RUNNING
from fedproxy_secure.runtime.untrusted import no_link, parse_json

MOST_BYTES = 4096  # most bytes of the file that are read
WAIT_S = 0.6  # above 0, because `running` holds the lock for a moment, too
WORKERS_S = 30.0  # time in which a worker ends after its parent was killed
POLL_S = 0.2


@contextmanager
def the_only_one(folder: Path, what: str, *, remedy: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the folder for this process in a `with` block.

    Args:
        what, remedy: for the message if another process holds the folder: what runs there, what to do.
        wait_s: how long to wait for another process to release it.

    Raises `FolderInUse`, without having written anything, if another process holds the folder;
    `RunFolderError` if it cannot be written or locked.
    """
    path = folder / RUNNING
    file = waited_for(lambda: _held(path), wait_s=wait_s, poll_s=POLL_S)
    if file is None:
        raise FolderInUse(f"{folder}: {what} runs here already{_named(folder)}; {remedy}")
    with file:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "since": since}).encode())
            file.flush()
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            with suppress(OSError):  # closing the file frees the lock in any case
                path.unlink()


@contextmanager
def only_run_in(folder: Path, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the folder of a run, a comparison or a matrix in a `with` block; create it if there is none.

    Raises `FolderInUse` if another process works in it, `RunFolderError` if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be a run folder: {_reason(error)}") from error
    with the_only_one(folder, "a command", remedy="wait until it ends, or end it first", wait_s=wait_s):
        yield


def running(folder: Path) -> int | None:
    """Return the id of the process that holds a folder, or None."""
    try:
        with open(folder / RUNNING, "rb", opener=no_link) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(parse_json(file.read(MOST_BYTES))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _held(path: Path) -> BinaryIO | None:
    """Return the file, open and locked, or None if another process holds it or has just released it."""
    try:
        file = open(path, "a+b", opener=no_link)  # noqa: SIM115 - started programs do not inherit it
    except OSError as error:
        if error.errno == errno.ELOOP:  # else the file that it points to would be emptied
            raise RunFolderError(f"{path}: is a link; must be a file; delete the link") from error
        raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        if locked(file.fileno()) and os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
            return file
    except FileNotFoundError:
        pass
    except OSError as error:
        file.close()
        raise RunFolderError(f"{path}: cannot be locked: {error.strerror}") from error
    file.close()  # another process holds it, or its last holder has removed it
    return None


def _named(folder: Path) -> str:
    process = running(folder)
    return "" if process is None else f", process {process}"


def _reason(error: OSError) -> str:
    return "Not a directory" if isinstance(error, FileExistsError) else str(error.strerror)
