"""Bytes that must not end up in a log, a traceback or a file by accident."""

from __future__ import annotations

from typing import NoReturn


class Secret:
    """Bytes that only `reveal()` gives out.

    Guarantees: no repr, no pickle, no comparison by content (an attacker could time it). Python cannot
    wipe memory, so the bytes may outlive the object.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes themselves."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")
