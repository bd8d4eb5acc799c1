"""The cache in which a client keeps proxies, and proxies that are on its machine anyway.

Guarantees: a client runs only a proxy whose files hash to what the server named, read again whenever their
sizes, inodes or times have changed; only files that a proxy may hold are kept (see `proxy_intake.files`),
and their names cannot leave the client's cache folder. Under masking all clients of a sum run the same one.
Each client keeps its own copy of a traced proxy, which hashes to what the server named once the agreed rows
are put back. Not guaranteed: that the server named an honest proxy; what the files load as, which the
digest in the job fixes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake.files import (
    check_folder,
    folder_sha256,
    verified_sha256,
)
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.tracing.marks import Marks

_CLIENT = re.compile(r"^[A-Za-z0-9_-]{1,200}\Z")
_on_this_host: dict[str, Path] = {}  # proxies that server and clients of one process share
_caches: list[Path] = []


@contextmanager
def offered_on_this_host(folder: Path) -> Iterator[None]:
    """Let clients in this process use the folder as it lies, inside a `with` block."""
    sha256 = verified_sha256(folder)
    _on_this_host[sha256] = folder
    try:
        yield
    finally:
        _on_this_host.pop(sha256, None)


def find(sha256: str, *, marks: Marks | None = None, client: str = "") -> Path | None:
    """Return where this client has the proxy of that hash, or None.

    Args:
        marks, client: of a traced proxy, which is the client's own copy; its hash is without its marks.

    Raises `DataError` for what is no hash, and for files that have changed since they came.
    """
    check_hash(sha256)
    kept = _kept(sha256, marks, client)
    folder = _on_this_host.get(sha256, kept)
    if not folder.is_dir():
        return None
    if folder == kept and folder.is_symlink():
        raise DataError(f"proxy {sha256[:12]}: is a link in the cache; must be a folder; remove it")
    digest = verified_sha256(folder) if marks is None else verified_sha256(folder, marks)
    if digest != sha256:
        raise DataError(f"proxy {sha256[:12]}: its files have changed since they came; remove its folder")
    return folder


def _kept(sha256: str, marks: Marks | None, client: str) -> Path:
    """Return where the cache has a proxy, or a client's own copy: clients of one machine share no copy."""
    if marks is None:
        return cache_folder() / sha256
    check_client(client)
    return cache_folder() / f"{sha256}.{client}"


def check_client(client: str) -> None:
    """Raise `DataError` unless a client's name can be part of a file's name."""
    if not _CLIENT.match(client):
        raise DataError(f"client {quoted(client)}: must be a name of letters, digits, - and _")


def check_hash(sha256: str) -> None:
    """Raise `DataError` for what is no hash."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError(f"proxy hash {quoted(sha256)}: must be 64 hex digits")


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Let clients of this process keep proxies in a folder of its own, inside a `with` block."""
    _caches.append(folder)
    try:
        yield
    finally:
        _caches.remove(folder)


def cache_folder() -> Path:
    """Return `$FEDPROXY_CACHE`, or a folder below the user's cache; inside `kept_in`, its folder."""
    if _caches:
        return _caches[-1]
    chosen = os.environ.get("FEDPROXY_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "fedproxy-secure" / "proxies"


def keep(partial: Path, sha256: str, *, marks: Marks | None = None, client: str = "") -> Path:
    """Move a folder of received files to its place in the cache; `marks` and `client` as for `find`.

    Raises `DataError` for files that a proxy may not hold, or that do not hash to `sha256`.
    """
    place = _kept(sha256, marks, client)
    actual = folder_sha256(partial) if marks is None else folder_sha256(partial, marks)
    if actual != sha256:
        raise DataError(f"proxy files hash to {actual[:12]}: must be {sha256[:12]}")
    check_folder(partial)
    try:
        os.replace(partial, place)
    except OSError:  # another client of this machine was faster
        if not place.is_dir():
            raise
    kept = find(sha256, marks=marks, client=client)
    assert kept is not None
    return kept
