"""Proxies that arrive in parts, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedproxy_secure.proxy_intake.arriving import take
from fedproxy_secure.proxy_intake.parts import Offer, Part
from fedproxy_secure.tracing.marks import Marks


def packed(folder: Path) -> dict[str, bytes]:
    """Return a proxy's files by name, as an owner sends them."""
    return {name: (folder / name).read_bytes() for name in Offer.of(folder).sizes}


def parts(files: Mapping[str, bytes], sha256: str, *, part_bytes: int = 10_000) -> list[Part]:
    """Split files into parts of at most `part_bytes` bytes."""
    whole, sizes = b"".join(files.values()), {name: len(data) for name, data in files.items()}
    return [
        Part(sha256=sha256, sizes=sizes, at=at, data=whole[at : at + part_bytes])
        for at in range(0, len(whole), part_bytes)
    ]


def arrive(
    files: Mapping[str, bytes], sha256: str, *, client: str = "clinic", marks: Marks | None = None
) -> Path:
    """Let a client take the files in parts, and return where it keeps the proxy."""
    folder = None
    for part in parts(files, sha256):
        assert folder is None
        folder = take(part, client=client, marks=marks)
    assert folder is not None
    return folder
