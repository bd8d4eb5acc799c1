"""Records that an evaluation sets aside in a client's data, and canaries that it adds.

Membership can be judged only against records that *could* have been training records: drawn from the same
source, and left out at random. A canary is a made-up secret drawn from a known space, so the probability of
guessing it is known.

Both are drawn anew for every seed of a run, so that runs with several seeds are several samples. They
follow from the seed and the client's name, so that every engine and a resumed run draw the same. Anybody
who knows the two can draw them, too: they are for evaluation and protect nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.randomness import stream

SECRET_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A secret of `SECRET_DIGITS` digits that is in a client's training records `repeats` times."""

    prompt: str
    secret: str
    repeats: int

    def record(self) -> Record:
        """Return the canary as a training record."""
        return Record(prompt=self.prompt, choices=(f" {self.secret}",), label=0)


def draw_canaries(client: str, repeats: Sequence[int], *, seed: int) -> tuple[Canary, ...]:
    """Return one canary for each entry of `repeats`; the same for the same client and seed of the run."""
    rng = stream(seed, "canaries", client)
    return tuple(
        Canary(
            prompt=f"The number of {client} {index} is",
            secret=f"{rng.integers(10**SECRET_DIGITS):0{SECRET_DIGITS}d}",
            repeats=count,
        )
        for index, count in enumerate(repeats)
    )


def set_aside(
    records: Sequence[Record], share: float, client: str, *, seed: int
) -> tuple[list[Record], list[Record]]:
    """Split records at random into training records and the `share` that is set aside, both in order.

    The seed of the run decides which records are set aside, but not how many.

    Raises `DataError` if fewer than 2 training records would be left.
    """
    if share == 0:
        return list(records), []
    out = math.ceil(share * len(records))
    if len(records) - out < 2:
        raise DataError(
            f"audit.holdout={share}: leaves client {client} {len(records) - out} of {len(records)} "
            "records; must leave >= 2"
        )
    held_out = set(stream(seed, "holdout", client).permutation(len(records))[:out].tolist())
    training = [r for i, r in enumerate(records) if i not in held_out]
    return training, [records[i] for i in sorted(held_out)]
