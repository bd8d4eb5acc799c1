"""The proxy's files: their hash, and how they reach a client that does not have them.

Guarantees: a client runs only a proxy whose files hash to what the server named, and a server's file
names cannot leave the client's cache folder. Under masking all clients of a sum run the same one. Not
guaranteed: that the server named an honest proxy.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecord

from fedproxy_secure.errors import DataError

_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_on_this_host: dict[str, Path] = {}  # proxies that server and clients of one process share


def folder_sha256(folder: Path) -> str:
    """Hex digest over the sorted names and contents of a folder's files."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{file.name}\0{digest}\n".encode())
    return total.hexdigest()


@contextmanager
def offered_on_this_host(folder: Path) -> Iterator[None]:
    """Meanwhile, let clients in this process use the folder as it lies."""
    sha256 = folder_sha256(folder)
    _on_this_host[sha256] = folder
    try:
        yield
    finally:
        _on_this_host.pop(sha256, None)


def find(sha256: str) -> Path | None:
    """Where this client has the proxy of that hash, or None. Raises `DataError` for what is no hash."""
    _check_hash(sha256)
    if sha256 in _on_this_host:
        return _on_this_host[sha256]
    folder = cache_folder() / sha256
    return folder if folder.is_dir() else None


def _check_hash(sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError(f"proxy hash {sha256[:80]!r}: must be 64 hex digits")


def cache_folder() -> Path:
    """`$FEDPROXY_CACHE`, or a folder below the user's cache."""
    chosen = os.environ.get("FEDPROXY_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "fedproxy-secure" / "proxies"


def pack(folder: Path) -> ConfigRecord:
    """The folder's files as a record of bytes."""
    return ConfigRecord({p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()})


def unpack(files: ConfigRecord, sha256: str) -> Path:
    """Store received files in the cache and return their folder.

    Raises `DataError` for a name with a path in it, or contents that do not hash to `sha256`; then
    nothing is kept.
    """
    _check_hash(sha256)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix=".partial-"))
    try:
        for name, data in files.items():
            if not _PLAIN_NAME.match(name) or not isinstance(data, bytes):
                raise DataError(f"proxy file {name!r}: must be a plain file name with bytes")
            (partial / name).write_bytes(data)
        found = folder_sha256(partial)
        if found != sha256:
            raise DataError(f"proxy files hash to {found[:12]}: must be {sha256[:12]}")
        target = cache / sha256
        try:
            os.replace(partial, target)
        except OSError:  # another client of this machine was faster
            if not target.is_dir():
                raise
        return target
    finally:
        shutil.rmtree(partial, ignore_errors=True)
