"""Fusion rules on sums: what a client adds to the masked vector, and how the server fuses the sums.

H-TIES (Eq. 10-14), TIES and PCR's conflict (Eq. 7) are defined on every client's update. A secure sum gives
the server sums only; the granularity says which ones:

    plain         S, the sum of the updates, per coordinate. Enough for FedAvg and for every rule that is
                  linear in the updates.
    coordinate    also A, the sum of |update|, and n+ and n-, the counts of positive and negative values,
                  per coordinate. The result is exact.
    block         also Q, the sum of mean squares, per block of about 64 neighbouring coordinates. The
                  result is an estimate of that of `coordinate`.

Both sides call `segments_of` for the vector's layout. A client calls `contribution`, the server `merge`.

Guarantees (what the server learns; the masking protocol hides everything else):
    plain         the sum at each coordinate.
    coordinate    also, where a side has one contributor, that client's value; where the signs are
                  unanimous, every client's sign. Otherwise the counts do not tell *which* clients are on
                  a side.
    block         the sum at each coordinate, and one variance per block. No count and no sign of any
                  client, unless clients send little more than signs.

Clients do send little more than signs in the first step of AdamW, which moves every coordinate by the
learning rate, up or down. With AdamW and `local.steps` 1, every sum is therefore a count of signs, with
`plain` and `block` too: where it is as far from 0 as it can be, all clients' signs are known.

Why `coordinate` is exact: the mass of each side is P = (A + S) / 2 or N = (A - S) / 2, and its mean is
P / n+ or -N / n-. The denominators are counts of clients, not sums of weights: sums of unequal weights
would tell which clients are on a side.

How `block` estimates: with n clients and mean s at a coordinate, the n values are s plus deviations that
add up to zero, of variance v = Q / n - mean(s^2) over the block. If the deviations are taken as normal, the
elected side's mean and the conflict depend on z = |s| / sqrt(v) alone. Their expectations are tabulated
once for n and rho (`expectations`). The tables condition on the *sample* mean and on n, which the formula
for an infinite population (P = sigma (phi(z) + z Phi(z))) does not: with 4 clients they are closer to exact
H-TIES.

Clients that trim send zeros, and a zero counts for neither side: with one contributor among n clients the
elected mean is n s, not s. Where the retained share is public (`kept` < 1), the tables are therefore
averages over simulated coordinates: normal values around a normal common value, with the smaller magnitudes
set to zero. The share is assumed to be the same for every client and block. In fact blocks of small values
hold more zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.secagg.expectations import Z_GRID, plain_tables, trimmed_tables
from fedproxy_secure.secagg.ring import MAX_CLIP, MIN_CLIP, RingPlan, Segment
from fedproxy_secure.secagg.signs import largest_word, pack_signs, unpack_signs, words_for
from fedproxy_secure.secagg.sum_checks import check_sums

Granularity = Literal["plain", "coordinate", "block"]
BLOCK_COORDINATES = 64  # one word more for each block: 1.6 % of the bytes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes of an update's tensors, which lie end to end in it; no block spans two tensors."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ConfigError(f"layout {self.sizes[:4]}: must be at least one size, each >= 1")

    @property
    def d(self) -> int:
        """The length of the update."""
        return sum(self.sizes)

    def starts(self) -> np.ndarray:
        """Return the first coordinate of every block, int64 [blocks], ascending."""
        offset, parts = 0, []
        for size in self.sizes:
            blocks = max(1, round(size / BLOCK_COORDINATES))
            parts.append(offset + np.linspace(0, size, blocks, endpoint=False).astype(np.int64))
            offset += size
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The fused update `step`, float32 [d], and `conflict`, float32 [d] in [0, 1] (None for `plain`)."""

    step: np.ndarray
    conflict: np.ndarray | None


