"""Report the progress of long work, and measure its seconds.

>>> progress: Progress = NoProgress()
>>> progress.start("seed 0", total=2)
>>> progress.advance("seed 0", note="loss 1.25")
>>> progress.done("seed 0")

`Named` and `Weighed` pass calls on to another `Progress`: the first under the name of a piece of work, the
second with the share of the piece that is done. `Relayed` and `Replay` are the two ends of a connection:
the first sends snapshots of its open tasks, the second reports the changes between them to a `Progress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

WORK = "work"  # the name of the task that counts all the work of a piece, in units of its own
RELAY_SECONDS = 0.2  # least time between two snapshots
LONGEST_TEXT = 80  # characters of a name or a note in a snapshot


def duration(seconds: float) -> str:
    """Return a time for people: `45 s`, `12 min` from two minutes on, `3 h 5 min` from two hours on."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def time_left(steps: float, total: float, elapsed: float) -> float | None:
    """Return the time left at the mean pace so far, in the unit of `elapsed`; None if unknown."""
    return elapsed / steps * (total - steps) if 0 < steps < total else None


@dataclass(kw_only=True)
class StageClock:
    """Wall-clock seconds per stage in this process; a killed stage counts from its resumption."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def stop(self, stage: str, *, at_least: float = 0.0) -> None:
        """Add the seconds since the last stop to `stage`.

        `at_least`: the known seconds of what was done since then, including those in earlier processes.
        """
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + max(at_least, now - self.began)
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
    """A `Progress` that passes calls on and counts the steps of every task as units of the task `WORK`.

    Args:
        shown: where calls are passed on to.
        units: the units of `WORK` that all steps of a task are worth together, or a function that returns
            them for a task's name.
    """

    shown: Progress
    units: float | Callable[[str], float]
    _each: dict[str, float] = field(default_factory=dict)  # units per step, by task
    _owed: float = 0.0  # units done but not counted, less than one

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
        hidden: tasks that are not shown, such as one that outlasts the others.
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
    """A task that was started and is not done; `number` distinguishes tasks of the same name."""

    task: str
    number: int
    total: int
    steps: int = 0
    note: str = ""


Snapshot = tuple[Open, ...]


@dataclass(kw_only=True)
class Relayed:
    """A `Progress` that hands on snapshots of its open tasks: at each start, and then at intervals.

    A snapshot that is not taken does no harm, since the next one contains the same tasks. Not thread-safe.

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
        """Begin `task` and hand on a snapshot at once, because the first step may take long."""
        self._begun += 1
        task = task[:LONGEST_TEXT]
        self._open.pop(task, None)  # to the end of the order
        self._open[task] = Open(task=task, number=self._begun, total=total)
        self._hand_on()

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Count steps of `task`, and hand on a snapshot if the last one is old enough."""
        task = task[:LONGEST_TEXT]
        if (state := self._open.get(task)) is not None:
            self._open[task] = replace(
                state, steps=state.steps + steps, note=note[:LONGEST_TEXT] or state.note
            )
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
    """The receiving end of `Relayed`: reports the changes between snapshots to a `Progress`."""

    shown: Progress
    _open: dict[str, Open] = field(default_factory=dict)

    def here(self) -> Relayed:
        """Return a sending end in this process, which hands on every call at once."""

        def hand_on(snapshot: Snapshot) -> bool:
            self.to(snapshot)
            return True

        return Relayed(hand_on=hand_on, every=0.0)

    def to(self, snapshot: Snapshot) -> None:
        """Report the changes since the last snapshot; `()` ends all tasks."""
        current_tasks = {o.task: o for o in snapshot}
        for task, open_task in list(self._open.items()):
            if task not in current_tasks or current_tasks[task].number != open_task.number:
                del self._open[task]
                self.shown.done(task)
        for task, current in current_tasks.items():
            before = self._open.get(task)
            if before is None:
                before = replace(current, steps=0, note="")
                self.shown.start(task, current.total)
            if current.steps != before.steps or current.note != before.note:
                self.shown.advance(task, current.steps - before.steps, current.note)
            self._open[task] = current
