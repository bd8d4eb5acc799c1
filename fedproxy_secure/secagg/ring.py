"""Real numbers and counts as words of a ring: plan what fits, quantise, pack, and read the sum back.

    RingPlan      the layout of a vector; refuses one whose sums could wrap
    quantise      turns a client's values into words, `pack` words into bytes
    add_packed    adds a vector's bytes to a total, which `read_sum` turns into sums of values

A client's vector is a row of **segments**. A real segment is clipped to `[-clip, clip]`, scaled to `levels`
steps on each side of 0 and rounded to an integer. The rings of 16 and 24 bits round at random to one of the
two neighbours; the ring of 32 bits rounds to the nearest, so that a masked run gives the same result twice.
A count segment holds small integers. Words add modulo `2^bits`.

Guarantees: under an accepted plan no sum of `clients` vectors wraps. The sum of words, read as signed (for
counts: as unsigned), is the exact sum of the clients' integers. Clipped values are counted.

Random rounding takes its randomness from the operating system and is unbiased within 2^-9 of a step. The
mean over n clients is off by less than one `step_of` per coordinate, with a standard deviation of at most
`step / (2 sqrt(n))`. Rounding to the nearest is off by at most half a step, which with 32 bits and 64
clients is 2^-26 of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.crypto.primitives import fresh_secret, keystream
from fedproxy_secure.errors import ConfigError, DataError

RING_BITS = (16, 24, 32)
MIN_CLIENTS, MAX_CLIENTS = 3, 64
MIN_LEVELS = 64  # with fewer steps on a side, rounding drowns the update
MIN_CLIP, MAX_CLIP = 2.0**-96, 2.0**96  # beyond these, float32 cannot hold the steps and sums
CHUNK_WORDS = 1 << 16  # the data of one chunk stays in the second-level cache


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A row of `length` words of one kind: real values have a `clip` > 0, counts a `largest` value >= 1."""

    name: str
    length: int
    clip: float | None = None
    largest: int | None = None