def segments_of(
    granularity: Granularity, layout: Layout, *, clip: float, clients: int, bits: int
) -> tuple[Segment, ...]:
    """Return the segments of a client's vector besides the control words.

    Args:
        granularity: which sums the server gets.
        layout: of the update.
        clip: the largest |value| that is not cut.
        clients: the size of the cohort; `coordinate` packs counts up to it.
        bits: of a ring word.

    Raises `ConfigError` for a clip that no ring takes.
    """
    if not MIN_CLIP <= clip <= MAX_CLIP:  # before `clip**2`, which overflows for a huge clip
        raise ConfigError(f"clip={clip:g}: must be {MIN_CLIP:g} to {MAX_CLIP:g}")
    segments = [Segment(name="update", length=layout.d, clip=clip)]
    if granularity == "block":
        segments.append(Segment(name="squares", length=len(layout.starts()), clip=clip**2))
    elif granularity == "coordinate":
        words = words_for(layout.d, clients=clients, bits=bits)
        largest = largest_word(clients=clients, bits=bits)
        segments.append(Segment(name="magnitude", length=layout.d, clip=clip))
        segments.append(Segment(name="signs", length=words, largest=largest))
    return tuple(segments)


def contribution(
    update: np.ndarray, granularity: Granularity, layout: Layout, plan: RingPlan, *, weight: float = 1.0
) -> dict[str, np.ndarray]:
    """Return what one client adds to the sums: the values of its `segments_of`, by segment name.

    Args:
        update: float32 [d], already trimmed if the rule trims.
        granularity: as in `segments_of`.
        layout: of the update.
        plan: the ring, with the segments of that granularity and layout.
        weight: (0, 1], multiplies all real values.

    Raises `DataError` for another length or a weight out of range.
    """
    if update.shape != (layout.d,):
        raise DataError(f"update of shape {update.shape}: must be ({layout.d},)")
    if not 0 < weight <= 1:
        raise DataError(f"weight={weight}: must be in (0, 1]")
    scaled = update if weight == 1 else np.float32(weight) * update
    parts = {"update": scaled}
    if granularity == "block":
        # of the values as the ring clips them, so that the variance is not negative; only where most of a
        # block is beyond the clip and weighs less than 1 does the ring cut the mean square, too
        clip = _clip_of(plan)
        counted = np.clip(scaled, -clip, clip).astype(np.float64) / weight
        parts["squares"] = weight * _block_means(counted**2, layout.starts())
    elif granularity == "coordinate":
        parts["magnitude"] = np.abs(scaled)
        parts["signs"] = pack_signs(update, clients=plan.clients, bits=plan.bits)
    return parts


def merge(
    sums: Mapping[str, np.ndarray],
    granularity: Granularity,
    layout: Layout,
    plan: RingPlan,
    *,
    clients: int,
    weight: float,
    rho: float,
    kept: float = 1.0,
    error: float = 0.0,
) -> Merged:
    """Fuse the sums over the survivors into one update.

    Args:
        sums: by segment name, as `read_sum` returns them.
        granularity: as in `segments_of`.
        layout: of the update.
        plan: the ring of the sums.
        clients: the number of survivors, K below.
        weight: the sum of their weights.
        rho: the election ratio of H-TIES, 1 for TIES; `plain` has no election and gives the weighted mean.
        kept: the public share of each update that clients kept when they trimmed, (0, 1]; for `block`.
        error: how far sums may be off besides rounding in the ring, because CKKS is not exact; as a share
            of the segment's clip.

    Raises `DataError` for a sum of another length or not finite, or a number out of range, and
    `ProtocolAborted` for sums that clients within the clip cannot have.

    Guarantees: no coordinate of the step is beyond `clip x clients / weight`; with equal weights that is
    the clip.

    Not guaranteed: that one client moves a coordinate by no more than 1 / K of that range. A client can
    send words beyond the clip, which nobody sees in a sum. It can so bring a coordinate of the mean to any
    value within the bound, whatever the others sent: with equal weights it moves the mean by up to two
    clips, an honest client by up to 2 / K clips.
    """
    _check_merge(sums, granularity, layout, plan, clients=clients, weight=weight, rho=rho, kept=kept)
    check_sums(sums, plan, clients=clients, error=error)
    mean = sums["update"] / weight
    if granularity == "plain":
        merged = Merged(step=mean.astype(np.float32), conflict=None)
    elif granularity == "coordinate":
        merged = _merge_exactly(sums, mean, plan, clients=clients, weight=weight, rho=rho)
    else:
        starts = layout.starts()
        variance = sums["squares"] / weight - _block_means(mean**2, starts)
        sigma = np.sqrt(np.maximum(variance, 0))[_block_index(starts, layout.d)]
        merged = _merge_by_blocks(mean, sigma, clients=clients, rho=rho, kept=kept)
    bound = np.float32(_clip_of(plan) * clients / weight)
    return Merged(step=np.clip(merged.step, -bound, bound), conflict=merged.conflict)


