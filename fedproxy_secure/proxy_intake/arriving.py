"""Receive a proxy in parts: a client keeps what has come on disk until the proxy is complete.

Bytes go to one file of the client's own in its cache, in their order. Whoever is interrupted, on either
side, goes on at that file's end. The last part is followed by the checks of `proxy_intake.store`.

Guarantees: a part is appended where the file ends, or ignored, so that a part that comes twice, or too
early, changes nothing; a write that a kill or a full disk cuts short is gone on with from where it ends.
It is flushed to the disk before it is answered. Names, sizes and the room on the disk are checked before a
byte of a part is written. A proxy is put in its place only if its files hash to what the server named;
otherwise all that came of it is deleted. Memory holds one part.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake import store
from fedproxy_secure.proxy_intake.files import check_count, check_name
from fedproxy_secure.proxy_intake.parts import Part
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.tracing.marks import Marks

MOST_UNFINISHED = 2  # proxies that a client has begun to take; the oldest gives way to another
_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_PIECE = 2**20
_MOST_BYTES = 2**50


def arrived_bytes(sha256: str, *, client: str, copy: str = "") -> int:
    """Return how many bytes of a proxy a client has received so far.

    Args:
        sha256, copy: as in `Part`.

    Raises `DataError` for what is no hash or no client's name.
    """
    with suppress(FileNotFoundError):
        return _incoming(sha256, client, copy).lstat().st_size
    return 0


def forget(sha256: str, *, client: str) -> None:
    """Delete the bytes that a client has received of an untraced proxy; it is no error if that fails."""
    with suppress(OSError):
        _incoming(sha256, client, "").unlink()


def take(part: Part, *, client: str, marks: Marks | None = None) -> Path | None:
    """Write the next part of a proxy to disk; return the proxy's folder once it is complete, else None.

    A part that is not the next one is ignored.

    Args:
        client: the client's name; each keeps what came for itself.
        marks: of a traced proxy, which is the client's own copy.

    Raises `DataError` for files that a proxy may not hold, a disk that is too small for them, or files that
    do not hash to what the part names.
    """
    total, incoming = _checked_size(part), _incoming(part.sha256, client, part.copy)
    if (kept := store.find(part.sha256, marks=marks, client=client)) is not None:
        incoming.unlink(missing_ok=True)  # another client of this machine has brought it
        return kept
    if part.at > 0 and not incoming.exists():
        return None
    incoming.parent.mkdir(parents=True, exist_ok=True)
    _forget_oldest(incoming)
    with _locked(incoming) as file:
        came = file.seek(0, os.SEEK_END)
        partial = _partial(incoming)
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed here
        try:
            _check_space(incoming.parent, 2 * total - min(came, total))
        except DataError:
            if came == 0:
                incoming.unlink(missing_ok=True)
            raise
        if part.at == came < total:
            file.write(part.data)
            file.flush()
            os.fsync(file.fileno())
            came = file.tell()
        if came < total or os.fstat(file.fileno()).st_nlink == 0:  # put in place meanwhile, or removed
            return None
        try:
            partial.mkdir()
            _divide(file, part.sizes, partial)
            kept = store.keep(partial, part.sha256, marks=marks, client=client)
        except DataError:
            incoming.unlink(missing_ok=True)  # nothing of it can be used
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        incoming.unlink(missing_ok=True)
        return kept


def _incoming(sha256: str, client: str, copy: str) -> Path:
    store.check_hash(sha256)
    store.check_client(client)
    return store.cache_folder() / f".incoming-{_short(client)}-{_short(f'{sha256}.{copy}')}"


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _checked_size(part: Part) -> int:
    """Return the bytes of all files together. Raises `DataError` for a wrong name, size or place."""
    check_count(len(part.sizes))
    for name, size in part.sizes.items():
        if not _PLAIN_NAME.match(name):
            raise DataError(f"proxy file {quoted(name)}: must be a plain file name")
        check_name(name)
        if not 0 <= size <= _MOST_BYTES:
            raise DataError(f"proxy file {name}: size {size}: must be 0 to {_MOST_BYTES}")
    total = sum(part.sizes.values())
    if not 0 <= part.at < part.at + len(part.data) <= total:
        raise DataError(
            f"proxy {part.sha256[:12]}: {len(part.data)} bytes from {part.at} on: must be at least one, "
            f"within its {total}"
        )
    return total


@contextmanager
def _locked(incoming: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it and to read it; one process at a time has it, and no link is followed.

    Two federations on one machine may have clients of one name.
    """
    try:
        descriptor = os.open(incoming, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DataError(f"proxy cache {incoming.parent}: cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _forget_oldest(incoming: Path) -> None:
    """Delete what came for this client of proxies that it was not sent to the end, but for the latest."""
    if incoming.exists():
        return
    client, times = incoming.name.rpartition("-")[0], {}
    for other in incoming.parent.glob(f"{client}-*"):
        with suppress(FileNotFoundError):  # another process was faster
            times[other] = other.lstat().st_mtime_ns
    for other in sorted(times, key=lambda one: times[one])[: 1 - MOST_UNFINISHED]:
        shutil.rmtree(_partial(other), ignore_errors=True)
        other.unlink(missing_ok=True)


def _partial(incoming: Path) -> Path:
    """Return the folder in which the files of a proxy are put together."""
    return incoming.with_name(incoming.name.replace("incoming", "partial"))


def _check_space(cache: Path, needed: int) -> None:
    """Raise `DataError` unless the disk has room for what is to come and for its division into files."""
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise DataError(
            f"proxy cache {cache}: needs {needed / 1e6:,.0f} MB more, twice the rest of the proxy, and has "
            f"{free / 1e6:,.0f}; free some disk"
        )


def _divide(came: BinaryIO, sizes: Mapping[str, int], folder: Path) -> None:
    """Write the files that follow one another in `came` to a folder."""
    came.seek(0)
    for name, size in sizes.items():
        with (folder / name).open("xb") as file:
            _copy(came, file, size)


def _copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    while count > 0:
        piece = source.read(min(_PIECE, count))
        if not piece:
            raise DataError("proxy: what came is shorter than it was")
        to.write(piece)
        count -= len(piece)
