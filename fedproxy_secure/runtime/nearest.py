"""Hints for an unknown name in an error: the nearest known name, or all known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'masking'?`, or `there are a, b, c` if no known name is like `name`.

    >>> nearest("maskin", ["masking", "ckks"])
    "did you mean 'masking'?"
    >>> nearest("x", ["masking", "ckks"])
    'there are masking, ckks'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