def _check_merge(
    sums: Mapping[str, np.ndarray],
    granularity: Granularity,
    layout: Layout,
    plan: RingPlan,
    *,
    clients: int,
    weight: float,
    rho: float,
    kept: float,
) -> None:
    if clients < 1:
        raise DataError(f"clients={clients}: must be >= 1")
    if not 0 < weight < float("inf"):
        raise DataError(f"weight={weight}: must be > 0 and finite")
    if not 1 <= rho < float("inf"):
        raise DataError(f"rho={rho}: must be >= 1 and finite")
    if not 0 < kept <= 1:
        raise DataError(f"kept={kept}: must be in (0, 1]")
    for segment in segments_of(granularity, layout, clip=1.0, clients=plan.clients, bits=plan.bits):
        total = sums.get(segment.name)
        if total is None or total.shape != (segment.length,):
            shape = None if total is None else total.shape
            raise DataError(f"sum of {segment.name}: shape {shape}; must be ({segment.length},)")
        if not np.isfinite(total).all():
            raise DataError(f"sum of {segment.name}: holds NaN or infinity; must be finite")


def _merge_exactly(
    sums: Mapping[str, np.ndarray],
    mean: np.ndarray,
    plan: RingPlan,
    *,
    clients: int,
    weight: float,
    rho: float,
) -> Merged:
    """Elect a side and average over it, by the exact mass and count of each side."""
    ups, downs = unpack_signs(sums["signs"], clients=plan.clients, bits=plan.bits, d=len(mean))
    absolute = sums["magnitude"] / weight
    # without the counts, rounding would leave a trace of mass on a side that has no client
    p = np.where(ups > 0, (absolute + mean) / 2, 0)
    n = np.where(downs > 0, (absolute - mean) / 2, 0)
    up = (p >= rho * n) & (p > 0)
    down = ~up & (n >= rho * p) & (n > 0)
    step = np.zeros(len(mean))
    np.divide(p * clients, ups, out=step, where=up)
    np.divide(-n * clients, downs, out=step, where=down)
    conflict = 1 - np.abs(ups - downs) / clients
    return Merged(step=step.astype(np.float32), conflict=conflict.astype(np.float32))


def _merge_by_blocks(
    mean: np.ndarray, sigma: np.ndarray, *, clients: int, rho: float, kept: float
) -> Merged:
    """Estimate the fused step by the tables of `expectations`, from mean and spread at each coordinate."""
    trimmed = kept < 1 and clients > 1  # the mean of one client is its value, zero or not
    value, conflict = trimmed_tables(clients, rho, kept) if trimmed else plain_tables(clients, rho)
    z = np.divide(np.abs(mean), sigma, out=np.full(len(mean), np.inf), where=sigma > 0)
    inside = z < Z_GRID[-1]
    excess = value[-1] - Z_GRID[-1]  # 0 without trimming
    elected = np.where(inside, sigma * np.interp(z, Z_GRID, value), np.abs(mean) + sigma * excess)
    disagreement = np.where(inside, np.interp(z, Z_GRID, conflict), 0.0)
    disagreement[(mean == 0) & (sigma == 0)] = 1.0  # as in the exact rule: no client is on any side
    return Merged(
        step=(np.sign(mean) * elected).astype(np.float32), conflict=disagreement.astype(np.float32)
    )


def _clip_of(plan: RingPlan) -> float:
    return plan.segment("update").clip or 0.0


def _block_means(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean of every block, [blocks], of values [d]."""
    lengths = np.diff(np.append(starts, len(values)))
    means: np.ndarray = np.add.reduceat(values, starts) / lengths
    return means


def _block_index(starts: np.ndarray, d: int) -> np.ndarray:
    """Return the number of the block of every coordinate, [d]."""
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, d)))
