"""File locks: one holder at a time, freed by the operating system when the holder ends.

Guarantees: `alone` keeps out every other process and every other thread of this process; a lock ends with
its holder in any case, so no stale lock remains. Not guaranteed: on a file system without `flock` between
machines or threads (some network ones), or after the lock's file is deleted while it is held.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fedproxy_secure.errors import FolderInUse, RunFolderError

log = logging.getLogger(__name__)
POLL_S = 0.05
LOGGED_AFTER_S = 10.0  # wait after which the log names the process that holds the lock
T = TypeVar("T")


@contextmanager
def alone(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the lock of the file `path` in a `with` block; create the file if there is none.

    The lock is not reentrant. Raises `FolderInUse`, which names the holder's process, if another process or
    thread holds it for longer than `wait_s`.
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
            # closing is not enough, because a process forked meanwhile has the same open file
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Lock an open file without waiting; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def waited_for(
    attempt: Callable[[], T],
    *,
    wait_s: float,
    poll_s: float = POLL_S,
    meanwhile: Callable[[float], None] | None = None,
) -> T:
    """Call `attempt` until it returns something true or `wait_s` are over; return its last result.

    `meanwhile`: called between two attempts with the seconds so far.
    """
    began = time.monotonic()
    while not (result := attempt()):
        waited = time.monotonic() - began
        if waited >= wait_s:
            break
        if meanwhile is not None:
            meanwhile(waited)
        time.sleep(poll_s)
    return result


def _acquire(descriptor: int, path: Path, wait_s: float) -> None:
    logged = False

    def tell(waited: float) -> None:
        nonlocal logged
        if waited > LOGGED_AFTER_S and not logged:
            log.info("%s: waiting for process %s", path, _holder(descriptor))
            logged = True

    try:
        acquired = waited_for(lambda: locked(descriptor), wait_s=wait_s, meanwhile=tell)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be locked: {error.strerror}") from error
    if not acquired:
        raise FolderInUse(
            f"{path}: has been locked by process {_holder(descriptor)} for more than {wait_s:g} s; wait "
            "until that process ends, or end it, which frees the lock"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
