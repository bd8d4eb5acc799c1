"""Real messages of every kind, and what a malicious party can make of them.

A message is taken apart into plain Python (`Draft`), changed there, and put together again, so that
anything that Flower can carry can be made: other records, other keys, other types, other bytes.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

Draft = dict[str, tuple[str, dict[str, Any]]]  # record -> (kind of record, values)


def npy(array: np.ndarray, **save: Any) -> bytes:
    """The bytes that numpy saves."""
    buffer = io.BytesIO()
    np.save(buffer, array, **save)
    return buffer.getvalue()


def claiming(shape: str, d: int = 8) -> bytes:
    """Bytes of `d` numbers whose header claims another shape, padded as numpy pads it."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(4 * d)


PICKLED = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
PETABYTES = claiming("(10000000000000000,)")  # 35.5 PiB
ANSI = "\x1b[2J\x1b[31mall is well\r\n\u202egnp.exe"


def take_apart(content: RecordDict) -> Draft:
    """A message as plain Python; arrays become (dtype, shape, stype, data)."""
    made: Draft = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = {k: (a.dtype, a.shape, a.stype, a.data) for k, a in record.items()}
            made[name] = ("array", arrays)
        else:
            made[name] = ("metric" if isinstance(record, MetricRecord) else "config", dict(record))
    return made


