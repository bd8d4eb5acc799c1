"""The row of numbers that a client encrypts: the update's segments, control numbers and sentinels.

Each segment is divided by its clip. CKKS' errors and the grid of decrypted numbers are absolute: beside
them, small updates and above all their squares would vanish.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.control import (
    NAMES,
    SENTINELS,
    Control,
    Expected,
    check_control,
    sentinels,
)
from fedproxy_secure.secagg.ring import RingPlan, Segment
from fedproxy_secure.secagg.steps import Aggregate

# units in which every control number is far below `context.BOUND` and far above CKKS's errors
CONTROL_UNITS = {
    "clients": 1.0,
    "weight": 1.0,
    "clipped": 2.0**24,
    "loss": 1.0,
    "steps": 1000.0,
    "largest": 1000.0,
}
TOLERANCE = 1e-3  # for control numbers and sentinels, in their units
CKKS_ERROR = 1e-6  # generous bound on the error of a decrypted sum, as a share of the segment's clip


def leader_of(context: bytes, clients: list[str]) -> str:
    """Return the client of `clients` that makes the key: a hash of the context selects it."""
    return min(clients, key=lambda name: crypto.digest(b"leader", context, name.encode()))


def control_length() -> int:
    """Return how many control numbers and sentinels follow the segments in a row."""
    return len(NAMES) + SENTINELS


def row_length(plan: RingPlan) -> int:
    """Return how many numbers a client encrypts."""
    return sum(s.length for s in real_segments(plan)) + control_length()


def real_segments(plan: RingPlan) -> list[Segment]:
    """Return the plan's segments that carry the update; control numbers follow them in the row."""
    return [s for s in plan.segments if s.clip is not None]


def payload(plan: RingPlan, values: dict[str, np.ndarray], control: Control, context: bytes) -> np.ndarray:
    """Return the row that a client encrypts, float64 [row_length].

    It has the segments, each divided by its clip and cut to [-1, 1], then control numbers and sentinels.

    Args:
        plan: the ring, of which segments and clips are used.
        values: of each segment, by name, [length].
        control: the client's control numbers.
        context: the hash of the attempt's terms.

    Raises `DataError` for another length, NaN or infinity.
    """
    parts = []
    for segment in real_segments(plan):
        part = np.asarray(values[segment.name], dtype=np.float64)
        if part.shape != (segment.length,) or not np.isfinite(part).all():
            raise DataError(f"segment {segment.name}: must be {segment.length} finite numbers")
        parts.append(np.clip(part / _clip_of(segment), -1.0, 1.0))
    parts.append(np.array([getattr(control, n) / CONTROL_UNITS[n] for n in NAMES]))
    parts.append(sentinels(context) / 1000.0)
    return np.concatenate(parts)


def read_payload(
    plan: RingPlan,
    total: np.ndarray,
    context: bytes,
    clients: int,
    expected: Expected | None = None,
) -> Aggregate:
    """Return the sums in a decrypted row, with `clients` left empty.

    Args:
        plan: as in `payload`.
        total: float64 [row_length].
        context: the hash of the attempt's terms.
        clients: the number of vectors in the sum.
        expected: bounds that follow from the settings; None: those of all settings.

    Raises `ProtocolAborted` if the count or the sentinels are not those of `clients` vectors, or a control
    number is one that clients within `expected` cannot have.
    """
    if total.shape != (row_length(plan),) or not np.isfinite(total).all():
        raise ProtocolAborted(f"opened row: must be {row_length(plan)} finite numbers")
    tail = total[len(total) - control_length() :]
    if np.abs(tail[len(NAMES) :] - clients * sentinels(context) / 1000.0).max() > TOLERANCE:
        raise ProtocolAborted("sentinels: are wrong; the vector is not the sum of these clients")
    if abs(tail[0] - clients) > TOLERANCE:
        raise ProtocolAborted(f"count in the sum: must be {clients}")
    numbers = {n: float(v) * CONTROL_UNITS[n] for n, v in zip(NAMES, tail, strict=False)}
    sums, offset = {}, 0
    for segment in real_segments(plan):
        sums[segment.name] = total[offset : offset + segment.length] * _clip_of(segment)
        offset += segment.length
    control = Control(
        clients=clients,
        weight=numbers["weight"],
        clipped=round(numbers["clipped"]),
        loss=numbers["loss"],
        steps=round(numbers["steps"]),
        largest=numbers["largest"],
    )
    errors = {n: TOLERANCE * CONTROL_UNITS[n] for n in ("weight", "clipped", "loss", "largest")}
    check_control(control, expected or Expected(), errors=errors)
    # CKKS is not exact: a sum of zeros may be just below 0
    control = replace(
        control,
        clipped=max(control.clipped, 0),
        loss=max(control.loss, 0.0),
        largest=max(control.largest, 0.0),
    )
    return Aggregate(clients=(), sums=sums, control=control)


def _clip_of(segment: Segment) -> float:
    assert segment.clip is not None  # a real segment has one, above 0
    return segment.clip
