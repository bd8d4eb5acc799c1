"""Progress on a terminal: bars with elapsed and remaining time; elsewhere plain lines, rarely.

A log file or a CI page gets at most one line every `LINE_SECONDS`, plus one when a task ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedproxy_secure.runtime import progress as contract
from fedproxy_secure.runtime.escape import printable

LINE_SECONDS = 5.0


@contextmanager
def shown_on(console: Console) -> Iterator[contract.Progress]:
    """Yield a `Progress` for `console`: bars if it is a terminal, plain lines otherwise."""
    if not console.is_terminal:
        yield PlainLines(write=lambda line: console.print(line, markup=False, highlight=False))
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars=bars)


@dataclass(kw_only=True)
class Bars:
    """A `Progress` with one rich bar per task."""

    bars: Progress
    ids: dict[str, TaskID] = field(default_factory=dict)

    def start(self, task: str, total: int) -> None:
        """Show a bar for `task`; one of the same name starts again from nothing."""
        self.done(task)
        self.ids[task] = self.bars.add_task(task, total=total, note="")

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Move the bar; an empty note leaves the last one standing."""
        if task in self.ids:
            self.bars.update(self.ids[task], advance=steps)
            if note:
                self.bars.update(self.ids[task], note=printable(note))

    def done(self, task: str) -> None:
        """Stop the bar's clock where it stands."""
        if task in self.ids:
            self.bars.stop_task(self.ids.pop(task))


@dataclass(kw_only=True)
class _Count:
    total: int
    began: float
    steps: int = 0
    note: str = ""


@dataclass(kw_only=True)
class PlainLines:
    """A `Progress` of lines such as `seed 0: 40/160, 12 s elapsed, about 36 s left, loss 1.25`."""

    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    tasks: dict[str, _Count] = field(default_factory=dict)
    last_line: float = float("-inf")

    def start(self, task: str, total: int) -> None:
        """Remember when `task` began; writes nothing."""
        self.tasks[task] = _Count(total=total, began=self.clock())

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Count, and write a line if the last one is `LINE_SECONDS` old."""
        count = self.tasks.get(task)
        if count is None:
            return
        count.steps += steps
        count.note = printable(note) or count.note
        now = self.clock()
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            self.write(self._line(task, count, now))

    def done(self, task: str) -> None:
        """Write how long `task` took, if that was worth a line (at least `LINE_SECONDS`)."""
        count = self.tasks.pop(task, None)
        if count is not None and self.clock() - count.began >= LINE_SECONDS:
            self.write(f"{task}: done in {self.clock() - count.began:.0f} s")

    @staticmethod
    def _line(task: str, count: _Count, now: float) -> str:
        elapsed = now - count.began
        parts = [f"{task}: {count.steps}/{count.total}", f"{elapsed:.0f} s elapsed"]
        if 0 < count.steps < count.total:
            left = elapsed / count.steps * (count.total - count.steps)
            parts.append(f"about {left:.0f} s left")
        return ", ".join([*parts, *([count.note] if count.note else [])])
