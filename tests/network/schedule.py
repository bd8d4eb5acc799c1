"""A schedule drawn with a seed: which disturbance hits whom, in which step of the protocol."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, TypeVar

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
Step = Literal["setup", "part", "train", "share", "mask", "confirm", "unmask"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
STEPS: tuple[Step, ...] = Step.__args__  # type: ignore[attr-defined]
BEFORE_ROUNDS: tuple[Step, ...] = ("setup", "part")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One disturbed run.

    Attributes:
        kind: what happens.
        step: the step in which it happens: when the target has been asked for it.
        round: the round of the step; set-up and the proxy's parts come before all rounds.
        target: number of the site that is waited for, and disturbed if a site is; from 0.
        ahead: whether an hour off means ahead, for clocks.
    """

    kind: Kind
    step: Step
    round: int
    target: int
    ahead: bool


def plan(seed: int, index: int, *, sites: int, rounds: int) -> Plan:
    """Return run `index` of a seed.

    Every kind comes once in each block of as many runs as there are kinds, in random order; every pair of
    kind and step comes once in each lap of as many blocks as there are steps.
    """
    lap, place = divmod(index, len(KINDS) * len(STEPS))
    block, number = divmod(place, len(KINDS))
    kind = _shuffled(KINDS, f"{seed} {lap} {block}")[number]
    step = _shuffled(STEPS, f"{seed} {lap} {kind}")[block]
    draw = random.Random(f"{seed} {lap} {place}")
    return Plan(
        kind=kind,
        step=step,
        round=0 if step in BEFORE_ROUNDS else draw.randrange(rounds),
        target=draw.randrange(sites),
        ahead=draw.random() < 0.5,
    )


def _shuffled(values: tuple[T, ...], seed: str) -> list[T]:
    drawn = list(values)
    random.Random(seed).shuffle(drawn)
    return drawn
