"""Control words: what a round needs to know besides the update, inside the same masked vector.

Every number becomes `LIMBS` words of 8 bits, so that up to 64 clients' sums fit the smallest ring and no
number is ever in the clear. After them come **sentinels**: constants that follow from the context. A sum
whose sentinels are not the number of survivors times the constant was unmasked wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.primitives import digest
from fedproxy_secure.secagg.ring import MAX_CLIENTS, Segment

LIMBS, LIMB_BITS = 6, 8
SENTINELS = 16
SENTINEL_LARGEST = 1000  # 64 x 1000 < 2^16
NAMES = ("clients", "weight", "clipped", "loss", "steps", "largest")
FRACTION = 2.0**20  # of the numbers that are not whole:
FRACTIONAL = ("weight", "loss", "largest")

SEGMENTS = (
    Segment(name="control", length=LIMBS * len(NAMES), largest=2**LIMB_BITS - 1),
    Segment(name="sentinels", length=SENTINELS, largest=SENTINEL_LARGEST),
)


@dataclass(frozen=True, kw_only=True)
class Control:
    """One client's numbers, or their sums over the survivors.

    `weight` in [0, 1] a client; `clipped` coordinates; `loss` in nats (the client's weight does not
    enter); `steps` taken; `largest` |value| over the clip.
    """

    weight: float
    clipped: int
    loss: float
    steps: int
    largest: float
    clients: int = 1


def encode_control(control: Control, context: bytes) -> dict[str, np.ndarray]:
    """The two segments of `SEGMENTS`.

    Raises `DataError` for a number below 0 or too large. It does not say which number: the server reads it.
    """
    limbs = []
    for name in NAMES:
        value = getattr(control, name)
        scaled = value * FRACTION if name in FRACTIONAL else value
        whole = round(scaled) if np.isfinite(scaled) else -1
        if not 0 <= whole < 2 ** (LIMBS * LIMB_BITS):
            raise DataError(f"control word {name}: must be >= 0 and below 2^{LIMBS * LIMB_BITS}")
        limbs += [(whole >> (LIMB_BITS * i)) & (2**LIMB_BITS - 1) for i in range(LIMBS)]
    return {"control": np.array(limbs, dtype=np.int64), "sentinels": sentinels(context)}


def decode_control(sums: dict[str, np.ndarray], context: bytes, *, clients: int) -> Control:
    """The sums over `clients` survivors.

    Raises `ProtocolAborted` if a sentinel or the count of clients is wrong: then the vectors were not
    unmasked to their sum, and nothing of it may be used. So it does if the weights add up to more than the
    clients can have: one of them lied, and the mean would be short.
    """
    if not np.array_equal(sums["sentinels"], clients * sentinels(context)):
        raise ProtocolAborted("sentinels: are wrong; the vectors did not unmask to their sum")
    values = {}
    for row, name in zip(sums["control"].reshape(len(NAMES), LIMBS), NAMES, strict=True):
        values[name] = sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(row))
    if values["clients"] != clients:
        raise ProtocolAborted(f"count in the sum is {values['clients']}: must be {clients}")
    weight = values["weight"] / FRACTION
    if not 0 < weight <= clients:
        raise ProtocolAborted(f"weight in the sum is {weight:g}: must be above 0 and at most {clients}")
    return Control(
        clients=clients,
        weight=weight,
        clipped=values["clipped"],
        loss=values["loss"] / FRACTION,
        steps=values["steps"],
        largest=values["largest"] / FRACTION,
    )


def sentinels(context: bytes) -> np.ndarray:
    """int64 [SENTINELS], 1 to SENTINEL_LARGEST."""
    raw = digest(b"sentinels", context) + digest(b"more sentinels", context)
    words = np.frombuffer(raw, dtype="<u4")[:SENTINELS].astype(np.int64)
    return words % SENTINEL_LARGEST + 1


assert SENTINEL_LARGEST * MAX_CLIENTS < 2**16  # the smallest ring
