"""Report the progress of long work to whoever listens, and measure its seconds.

>>> progress: Progress = NoProgress()
>>> progress.start("seed 0", total=2)
>>> progress.advance("seed 0", note="loss 1.25")
>>> progress.done("seed 0")

`Named` and `Weighed` pass calls on to another `Progress`: work inside work tells who it is, and how much
of all of it is done. `Relayed` and `Replay` are the two ends of a connection: one makes snapshots of what
it is told, the other tells a `Progress` what has changed since the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

WORK = "work"  # the name of the task that counts all the work of a piece, in units of its own
RELAY_SECONDS = 0.2  # at least, between two snapshots
LONGEST_TEXT = 80  # characters of a name or a note in a snapshot


def duration(seconds: float) -> str:
    """Return a time for people: `45 s`, `12 min` from two minutes on, `3 h 5 min` from two hours on."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def time_left(steps: float, total: float, elapsed: float) -> float | None:
    """Return how long the rest takes at the mean pace so far, in the unit of `elapsed`; None if unknown."""
    return elapsed / steps * (total - steps) if 0 < steps < total else None


@dataclass(kw_only=True)
class StageClock:
    """Wall-clock seconds per stage in this process; a stage that was killed counts from the resume on."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def stop(self, stage: str, *, at_least: float = 0.0) -> None:
        """Add the seconds since the last stop to `stage`.

        `at_least`: the seconds that its finished parts are known to have taken, also in earlier processes.
        """
        now = time.perf_counter()
        self.seconds[stage] = max(at_least, self.seconds.get(stage, 0.0) + now - self.began)
        self.began = now


class Progress(Protocol):
    """Receives progress of named tasks. Calls for an unknown task are ignored, never an error."""

    def start(self, task: str, total: int) -> None:
        """Begin `task`, which will take `total` steps (>= 0)."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Count `steps` more steps of `task` as done; `note` is a short text to show, such as a loss."""

    def done(self, task: str) -> None:
        """End `task`, whether or not all its steps were taken."""


class NoProgress:
    """A `Progress` that shows nothing: the default of every function that takes one."""

    def start(self, task: str, total: int) -> None:
        """Ignore the call."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Ignore the call."""

    def done(self, task: str) -> None:
        """Ignore the call."""


@dataclass(kw_only=True)
class Weighed:
    """A `Progress` that passes calls on and adds what a task does to the task `WORK`.

    Args:
        shown: where calls are passed on to.
        units: what all steps of any one task are worth together, in the units in which `WORK` counts, or
            what tells this for a task's name.
    """

    shown: Progress
    units: float | Callable[[str], float]
    _each: dict[str, float] = field(default_factory=dict)  # units per step, by task
    _owed: float = 0.0  # units done that are not yet a whole one

    def start(self, task: str, total: int) -> None:
        """Begin `task`."""
        units = self.units(task) if callable(self.units) else self.units
        self._each[task] = units / total if total else 0.0
        self.shown.start(task, total)

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Count steps of `task`, and their units as steps of `WORK`."""
        self.shown.advance(task, steps, note)
        self._owed += steps * self._each.get(task, 0.0)
        if self._owed >= 1:
            self.shown.advance(WORK, int(self._owed))
            self._owed -= int(self._owed)

    def done(self, task: str) -> None:
        """End `task`."""
        self._each.pop(task, None)
        self.shown.done(task)


@dataclass(kw_only=True)
class Named:
    """A `Progress` that shows the tasks of one piece of work under its name: `NAME: TASK`.

    Args:
        shown: where they are shown.
        name: the name of this piece of work.
        hidden: tasks that are not shown, such as one that lasts while others come and go.
        on_work: called with the units that the task `WORK` advances by; `WORK` itself is not shown.
    """

    shown: Progress
    name: str
    hidden: frozenset[str] = frozenset()
    on_work: Callable[[int], None] | None = None

    def start(self, task: str, total: int) -> None:
        """Show `task`."""
        if task != WORK and task not in self.hidden:
            self.shown.start(f"{self.name}: {task}", total)

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Show steps of `task`."""
        if task == WORK and self.on_work is not None:
            self.on_work(steps)
        elif task != WORK and task not in self.hidden:
            self.shown.advance(f"{self.name}: {task}", steps, note)

    def done(self, task: str) -> None:
        """End `task`."""
        if task != WORK and task not in self.hidden:
            self.shown.done(f"{self.name}: {task}")


@dataclass(frozen=True, kw_only=True)
class Open:
    """A task that was started and is not done. `number`: two tasks of one name differ in it."""

    task: str
    number: int
    total: int
    steps: int = 0
    note: str = ""


Snapshot = tuple[Open, ...]


@dataclass(kw_only=True)
class Relayed:
    """A `Progress` that hands on snapshots of its open tasks: at each start, and between as time passes.

    A snapshot that is not taken is lost without harm, since the next has all that it had. For one thread.

    Args:
        hand_on: takes a snapshot and returns whether it could; must not block.
        every: seconds between snapshots.
    """

    hand_on: Callable[[Snapshot], bool]
    every: float = RELAY_SECONDS
    clock: Callable[[], float] = time.monotonic
    _open: dict[str, Open] = field(default_factory=dict)
    _begun: int = 0
    _last: float = float("-inf")

    def start(self, task: str, total: int) -> None:
        """Begin `task` and hand on a snapshot at once: its first step may take long."""
        self._begun += 1
        task = task[:LONGEST_TEXT]
        self._open.pop(task, None)  # to the end of the order
        self._open[task] = Open(task=task, number=self._begun, total=total)
        self._hand_on()

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Count, and hand on a snapshot if the last is old enough."""
        task = task[:LONGEST_TEXT]
        if (now := self._open.get(task)) is not None:
            self._open[task] = replace(now, steps=now.steps + steps, note=note[:LONGEST_TEXT] or now.note)
            if self.clock() - self._last >= self.every:
                self._hand_on()

    def done(self, task: str) -> None:
        """Forget `task`; the next snapshot is without it."""
        self._open.pop(task[:LONGEST_TEXT], None)

    def _hand_on(self) -> None:
        if self.hand_on(tuple(self._open.values())):
            self._last = self.clock()


@dataclass(kw_only=True)
class Replay:
    """Tells a `Progress` what changes from one snapshot to the next."""

    shown: Progress
    _open: dict[str, Open] = field(default_factory=dict)

    def here(self) -> Relayed:
        """Return the other end, in this process; nothing it is told is held back."""

        def hand_on(snapshot: Snapshot) -> bool:
            self.to(snapshot)
            return True

        return Relayed(hand_on=hand_on, every=0.0)

    def to(self, snapshot: Snapshot) -> None:
        """Tell what has changed; `()` ends all tasks."""
        now = {o.task: o for o in snapshot}
        for task, known in list(self._open.items()):
            if task not in now or now[task].number != known.number:
                del self._open[task]
                self.shown.done(task)
        for task, current in now.items():
            before = self._open.get(task)
            if before is None:
                before = replace(current, steps=0, note="")
                self.shown.start(task, current.total)
            if current.steps != before.steps or current.note != before.note:
                self.shown.advance(task, current.steps - before.steps, current.note)
            self._open[task] = current
