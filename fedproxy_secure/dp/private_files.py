"""Files for their owner alone, written whole or not at all; and a lock that one holder has at a time.

Guarantees: `write_private` leaves the old file or the new one, never half of one, on the disk when it
returns, mode 0600. `alone` keeps out every other process and every other thread of this one; the operating
system frees the lock when its holder ends, however it ends, so no lock is ever left over. Not guaranteed:
on a file system without `flock` between machines or threads (some network ones), or after somebody deletes
the lock's file while it is held; that freed disk blocks are overwritten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedproxy_secure.errors import FolderInUse, RunFolderError

log = logging.getLogger(__name__)
POLL_S = 0.05
LOGGED_AFTER_S = 10.0  # after so long a line of log says which process holds the lock


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path` in the place of what is there, for one writer at a time (see `alone`).

    What an interrupted write left behind is overwritten by the next. Raises `RunFolderError` if that fails.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error


def remove_private(path: Path) -> None:
    """Remove a file and what an interrupted `write_private` may have left of it.

    Raises `RunFolderError` if one is there and stays.
    """
    try:
        removed = [_removed(path.with_name(f".{path.name}.part")), _removed(path)]
        if any(removed):
            _sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be removed: {error.strerror}") from error


@contextmanager
def alone(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the lock of the file `path`, made if need be, until the block is left. It cannot be held twice.

    Raises `FolderInUse`, naming the holder's process, if another holds it for longer than `wait_s`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be locked: {error.strerror}") from error
    try:
        _acquire(descriptor, path, wait_s)
        try:
            yield
        finally:
            # closing alone would not do: a process forked meanwhile has the same open file
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, wait_s: float) -> None:
    began, logged = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            waited = time.monotonic() - began
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be locked: {error.strerror}") from error
        if waited > wait_s:
            raise FolderInUse(
                f"{path}: is held by process {_holder(descriptor)} for more than {wait_s:g} s; wait for "
                "it, or end it: the lock ends with it"
            )
        if waited > LOGGED_AFTER_S and not logged:
            log.info("%s: waiting for process %s", path, _holder(descriptor))
            logged = True
        time.sleep(POLL_S)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename or a removal itself last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
