"""Control words: what a round needs to know besides the update, inside the same masked vector.

Every number becomes `LIMBS` words of 8 bits, so that up to 64 clients' sums fit the smallest ring and no
number is ever in the clear. After them come **sentinels**: constants that follow from the context. A sum
whose sentinels are not the number of survivors times the constant was unmasked wrongly.

Guarantees: the sums that `decode_control` returns are some that honest clients of these settings could
have: the exact count and steps, weights of `least_weight` to 1 each, no more clipped coordinates than there
are. A client that lies can still shift a sum within that range, unseen: the mean loss to anything below
2^28, the weights' sum within [least_weight, 1] per client, the next round's clip through `clipped` and
`largest`; and it can always make the attempt abort. Nobody can tell which client lied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.crypto.primitives import digest
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.ring import MAX_CLIENTS, Segment

LIMBS, LIMB_BITS = 6, 8
SENTINELS = 16
SENTINEL_LARGEST = 1000  # 64 x 1000 < 2^16
NAMES = ("clients", "weight", "clipped", "loss", "steps", "largest")
FRACTION = 2.0**20  # steps in 1, for the numbers that are not whole:
FRACTIONAL = ("weight", "loss", "largest")
MOST_OVER_CLIP = 1000.0  # the most that a client sends as `largest`, also if it is further beyond the clip
ROUNDING = 0.5 / FRACTION  # largest error of a number that is not whole

SEGMENTS = (
    Segment(name="control", length=LIMBS * len(NAMES), largest=2**LIMB_BITS - 1),
    Segment(name="sentinels", length=SENTINELS, largest=SENTINEL_LARGEST),
)


@dataclass(frozen=True, kw_only=True)
class Control:
    """One client's numbers, or their sums over the survivors.

    `weight` in [0, 1] per client; `clipped` coordinates; `loss` in nats (the client's weight does not
    enter); `steps` taken; `largest` |value| over the clip.
    """

    weight: float
    clipped: int
    loss: float
    steps: int
    largest: float
    clients: int = 1


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The bounds that settings imply for every client's numbers; the defaults hold for any settings.

    `least_weight`: a client's weight is this at least and 1 at most; with 1 all weigh alike. `steps` that
    each client takes. `coordinates` of an update: more cannot be clipped. `silent`: nothing but the noisy
    sum may depend on a client's records, so loss, clipped and largest are 0.
    """

    least_weight: float = 0.0
    steps: int | None = None
    coordinates: int | None = None
    silent: bool = False


def encode_control(control: Control, context: bytes) -> dict[str, np.ndarray]:
    """Return one client's values for the two `SEGMENTS`.

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


def decode_control(
    sums: dict[str, np.ndarray], context: bytes, *, clients: int, expected: Expected | None = None
) -> Control:
    """Return the numbers, summed over `clients` survivors, that the summed segments hold.

    Raises `ProtocolAborted` if a sentinel or the count of clients is wrong: then the vectors were not
    unmasked to their sum, and nothing of it may be used. It is raised too for sums that honest clients of
    the `expected` settings cannot have: then one of them lied.
    """
    if not np.array_equal(sums["sentinels"], clients * sentinels(context)):
        raise ProtocolAborted("sentinels: are wrong; the vectors did not unmask to their sum")
    limbs = sums["control"]
    if limbs.min() < 0 or limbs.max() > clients * (2**LIMB_BITS - 1):
        raise ProtocolAborted("control words: add up to more than these clients can have sent")
    values = {}
    for row, name in zip(limbs.reshape(len(NAMES), LIMBS), NAMES, strict=True):
        values[name] = sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(row))
    if values["clients"] != clients:
        raise ProtocolAborted(f"count in the sum is {values['clients']}: must be {clients}")
    control = Control(
        clients=clients,
        weight=values["weight"] / FRACTION,
        clipped=values["clipped"],
        loss=values["loss"] / FRACTION,
        steps=values["steps"],
        largest=values["largest"] / FRACTION,
    )
    check_control(control, expected or Expected())
    return control


def check_control(
    control: Control, expected: Expected, *, errors: Mapping[str, float] | None = None
) -> None:
    """Raise `ProtocolAborted` unless honest clients could have these sums.

    `errors`: by name, how far a sum may be off for another reason than its clients, as CKKS's sums are.
    """
    clients, off = control.clients, dict.fromkeys(NAMES, 0.0) | dict(errors or {})
    least = clients * expected.least_weight
    if 0 < expected.least_weight < 1:
        least -= clients * ROUNDING
    if least == 0 and not 0 < control.weight <= clients + off["weight"]:
        raise ProtocolAborted(
            f"weight in the sum is {control.weight:g}: must be above 0 and at most {clients}; a client lied"
        )
    _check_range("weight", control.weight, least - off["weight"], clients + off["weight"])
    if expected.steps is not None:
        steps = clients * expected.steps
        _check_range("steps", control.steps, steps, steps)
    tops: dict[str, float] = {"clipped": math.inf, "loss": math.inf, "largest": clients * MOST_OVER_CLIP}
    if expected.coordinates is not None:
        tops["clipped"] = clients * expected.coordinates
    if expected.silent:
        tops = dict.fromkeys(tops, 0.0)
    for name, top in tops.items():
        _check_range(name, getattr(control, name), 0.0 - off[name], top + off[name])


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not (least <= value <= most and math.isfinite(value)):  # NaN is refused too
        wanted = f"{most:g}" if least == most else f"{least:g} to {most:g}"
        raise ProtocolAborted(f"{name} in the sum is {value:g}: must be {wanted}; a client lied")


def sentinels(context: bytes) -> np.ndarray:
    """Return the constants that follow from the context, int64 [SENTINELS], 1 to SENTINEL_LARGEST."""
    raw = digest(b"sentinels", context) + digest(b"more sentinels", context)
    words = np.frombuffer(raw, dtype="<u4")[:SENTINELS].astype(np.int64)
    return words % SENTINEL_LARGEST + 1


assert SENTINEL_LARGEST * MAX_CLIENTS < 2**16  # the smallest ring
