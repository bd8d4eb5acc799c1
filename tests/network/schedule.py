"""A schedule drawn with a seed: which disturbances hit whom in a run, one in each step of the protocol."""

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
    """A planned disturbance: what happens, in which step, and to whom.

    Attributes:
        kind: what happens.
        step: the step in which it happens: when the target has been asked for it.
        target: number of the site that is waited for, and disturbed if a site is; from 0.
        ahead: whether an hour off means ahead, for clocks.
    """

    kind: Kind
    step: Step
    target: int
    ahead: bool


def plans(seed: int, run: int, *, sites: int) -> tuple[Plan, ...]:
    """Return the disturbances of a run, one for each step, in the order of the steps.

    In as many runs as there are kinds, every pair of kind and step comes once, in random order.
    """
    lap, place = divmod(run, len(KINDS))
    drawn = []
    for step in STEPS:
        draw = random.Random(f"{seed} {run} {step}")
        drawn.append(
            Plan(
                kind=_shuffled(KINDS, f"{seed} {lap} {step}")[place],
                step=step,
                target=draw.randrange(sites),
                ahead=draw.random() < 0.5,
            )
        )
    return tuple(drawn)


def _shuffled(values: tuple[T, ...], seed: str) -> list[T]:
    drawn = list(values)
    random.Random(seed).shuffle(drawn)
    return drawn