def put_together(draft: Draft) -> RecordDict:
    """The message of a draft; values that Flower would refuse are put past its checks."""
    content = RecordDict()
    for name, (kind, values) in draft.items():
        if kind == "array":
            arrays = {k: v for k, v in values.items() if isinstance(v, tuple)}
            record: Any = ArrayRecord()
            for key, (dtype, shape, stype, data) in arrays.items():
                array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"")
                array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
                record.__dict__["_data"][key] = array
        else:
            record = ConfigRecord() if kind == "config" else MetricRecord()
            record.__dict__["_data"].update(values)
        content[name] = record
    return content


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A real message, how it is decoded, and what takes the decoded value in (or nothing)."""

    name: str
    content: RecordDict
    decode: Callable[[RecordDict], Any]
    take: Callable[[Any], Any] = field(default=lambda decoded: None)

    @property
    def size(self) -> int:
        """Bytes of the message, about."""
        return weight(take_apart(self.content))


def weight(value: Any) -> int:
    """About how many bytes a draft, or a value in it, holds."""
    if isinstance(value, dict):
        return sum(len(k) + weight(v) for k, v in value.items())
    if isinstance(value, list) and len(value) > 1000:
        return len(value) * (8 + weight(value[0]))
    if isinstance(value, list | tuple):
        return sum(8 + weight(v) for v in value)
    if isinstance(value, str | bytes):
        return len(value)
    return value.bit_length() // 8 if isinstance(value, int) else 8


MILLION = [b""] * 1_000_000
NASTY: tuple[Any, ...] = (
    0,
    -1,
    1,
    True,
    2**31,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    10**5000,
    0.0,
    -1.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "c00",
    "c01",
    ANSI,
    "\ud800",
    "x" * 3_000_000,
    "[" * 200_000,
    '{"seed": 1e999, "clients": ' + "9" * 5000 + "}",
    b"",
    bytes(31),
    bytes(32),
    bytes(33),
    bytes(3_000_000),
    PICKLED,
    PETABYTES,
    [],
    [""],
    ["c00"] * 100,
    ["c00", "c00"],
    [0],
    [True, False],
    [float("nan")],
    MILLION,
    ["name"] * 1_000_000,
)
ARRAYS: tuple[Any, ...] = (
    ("float32", (8,), "numpy.ndarray", PETABYTES),
    ("float32", (10_000_000_000_000_000,), "numpy.ndarray", PETABYTES),
    ("object", (1,), "numpy.ndarray", PICKLED),
    ("float32", (1,), "numpy.ndarray", PICKLED),
    ("float32", (8,), "numpy.ndarray", claiming("(8,)", d=7)),
    ("float32", (8,), "numpy.ndarray", claiming("(-8,)")),
    ("float32", (-8,), "numpy.ndarray", claiming("(-8,)")),
    ("float32", (8,), "numpy.ndarray", claiming("(" * 50 + "8" + ",)" * 50)),
    ("float32", (0,), "numpy.ndarray", claiming("(0,)", d=0)),
    ("float32", (True,), "numpy.ndarray", claiming("(1,)", d=1)),
    ("float32", (2, 4), "numpy.ndarray", npy(np.zeros((2, 4), np.float32))),
    ("float32", (), "numpy.ndarray", npy(np.float32(1))),
    ("float64", (8,), "numpy.ndarray", npy(np.zeros(8))),
    ("float32", (8,), "numpy.ndarray", npy(np.zeros(8))),
    ("float32", (8,), "numpy.ndarray", npy(np.full(8, np.nan, np.float32))),
    ("float32", (8,), "torch.tensor", npy(np.zeros(8, np.float32))),
    ("float32", (8,), "numpy.ndarray", b"\x93NUMPY\x01\x00\xff\xff"),
    ("float32", (8,), "numpy.ndarray", b""),
    ("float32", (8,) * 1000, "numpy.ndarray", b""),
    ("float32", ("8",), "numpy.ndarray", b""),
    ("float32", (10**5000,), "numpy.ndarray", b""),
    (ANSI, (8,), ANSI, b""),
)
KEYS = st.sampled_from(["client", "clients", "update", "adapter", "round", "protocol", "gram", "", ANSI])


def _bytes_changed(draw: Any, data: bytes) -> bytes:
    how = draw(st.sampled_from(["flip", "cut", "extend", "front"]))
    if how == "extend" or not data:
        return data + draw(st.binary(min_size=1, max_size=40))
    at = draw(st.integers(0, len(data) - 1))
    if how == "front":
        at = min(at, 140)  # the header of an array
    if how == "cut":
        return data[:at]
    return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]


def _value_changed(draw: Any, value: Any) -> Any:
    """Another value in the place of one: often something close to it, else anything."""
    if isinstance(value, tuple):  # an array
        if draw(st.booleans()):
            return draw(st.sampled_from(ARRAYS))
        dtype, shape, stype, data = value
        part = draw(st.integers(0, 3))
        if part == 0:
            return draw(st.sampled_from(["float64", "object", "<f4", ANSI])), shape, stype, data
        if part == 1:
            sizes = st.sampled_from([-1, 0, 1, 7, 9, 2**40, 2**62])
            return dtype, tuple(draw(st.lists(sizes, max_size=3))), stype, data
        return dtype, shape, stype, _bytes_changed(draw, data)
    close = draw(st.booleans())
    if close and isinstance(value, bytes):
        return _bytes_changed(draw, value)
    if close and isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.sampled_from(["drop", "twice", "other", "turn", "item"]))
        if how == "drop":
            return value[:at] + value[at + 1 :]
        if how == "twice":
            return [*value, value[at]]
        if how == "turn":
            return value[::-1]
        item = draw(st.sampled_from(NASTY[:-2])) if how == "other" else _value_changed(draw, value[at])
        return [*value[:at], item, *value[at + 1 :]]
    if close and isinstance(value, str) and value:
        at = draw(st.integers(0, len(value) - 1))
        return (
            value[:at]
            + draw(st.sampled_from(["", "9", '"', "]", "[", "null", "e", "\x1b"]))
            + value[at + 1 :]
        )
    if close and isinstance(value, int) and not isinstance(value, bool):
        return value + draw(st.sampled_from([-1, 1, 2**32]))
    return draw(st.sampled_from(NASTY))


def _change(draw: Any, draft: Draft) -> None:
    name = draw(st.sampled_from(sorted(draft))) if draft else None
    how = draw(st.sampled_from(["value"] * 12 + ["drop", "rename", "more", "kind", "record", "no record"]))
    if name is None or how == "record":
        values = {draw(KEYS): draw(st.sampled_from(NASTY))}
        draft[draw(KEYS)] = (draw(st.sampled_from(["config", "metric"])), values)
        return
    kind, values = draft[name]
    key = draw(st.sampled_from(sorted(values))) if values else None
    if how == "no record":
        del draft[name]
    elif how == "kind":
        draft[name] = (draw(st.sampled_from(["array", "config", "metric"])), values)
    elif key is None or how == "more":
        values[draw(KEYS)] = draw(st.sampled_from(ARRAYS if kind == "array" else NASTY))
    elif how == "drop":
        del values[key]
    elif how == "rename":
        values[draw(KEYS)] = values.pop(key)
    else:
        values[key] = _value_changed(draw, values[key])


@st.composite
def malformed(draw: Any, samples: tuple[Sample, ...]) -> tuple[Sample, Draft]:
    """One of the messages with one to three changes."""
    sample = draw(st.sampled_from(samples))
    draft = copy.copy(take_apart(sample.content))
    draft = {name: (kind, dict(values)) for name, (kind, values) in draft.items()}
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, draft)
    return sample, draft
