"""A proxy's files as one sequence of bytes, which an owner reads and sends in parts.

The files follow one another in the order of their names. A part names all files with their sizes, and the
byte at which its own bytes belong. So each part says where it goes, whatever came before it, and neither
side holds more than one part in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedproxy_secure.errors import DataError
from fedproxy_secure.proxy_intake.files import check_folder, proxy_files


@dataclass(frozen=True, kw_only=True)
class Part:
    """Bytes of a proxy on their way to a client.

    Args:
        sha256: the proxy's hash, 64 hex digits.
        sizes: bytes of each of its files, by name, in their order.
        at: where in all files together these bytes begin.
        data: the bytes.
        copy: which copy of a traced proxy they belong to, 64 hex digits; "" for a proxy without marks.
            Parts of two copies are never joined.
    """

    sha256: str
    sizes: Mapping[str, int]
    at: int
    data: bytes
    copy: str = ""

    @classmethod
    def whole(cls, files: Mapping[str, bytes], sha256: str) -> Part:
        """Return files of that hash as one part."""
        sizes = {name: len(data) for name, data in files.items()}
        return cls(sha256=sha256, sizes=sizes, at=0, data=b"".join(files.values()))


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A proxy's folder, as it is sent to one client.

    Args:
        folder: the proxy's.
        sizes: bytes of each file, by name, in the order in which they are sent.
        own_file: name of the file of which the client gets a copy of its own; "" for none.
        own_bytes: what differs in that copy: bytes by the place in the file at which they begin.
    """

    folder: Path
    sizes: Mapping[str, int]
    own_file: str = ""
    own_bytes: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, *, own_file: str = "", own_bytes: Mapping[int, bytes] | None = None) -> Offer:
        """Return the offer of a folder. Raises `DataError` for a folder that is no proxy's."""
        check_folder(folder)
        sizes = {file.name: file.stat().st_size for file in proxy_files(folder)}
        return cls(folder=folder, sizes=sizes, own_file=own_file, own_bytes=own_bytes or {})

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(self.sizes.values())

    @cached_property
    def copy(self) -> str:
        """Which copy it is, as `Part` names it."""
        if not self.own_file:
            return ""
        digest = hashlib.sha256(self.own_file.encode())
        for place, changed in sorted(self.own_bytes.items()):
            digest.update(f" {place} {len(changed)} ".encode() + changed)
        return digest.hexdigest()

    def read(self, at: int, most: int) -> bytes:
        """Return `most` bytes from `at` on, or as many as there are.

        Raises `DataError` for a file that has become shorter.
        """
        begin, end, pieces = 0, at + most, []
        for name, size in self.sizes.items():
            first, last = max(at, begin), min(end, begin + size)
            if first < last:
                pieces.append(self._read_file(name, first - begin, last - first))
            begin += size
        return b"".join(pieces)

    def _read_file(self, name: str, at: int, count: int) -> bytes:
        with (self.folder / name).open("rb") as file:
            file.seek(at)
            piece = bytearray(file.read(count))
        if len(piece) < count:
            raise DataError(f"proxy file {name}: has changed while it was sent; start again")
        for place, changed in self.own_bytes.items() if name == self.own_file else ():
            first, last = max(place, at), min(place + len(changed), at + count)
            if first < last:
                piece[first - at : last - at] = changed[first - place : last - place]
        return bytes(piece)
