"""Strict reading of Flower's records: everything is checked before anything is allocated or copied.

Flower's own `Array.numpy` trusts the header inside the bytes, which may claim any size. `vector` reads the
bytes itself, in the only form that `Array(ndarray)` writes for a float32 vector.

Guarantees: whatever a record holds, a reader returns a value of the requested type or raises a `DataError`
whose message is one line of bounded length. Nothing is unpickled. At most one copy of a vector is made,
never longer than what was received. Not covered: what Flower allocates while it assembles a message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.quoting import one_line, quoted

MOST_NUMBERS = 2**28  # in one vector, 1 GiB; a reader that knows the right length checks that instead
MOST_TEXT = 1024  # characters
_MAGIC = b"\x93NUMPY\x01\x00"  # followed by the length of the header, in two bytes
_HEADER = re.compile(rb"\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,12}),\), \} *\n")
R = TypeVar("R", ArrayRecord, ConfigRecord)


def check_records(
    content: RecordDict, what: str, *, must: Collection[str], may: Collection[str] = ()
) -> None:
    """Raise `DataError` unless the records include all of `must`, and otherwise only some of `may`."""
    if len(content) > len(must) + len(may):
        raise DataError(f"{what}: has {len(content)} records; must have {_listed(must)}")
    for name in content:
        if name not in must and name not in may:
            raise DataError(f"{what}: has a record {quoted(name)}; must have {_listed(must)}")
    for name in must:
        if name not in content:
            raise DataError(f"{what}: lacks the record `{name}`")


def record(content: RecordDict, name: str, kind: type[R], what: str, *, keys: Collection[str]) -> R:
    """Return the record `name` if it is a `kind` with exactly `keys`. Raises `DataError` otherwise."""
    fields = content.get(name)
    if not isinstance(fields, kind):
        raise DataError(f"{what}: record `{name}` must be there, a {kind.__name__}")
    check_keys(fields, f"{what}: record `{name}`", keys=keys)
    return fields


def check_keys(fields: Collection[str], what: str, *, keys: Collection[str]) -> None:
    """Raise `DataError` unless `fields` has exactly `keys`."""
    if len(fields) != len(keys) or any(key not in fields for key in keys):
        extra = next((k for k in fields if k not in keys), None)
        lacking = next((k for k in keys if k not in fields), None)
        wrong = f"lacks {quoted(lacking)}" if lacking is not None else f"has {quoted(extra)}"
        raise DataError(f"{what}: {wrong}; must have {_listed(keys)}")


def vector(arrays: ArrayRecord, name: str, *, d: int | None = None) -> np.ndarray:
    """Return a copy of the array `name` as float32 [d]; with `d` None, any length up to `MOST_NUMBERS`.

    Raises `DataError` for another type, form or length, or numbers that are not finite.
    """
    array: Array = arrays[name]
    if (array.stype, array.dtype) != ("numpy.ndarray", "float32"):
        raise DataError(
            f"{name}: {quoted(array.dtype)} as {quoted(array.stype)}; must be float32 from numpy"
        )
    shape = array.shape
    if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
        text_of_shape = one_line(str(shape), 80) if _small(shape) else quoted(shape)
        raise DataError(f"{name} of shape {text_of_shape}: must be {_shape(d)}")
    length = shape[0]
    if (d is not None and length != d) or not 0 <= length <= MOST_NUMBERS:
        raise DataError(f"{name} of shape ({quoted(length)},): must be {_shape(d)}")
    data = array.data
    if type(data) is not bytes:
        raise DataError(f"{name}: holds {quoted(data)}; must be bytes")
    start = _payload(name, data, length)
    numbers = np.frombuffer(data, dtype="<f4", offset=start, count=length).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{name}: holds NaN or infinity; must be finite")
    return numbers


def number(fields: ConfigRecord, name: str) -> float:
    """Return a finite number as a float. Raises `DataError` for anything else."""
    value: Any = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{name}={quoted(value)}: must be a finite number")
    if isinstance(value, int) and value.bit_length() > 64:
        raise DataError(f"{name}={quoted(value)}: must be a finite number")
    if not math.isfinite(value):
        raise DataError(f"{name}={quoted(value)}: must be a finite number")
    return float(value)


def integer(fields: ConfigRecord, name: str) -> int:
    """Return an integer from 0 to 2^63 - 1. Raises `DataError` for anything else."""
    value: Any = fields[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise DataError(f"{name}={quoted(value)}: must be an integer >= 0 and below 2^63")
    return value


def flag(fields: ConfigRecord, name: str) -> bool:
    """Return a truth value. Raises `DataError` for anything else."""
    value: Any = fields[name]
    if type(value) is not bool:
        raise DataError(f"{name}={quoted(value)}: must be true or false")
    return value


def text(fields: ConfigRecord, name: str, *, most: int = MOST_TEXT) -> str:
    """Return text of at most `most` characters, printable or not: print it through `quoting` only.

    Raises `DataError` for anything else.
    """
    value: Any = fields[name]
    if type(value) is not str or len(value) > most:
        raise DataError(f"{name}={quoted(value)}: must be text of at most {most} characters")
    return value


def plain_text(fields: ConfigRecord, name: str, *, most: int = MOST_TEXT) -> str:
    """Return text of 1 to `most` printable characters. Raises `DataError` for anything else."""
    value = text(fields, name, most=most)
    if not value or not value.isprintable():
        raise DataError(f"{name}={quoted(value)}: must be 1 to {most} printable characters")
    return value


def raw_bytes(fields: ConfigRecord, name: str, *, length: int) -> bytes:
    """Return exactly `length` bytes. Raises `DataError` for anything else."""
    value: Any = fields[name]
    if type(value) is not bytes or len(value) != length:
        raise DataError(f"{name}: is {quoted(value)}; must be {length} bytes")
    return value


def _payload(name: str, data: bytes, length: int) -> int:
    """Return the offset at which the numbers begin. Raises `DataError` for a wrong header or length."""
    wrong = DataError(f"{name}: its bytes are not {length} float32 numbers as numpy saves them")
    front = len(_MAGIC) + 2
    if len(data) < front or not data.startswith(_MAGIC):
        raise wrong
    start = front + int.from_bytes(data[len(_MAGIC) : front], "little")
    if len(data) != start + 4 * length:
        raise wrong
    header = _HEADER.fullmatch(data, front, start)
    if header is None or int(header[1]) != length:
        raise wrong
    return start


def _small(shape: Any) -> bool:
    return (
        type(shape) is tuple
        and len(shape) <= 4
        and all(type(n) is int and n.bit_length() <= 64 for n in shape)
    )


def _shape(d: int | None) -> str:
    return f"({d},)" if d is not None else f"one dimension, at most {MOST_NUMBERS}"


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
