"""Check that sums of update segments are sums that K clients within the clip can have.

    update       S: -K x clip to K x clip
    squares      0 to K x clip^2 (`block`)
    magnitude    A: P = (A + S) / 2 is 0 to n+ x clip, and N = (A - S) / 2 is 0 to n- x clip (`coordinate`)
    signs        n+ and n-: at each coordinate, n+ + n- is at most K (`coordinate`)

Guarantees: sums of `plain` and `coordinate` that pass are those of some K vectors within the clip. Sums of
`block` are checked one by one; whether `squares` fits `update` is not checked.

Not guaranteed: that they are the sums of the K clients. Nothing in a sum tells whose words are wrong, and
one client can bring the sum to any values that pass; see `granularity.merge`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.signs import check_counts, unpack_signs

FLOAT_ROUNDING = 2.0**-20  # of sums in float32, divided by their range


def check_sums(sums: Mapping[str, np.ndarray], plan: RingPlan, *, clients: int, error: float = 0.0) -> None:
    """Raise `ProtocolAborted`, naming no client, for sums that `clients` honest clients cannot have.

    `error`: how far a sum may be off besides rounding in the ring, because CKKS is not exact; as a share of
    the segment's clip.
    """
    for segment in plan.segments:
        if segment.clip is None or segment.name not in sums:
            continue
        top = clients * segment.clip
        slack = top * FLOAT_ROUNDING + error * segment.clip
        least = -top if segment.name == "update" else 0.0
        total = sums[segment.name]
        low, high = float(total.min(initial=0.0)), float(total.max(initial=0.0))
        if low < least - slack or high > top + slack:
            raise ProtocolAborted(
                f"sum of {segment.name}: has {low:g} to {high:g}; must be {least:g} to {top:g}"
            )
    if "signs" in sums:
        _check_sides(sums, plan, clients=clients, error=error)


def _check_sides(sums: Mapping[str, np.ndarray], plan: RingPlan, *, clients: int, error: float) -> None:
    """Raise `ProtocolAborted` unless the mass of each side fits the number of clients on it."""
    segment = plan.segment("update")
    clip, d = float(segment.clip or 0), segment.length
    check_counts(sums["signs"], cohort=plan.clients, bits=plan.bits, d=d, clients=clients)
    ups, downs = unpack_signs(sums["signs"], clients=plan.clients, bits=plan.bits, d=d)
    # each client's value and magnitude were rounded separately
    slack = clients * (2 * plan.step_of(segment) + clip * FLOAT_ROUNDING) + error * clip
    for side, counts in ((1, ups), (-1, downs)):
        mass = (sums["magnitude"].astype(np.float64) + side * sums["update"]) / 2
        if ((mass < -slack) | (mass > counts * clip + slack)).any():
            raise ProtocolAborted(
                "sums of update, magnitude and signs: do not belong together; a client lied"
            )
