"""Privacy events: the uses of private data, which are all that accountants read.

Two privacy units, never mixed in one ledger:

    record   `SampledGaussian`: DP-SGD steps of one client over its own records
    client   `DiscreteSum`: one noisy sum over clients in every round
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedproxy_secure.errors import DataError

DiscreteMechanism = Literal["skellam", "discrete_gaussian"]


@dataclass(frozen=True, kw_only=True)
class SampledGaussian:
    """`steps` sums over Poisson samples of the records, each with Gaussian noise.

    `noise_multiplier`: the noise's standard deviation over the clip norm, >= 0. `sampling_rate`: each
    record's chance to be in a step, independently of all others, (0, 1].
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        _finite(noise_multiplier=self.noise_multiplier)
        if not 0 < self.sampling_rate <= 1:
            raise DataError(f"sampling_rate={self.sampling_rate}: must be in (0, 1]")
        _at_least_one(steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class DiscreteSum:
    """`rounds` sums of integer vectors, each with integer noise from the clients that did not drop out.

    `variance`: the variance, in squared steps of the ring, of the noise that `summands` clients together
    add. `l2`, `l1`: how far one client's vector can move the sum. `dimension`: numbers in a vector.
    """

    mechanism: DiscreteMechanism
    variance: float
    l2: float
    l1: float
    dimension: int
    summands: int
    rounds: int

    def __post_init__(self) -> None:
        if self.mechanism not in ("skellam", "discrete_gaussian"):
            raise DataError(f"mechanism={self.mechanism!r}: must be skellam or discrete_gaussian")
        _finite(variance=self.variance, l2=self.l2, l1=self.l1)
        _at_least_one(dimension=self.dimension, summands=self.summands, rounds=self.rounds)


Event = SampledGaussian | DiscreteSum
_KINDS: dict[str, type[SampledGaussian] | type[DiscreteSum]] = {
    "sampled_gaussian": SampledGaussian,
    "discrete_sum": DiscreteSum,
}


def to_fields(event: Event) -> dict[str, Any]:
    """Return an event as JSON values."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"kind": kind, **asdict(event)}


def from_fields(raw: Mapping[str, Any]) -> Event:
    """Read what `to_fields` returned. Raises `DataError` for an unknown kind, as its cost is unknown."""
    fields = dict(raw)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise DataError(f"privacy event {kind!r}: must be one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise DataError(f"privacy event {kind}: {error}") from error


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise DataError(f"{name}={value}: must be >= 0 and finite")


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name}={value}: must be >= 1")
