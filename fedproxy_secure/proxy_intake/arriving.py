"""The client's side of a proxy that arrives in parts: what came is kept on disk, until all is there.

Bytes go to one file of the client's own in its cache, in their order. Whoever is interrupted, on either
side, goes on at that file's end. The last part is followed by the checks of `proxy_intake.store`.

Guarantees: a part is written where the file ends or not at all, so that a part that comes twice, or too
early, changes nothing. Names and sizes are checked before anything is written. A proxy is put in its place
only if its files hash to what the server named; otherwise all that came of it is deleted. Memory holds one
part.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake import store
from fedproxy_secure.proxy_intake.files import check_count, check_name
from fedproxy_secure.proxy_intake.parts import Part
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.tracing.marks import Marks

_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_PIECE = 2**20
_MOST_BYTES = 2**50
OLD_S = 7 * 24 * 3600.0  # after which the rest of a proxy is not gone on with


def arrived_bytes(sha256: str, *, client: str) -> int:
    """Return how many bytes of the proxy of that hash have come for a client. Raises as `store.find`."""
    with suppress(FileNotFoundError):
        return _incoming(sha256, client).stat().st_size
    return 0


def take(part: Part, *, client: str, marks: Marks | None = None) -> Path | None:
    """Keep a part if it is the next one; return the proxy's folder once all is there, None before.

    Args:
        client: the client's name; each keeps what came for itself.
        marks: of a traced proxy, which is the client's own copy.

    Raises `DataError` for files that a proxy may not hold, a disk that is too small for them, or files that
    do not hash to what the part names.
    """
    total, incoming = _checked_size(part), _incoming(part.sha256, client)
    if (kept := store.find(part.sha256, marks=marks, client=client)) is not None:
        return kept
    if part.at == 0:
        incoming.parent.mkdir(parents=True, exist_ok=True)
        _forget_others(incoming, client)
        _check_space(incoming.parent, total)
    if _append(part, incoming) < total:
        return None
    partial = Path(tempfile.mkdtemp(dir=incoming.parent, prefix=".partial-"))
    try:
        _divide(incoming, part.sizes, partial)
        kept = store.keep(partial, part.sha256, marks=marks, client=client)
    except DataError:
        incoming.unlink(missing_ok=True)  # to be sent again from its beginning
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    incoming.unlink(missing_ok=True)
    return kept


def _append(part: Part, incoming: Path) -> int:
    """Write a part at the end of the file, if that is its place; return how long the file is now.

    Two federations on one machine may have clients of one name: one of them at a time writes.
    """
    if part.at > 0 and not incoming.exists():
        return 0
    with incoming.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END) == part.at:
            file.write(part.data)
        return file.tell()


def _incoming(sha256: str, client: str) -> Path:
    store.check_hash(sha256)
    store.check_client(client)
    return store.cache_folder() / f".incoming-{sha256}.{client}"


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


def _forget_others(incoming: Path, client: str) -> None:
    """Delete what came long ago for this client, of proxies that it was not sent to the end."""
    for other in incoming.parent.glob(f".incoming-*.{client}"):
        if other != incoming and time.time() - other.stat().st_mtime > OLD_S:
            other.unlink(missing_ok=True)


def _check_space(cache: Path, total: int) -> None:
    """Raise `DataError` unless the disk has room for what arrives and for its division into files."""
    free = shutil.disk_usage(cache).free
    if 2 * total > free:
        raise DataError(
            f"proxy of {total / 1e6:,.0f} MB: needs twice as much disk, of which {free / 1e6:,.0f} MB are "
            "free; free some, or set FEDPROXY_CACHE to a folder on a larger disk"
        )


def _divide(incoming: Path, sizes: Mapping[str, int], folder: Path) -> None:
    """Write the files that follow one another in `incoming` to a folder."""
    with incoming.open("rb") as came:
        for name, size in sizes.items():
            with (folder / name).open("xb") as file:  # fails where names differ in case alone
                _copy(came, file, size)


def _copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    while count > 0:
        piece = source.read(min(_PIECE, count))
        if not piece:
            raise DataError("proxy: what came is shorter than it was")
        to.write(piece)
        count -= len(piece)