@dataclass(frozen=True, kw_only=True)
class RingPlan:
    """The layout of the vectors that `clients` add up in one ring.

    Attributes:
        bits: of a word, one of `RING_BITS`.
        clients: the most vectors in a sum.
        segments: of each vector, in order; their names differ.

    Raises `ConfigError` for a ring in which a sum could wrap, or a real value would have fewer than
    `MIN_LEVELS` steps on each side of 0.
    """

    bits: int
    clients: int
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if self.bits not in RING_BITS:
            raise ConfigError(f"bits={self.bits}: must be one of {RING_BITS}")
        if not MIN_CLIENTS <= self.clients <= MAX_CLIENTS:
            raise ConfigError(f"clients={self.clients}: must be {MIN_CLIENTS} to {MAX_CLIENTS}")
        if len({s.name for s in self.segments}) != len(self.segments):
            raise ConfigError("segments: names must differ")
        if self.levels < MIN_LEVELS:
            raise ConfigError(
                f"bits={self.bits}: leaves {self.levels} steps a side for {self.clients} clients; "
                f"must be >= {MIN_LEVELS}"
            )
        for s in self.segments:
            if (s.clip is None) == (s.largest is None) or s.length < 0:
                raise ConfigError(f"segment {s.name}: must have either a clip or a largest count")
            if s.clip is not None and not MIN_CLIP <= s.clip <= MAX_CLIP:
                raise ConfigError(f"segment {s.name}: clip={s.clip}: must be {MIN_CLIP:g} to {MAX_CLIP:g}")
            if s.largest is not None and not 1 <= s.largest * self.clients < 2**self.bits:
                raise ConfigError(
                    f"segment {s.name}: {self.clients} clients x {s.largest} must be < 2^{self.bits}"
                )

    @property
    def levels(self) -> int:
        """The steps from 0 to the clip: the most whose sum over `clients` is below 2^(bits - 1)."""
        return int((2 ** (self.bits - 1) - 1) // self.clients)

    @property
    def random_rounding(self) -> bool:
        """Whether values are rounded at random (16 and 24 bits) or to the nearest step (32)."""
        return self.bits < 32

    @property
    def words(self) -> int:
        """The length of the vector, in words."""
        return sum(s.length for s in self.segments)

    @property
    def upload_bytes(self) -> int:
        """The size of the packed vector, in bytes."""
        return self.words * self.bits // 8

    @property
    def word_type(self) -> type[np.unsignedinteger]:
        """The type of a word: uint16, or uint32 for 32 and 24 bits (whose high byte is not sent)."""
        return np.uint16 if self.bits == 16 else np.uint32

    def segment(self, name: str) -> Segment:
        """Return the segment of this name. Raises `ConfigError` if the plan has none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise ConfigError(f"segment {name}: must be one of {', '.join(s.name for s in self.segments)}")

    def place_of(self, name: str) -> slice:
        """Return the slice of the vector that holds a segment's words. Raises as `segment` does."""
        segment = self.segment(name)
        start = sum(s.length for s in self.segments[: self.segments.index(segment)])
        return slice(start, start + segment.length)

    def step_of(self, segment: Segment) -> float:
        """Return the step between values of a real segment. Raises `ConfigError` for a count segment."""
        if segment.clip is None:
            raise ConfigError(f"segment {segment.name}: is a count and has no step")
        return segment.clip / self.levels

    def canonical(self) -> bytes:
        """Return the one byte string for this plan, which the terms' hash covers."""
        rows = [f"{s.name}:{s.length}:{s.clip!r}:{s.largest!r}" for s in self.segments]
        return "|".join([str(self.bits), str(self.clients), *rows]).encode()


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A vector before masking.

    Attributes:
        words: ring words [plan.words].
        clipped: how many real values were clipped.
        largest: the largest |real value| before clipping.
    """

    words: np.ndarray
    clipped: int
    largest: float


def quantise(plan: RingPlan, values: Mapping[str, np.ndarray], *, nearest: bool = False) -> Quantised:
    """Return a client's segments as ring words.

    Args:
        plan: the ring.
        values: of each segment, by name, [length].
        nearest: round to the nearest step in small rings too, so that the same values give the same words.

    Raises `DataError`, naming the segment, for a missing or unknown segment, another length, NaN or
    infinity, or a count out of range.
    """
    if set(values) != {s.name for s in plan.segments}:
        raise DataError(f"segments {sorted(values)}: must be {sorted(s.name for s in plan.segments)}")
    words = np.empty(plan.words, dtype=plan.word_type)
    clipped, largest, offset = 0, 0.0, 0
    for segment in plan.segments:
        part, target = np.asarray(values[segment.name]), words[offset : offset + segment.length]
        if part.shape != (segment.length,):
            raise DataError(f"segment {segment.name}: shape {part.shape}; must be ({segment.length},)")
        if segment.clip is None:
            _counts_into(target, part, segment)
        else:
            rounded = _nearest if nearest or not plan.random_rounding else _random_rounding(plan.levels)
            cut, top = _real_into(target, part, segment, plan, rounded)
            clipped, largest = clipped + cut, max(largest, top)
        offset += segment.length
    return Quantised(words=words, clipped=clipped, largest=largest)


def _counts_into(target: np.ndarray, part: np.ndarray, segment: Segment) -> None:
    if part.dtype.kind not in "iu":
        raise DataError(f"segment {segment.name}: {part.dtype}; counts must be integers")
    if part.size and not 0 <= int(part.min()) <= int(part.max()) <= (segment.largest or 0):
        raise DataError(f"segment {segment.name}: counts must be 0 to {segment.largest}")
    target[:] = part


def _real_into(
    target: np.ndarray,
    part: np.ndarray,
    segment: Segment,
    plan: RingPlan,
    rounded: Callable[[np.ndarray], np.ndarray],
) -> tuple[int, float]:
    """Scale to steps, clip and round; return how many values were clipped, and the largest |value|."""
    clip, levels = float(segment.clip or 0), plan.levels
    # float32 is too coarse for the steps of the large rings
    y = np.empty(CHUNK_WORDS, dtype=np.float32 if plan.bits == 16 else np.float64)
    scale = y.dtype.type(levels / clip)
    clipped, largest = 0, 0.0
    for start in range(0, len(part), CHUNK_WORDS):
        x = part[start : start + CHUNK_WORDS]
        top = float(max(x.max(), -x.min()))
        if not np.isfinite(top):  # also refuses NaN, which max and min pass on
            raise DataError(f"segment {segment.name}: holds NaN or infinity; must be finite")
        largest = max(largest, top)
        steps = y[: len(x)]
        np.multiply(x, scale, out=steps, casting="same_kind")
        if top > clip:
            clipped += int(np.count_nonzero(np.abs(x) > clip))
        if top > 0.999 * clip:  # just below the clip, too, the product may round up beyond the last step
            np.clip(steps, -levels, levels, out=steps)
        np.copyto(target[start : start + len(x)], rounded(steps), casting="unsafe")
    return clipped, largest


def _nearest(steps: np.ndarray) -> np.ndarray:
    np.rint(steps, out=steps)
    return steps.astype(np.int32)


def _random_rounding(levels: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that rounds x to floor(x + u), with u uniform on a grid in (0, 1).

    The grid's step is 2^-8 (16 bits) or 2^-16 (24 bits), and its ends are half a step inside (0, 1). So for
    a whole x, x + u is exact in x's own type and below x + 1: a whole number never moves.
    """
    small = levels < 2**15
    stream, zeros = keystream(fresh_secret()), bytes(CHUNK_WORDS * (1 if small else 2))
    random = np.empty(CHUNK_WORDS, dtype=np.uint8 if small else np.uint16)
    u = np.empty(CHUNK_WORDS, dtype=np.float32 if small else np.float64)
    grid = 2**-8 if small else 2**-16

    def rounded(steps: np.ndarray) -> np.ndarray:
        n = len(steps)
        stream.update_into(zeros, random.view(np.uint8).data)
        np.multiply(random[:n], grid, out=u[:n], dtype=u.dtype)
        np.add(u[:n], grid / 2, out=u[:n])
        np.add(steps, u[:n], out=steps)
        np.floor(steps, out=steps)
        return steps.astype(np.int32)

    return rounded


def read_sum(plan: RingPlan, total: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sums by segment name: float32 [length] in the clip's unit, or int64 [length] for counts.

    `total`: summed words [plan.words]; bits above the ring's are ignored.
    """
    sums: dict[str, np.ndarray] = {}
    offset = 0
    for s in plan.segments:
        sums[s.name] = np.empty(s.length, dtype=np.int64 if s.clip is None else np.float32)
        for start in range(0, s.length, CHUNK_WORDS):  # a chunk at a time: no second copy of the vector
            stop = min(start + CHUNK_WORDS, s.length)
            words = total[offset + start : offset + stop]
            if s.clip is not None:
                out = sums[s.name][start:stop]
                np.multiply(
                    _signed(words, plan), plan.step_of(s), out=out, dtype=np.float64, casting="same_kind"
                )
            else:
                sums[s.name][start:stop] = words.astype(np.int64) & (2**plan.bits - 1)
        offset += s.length
    return sums


def _signed(words: np.ndarray, plan: RingPlan) -> np.ndarray:
    """Return words of the ring as signed integers: the ring's top bit becomes the type's."""
    signed = np.int16 if plan.bits == 16 else np.int32
    spare = words.itemsize * 8 - plan.bits
    return np.asarray((words << words.dtype.type(spare)).view(signed) >> signed(spare))


def pack(plan: RingPlan, words: np.ndarray) -> bytes:
    """Return a vector's little-endian bytes, `bits / 8` per word."""
    raw = np.ascontiguousarray(words, dtype=np.dtype(plan.word_type).newbyteorder("<"))
    if plan.bits == 24:
        return raw.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return raw.tobytes()


def add_packed(plan: RingPlan, total: np.ndarray, packed: bytes) -> None:
    """Add a packed vector to `total`, in place. Raises `DataError` for another length."""
    if len(packed) != plan.upload_bytes:
        raise DataError(f"masked vector of {len(packed)} bytes: must have {plan.upload_bytes}")
    if plan.bits == 24:
        triples = np.frombuffer(packed, dtype=np.uint8).reshape(-1, 3)
        for start in range(0, len(triples), CHUNK_WORDS):
            part = triples[start : start + CHUNK_WORDS]
            wide = np.zeros((len(part), 4), dtype=np.uint8)
            wide[:, :3] = part
            total[start : start + len(part)] += wide.view("<u4").ravel()
    else:
        total += np.frombuffer(packed, dtype=np.dtype(plan.word_type).newbyteorder("<"))
