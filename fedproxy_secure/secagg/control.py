"""Control words: the numbers that a round needs besides the update, inside the same masked vector.

`encode_control` returns one client's values of the two `SEGMENTS`; `decode_control` reads and checks their
sums. Each number takes `LIMBS` words of 8 bits, so that the sums of up to 64 clients fit the smallest ring.
No number is ever in the clear. After the numbers come **sentinels**, constants that follow from the
context: if their sum is not the number of survivors times the constants, the vectors were unmasked wrongly.

Guarantees: the sums that `decode_control` returns are sums that honest clients with these settings could
have: the exact count and steps, a sum of weights within `least_weight` to 1 per client, and no more clipped
coordinates than there are.

Not guaranteed: that every client is honest. A client that lies can shift a sum unnoticed within that range:
the mean loss to anything below 2^28, the sum of weights within [least_weight, 1] per client, and the next
round's clip through `clipped` and `largest`. It can also always make the attempt abort. Nobody can tell
which client lied.
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
FRACTION = 2.0**20  # steps per unit, for the numbers that are not whole:
FRACTIONAL = ("weight", "loss", "largest")
MOST_OVER_CLIP = 1000.0  # the most that a client sends as `largest`, even if its update has larger values
ROUNDING = 0.5 / FRACTION  # largest error of a number that is not whole

SEGMENTS = (
    Segment(name="control", length=LIMBS * len(NAMES), largest=2**LIMB_BITS - 1),
    Segment(name="sentinels", length=SENTINELS, largest=SENTINEL_LARGEST),
)


@dataclass(frozen=True, kw_only=True)
class Control:
    """One client's control numbers, or their sums over the survivors.

    Attributes:
        weight: of the client in the fusion, [0, 1].
        clipped: the number of coordinates beyond the clip.
        loss: in nats, not multiplied by `weight`.
        steps: the number of training steps taken.
        largest: the largest |value| of the update, divided by the clip.
        clients: 1, or the number of survivors in a sum.
    """

    weight: float
    clipped: int
    loss: float
    steps: int
    largest: float
    clients: int = 1


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Bounds on every client's numbers that follow from the settings; the defaults hold for all settings.

    Attributes:
        least_weight: the least weight of a client; the most is 1. With 1, all clients weigh the same.
        steps: the number of steps that each client takes; None: any.
        coordinates: the length of an update, so the most that can be clipped; None: any.
        silent: whether nothing but the noisy sum may depend on a client's records; then `loss`, `clipped`
            and `largest` are 0.
    """

    least_weight: float = 0.0
    steps: int | None = None
    coordinates: int | None = None
    silent: bool = False


def encode_control(control: Control, context: bytes) -> dict[str, np.ndarray]:
    """Return one client's values for the two `SEGMENTS`, by segment name.

    Raises `DataError` for a number below 0 or too large. The error does not contain the number, because the
    server reads the error.
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
    """Return the sums of the control numbers over `clients` survivors.

    Args:
        sums: the summed segments, by name, as `read_sum` returns them.
        context: the hash of the attempt's terms.
        clients: the number of survivors.
        expected: bounds that follow from the settings; None: those of all settings.

    Raises `ProtocolAborted` if a sentinel or the count of clients is wrong: the vectors were then not
    unmasked to their sum, and nothing in it may be used. Raises it also for sums that honest clients within
    `expected` cannot have: a client then lied.
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

    `errors`: by name, how far the aggregation itself may put a sum off, because CKKS is not exact.
    """
    clients, error = control.clients, dict.fromkeys(NAMES, 0.0) | dict(errors or {})
    least = clients * expected.least_weight
    if 0 < expected.least_weight < 1:
        least -= clients * ROUNDING
    if least == 0 and not 0 < control.weight <= clients + error["weight"]:
        raise ProtocolAborted(
            f"weight in the sum is {control.weight:g}: must be above 0 and at most {clients}; a client lied"
        )
    _check_range("weight", control.weight, least - error["weight"], clients + error["weight"])
    if expected.steps is not None:
        steps = clients * expected.steps
        _check_range("steps", control.steps, steps, steps)
    most: dict[str, float] = {"clipped": math.inf, "loss": math.inf, "largest": clients * MOST_OVER_CLIP}
    if expected.coordinates is not None:
        most["clipped"] = clients * expected.coordinates
    if expected.silent:
        most = dict.fromkeys(most, 0.0)
    for name, bound in most.items():
        _check_range(name, getattr(control, name), 0.0 - error[name], bound + error[name])


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not (least <= value <= most and math.isfinite(value)):  # NaN is refused too
        bounds = f"{most:g}" if least == most else f"{least:g} to {most:g}"
        raise ProtocolAborted(f"{name} in the sum is {value:g}: must be {bounds}; a client lied")


def sentinels(context: bytes) -> np.ndarray:
    """Return the constants that follow from the context: int64 [SENTINELS], 1 to `SENTINEL_LARGEST`."""
    raw = digest(b"sentinels", context) + digest(b"more sentinels", context)
    words = np.frombuffer(raw, dtype="<u4")[:SENTINELS].astype(np.int64)
    return words % SENTINEL_LARGEST + 1


assert SENTINEL_LARGEST * MAX_CLIENTS < 2**16  # the smallest ring
