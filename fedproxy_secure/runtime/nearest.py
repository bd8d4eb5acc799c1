"""Suggest the known name nearest to an unknown one, and find the shipped file of a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedproxy_secure.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'masking'?`, or `there are a, b, c` if no known name resembles `name`.

    >>> nearest("maskin", ["masking", "ckks"])
    "did you mean 'masking'?"
    >>> nearest("x", ["masking", "ckks"])
    'there are masking, ckks'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"


def file_or_shipped(name: str, folders: Sequence[Path], *, kind: str) -> Path:
    """Return the YAML file called `name`, or the one in `folders` of that name, with or without `.yaml`.

    Args:
        kind: what such a file is called in the error, such as "config".

    Raises `ConfigError`, which names the nearest shipped file or all of them.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    match = shipped.get(name.removesuffix(".yaml"))
    if match is None:
        raise ConfigError(f"{name}: there is no such file or shipped {kind}; {nearest(name, shipped)}")
    return match
