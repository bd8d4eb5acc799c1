"""A schedule drawn with a seed: which disturbance hits whom, in which step of the protocol."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "a site's cable is cut for 5 s",
    "the owner's cable is cut for 5 s",
    "a site's cable carries 2 Mbit/s",
    "all cables lose 5 % of the frames",
    "a site's cable takes 100 ms",
    "the SuperLink is killed",
    "the server app is killed",
    "the owner's command is killed",
    "all of the owner's processes are killed",
    "a SuperNode is killed",
    "a site's worker is killed",
    "all of a site's processes are killed",
    "a site's disk is full for 5 s",
    "the owner's disk is full for 5 s",
    "a site starts again with a clock that is an hour off",
]
Step = Literal["setup", "train", "share", "mask", "confirm", "unmask"]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
STEPS: tuple[Step, ...] = Step.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One disturbed run.

    Attributes:
        kind: what happens.
        step: the step in which it happens: when the target has been asked for it.
        round: the round of the step; set-up comes before all rounds.
        target: number of the site that is waited for, and disturbed if a site is; from 0.
        ahead: whether an hour off means ahead, for clocks.
    """

    kind: Kind
    step: Step
    round: int
    target: int
    ahead: bool


def plan(seed: int, index: int, *, sites: int, rounds: int) -> Plan:
    """Return run `index` of a seed: all pairs of disturbance and step in random order, and then again."""
    pairs = list(itertools.product(KINDS, STEPS))
    lap, place = divmod(index, len(pairs))
    random.Random(f"{seed} {lap}").shuffle(pairs)
    kind, step = pairs[place]
    draw = random.Random(f"{seed} {lap} {place}")
    return Plan(
        kind=kind,
        step=step,
        round=0 if step == "setup" else draw.randrange(rounds),
        target=draw.randrange(sites),
        ahead=draw.random() < 0.5,
    )
