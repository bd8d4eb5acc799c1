"""A wrapper for bytes that must not get into a log, a traceback or a file by accident."""

from __future__ import annotations

from typing import NoReturn


class Secret:
    """Bytes that only `reveal()` returns.

    Guarantees: `repr` does not show the bytes; the object can be neither pickled nor copied; `==` compares
    identity, not content, whose comparison an attacker could time. Not guaranteed: that the bytes vanish
    with the object, because Python cannot wipe memory.
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
