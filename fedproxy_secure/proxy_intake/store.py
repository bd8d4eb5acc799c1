"""The transfer of a proxy's files to a client, and the cache in which the client keeps them.

Guarantees: a client runs only a proxy whose files hash to what the server named, read again before use;
only files that a proxy may hold are kept (see `proxy_intake.files`), and their names cannot leave the
client's cache folder. Under masking all clients of a sum run the same one. Not guaranteed: that the server
named an honest proxy; what the files load as, which the digest in the job fixes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake.files import (
    check_count,
    check_folder,
    check_name,
    folder_sha256,
    proxy_files,
    verified_sha256,
)
from fedproxy_secure.runtime.quoting import quoted

_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_on_this_host: dict[str, Path] = {}  # proxies that server and clients of one process share


@contextmanager
def offered_on_this_host(folder: Path) -> Iterator[None]:
    """Let clients in this process use the folder as it lies, inside a `with` block."""
    sha256 = verified_sha256(folder)
    _on_this_host[sha256] = folder
    try:
        yield
    finally:
        _on_this_host.pop(sha256, None)


def find(sha256: str) -> Path | None:
    """Return where this client has the proxy of that hash, or None.

    Raises `DataError` for what is no hash, and for files that have changed since they came.
    """
    _check_hash(sha256)
    kept = cache_folder() / sha256
    folder = _on_this_host.get(sha256, kept)
    if not folder.is_dir():
        return None
    if folder == kept and folder.is_symlink():
        raise DataError(f"proxy {sha256[:12]}: is a link in the cache; must be a folder; remove it")
    if verified_sha256(folder) != sha256:
        raise DataError(f"proxy {sha256[:12]}: its files have changed since they came; remove its folder")
    return folder


def _check_hash(sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DataError(f"proxy hash {quoted(sha256)}: must be 64 hex digits")


def cache_folder() -> Path:
    """Return `$FEDPROXY_CACHE`, or a folder below the user's cache."""
    chosen = os.environ.get("FEDPROXY_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "fedproxy-secure" / "proxies"


def pack(folder: Path) -> dict[str, bytes]:
    """Return the folder's files by name. Raises `DataError` for a folder that is no proxy's."""
    check_folder(folder)
    return {file.name: file.read_bytes() for file in proxy_files(folder)}


def unpack(files: Mapping[str, object], sha256: str) -> Path:
    """Store received files in the cache and return their folder.

    Raises `DataError` for files that a proxy may not hold, or that do not hash to `sha256`; then nothing is
    kept.
    """
    _check_hash(sha256)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    check_count(len(files))
    for name, data in files.items():
        if not _PLAIN_NAME.match(name) or not isinstance(data, bytes):
            raise DataError(f"proxy file {quoted(name)}: must be a plain file name with bytes")
    for name in files:
        check_name(name)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix=".partial-"))
    try:
        for name, data in files.items():
            assert isinstance(data, bytes)
            with (partial / name).open("xb") as file:  # fails where names differ in case alone
                file.write(data)
        actual = folder_sha256(partial)
        if actual != sha256:
            raise DataError(f"proxy files hash to {actual[:12]}: must be {sha256[:12]}")
        check_folder(partial)
        try:
            os.replace(partial, cache / sha256)
        except OSError:  # another client of this machine was faster
            if not (cache / sha256).is_dir():
                raise
        kept = find(sha256)
        assert kept is not None
        return kept
    finally:
        shutil.rmtree(partial, ignore_errors=True)
