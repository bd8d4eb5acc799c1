"""Progress on a terminal: bars with elapsed and remaining time; elsewhere plain lines, rarely.

On a terminal there is a bar for every task that is going on, and a line stays for each that took a while.
A log file or a CI page gets lines of running tasks every `LINE_SECONDS`, later ever more rarely, and a line
when a task ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from fedproxy_secure.runtime import progress as contract
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.progress import duration, time_left

LINE_SECONDS = 5.0  # between lines of running tasks; a shorter task leaves no line when it ends
RARELY_SECONDS = 60.0  # the same after a long time
MOST_COUNTED = 9999  # a task of more steps is shown in percent


@contextmanager
def shown_on(console: Console) -> Iterator[contract.Progress]:
    """Yield a `Progress` for `console`: bars if it is a terminal, plain lines otherwise."""

    def write(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield PlainLines(write=write)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("left"),
        _Left(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars=bars, write=write)


class _Left(ProgressColumn):
    """The time left at the mean pace so far; rich's own needs a step every 30 s."""

    def render(self, task: Task) -> Text:
        left = time_left(task.completed, task.total or 0.0, task.elapsed or 0.0)
        return Text("" if left is None else duration(left), style="progress.remaining")


@dataclass(kw_only=True)
class _Count:
    total: int
    began: float
    steps: int = 0
    note: str = ""
    news: bool = False  # whether something was counted since the last line

    def add(self, steps: int, note: str) -> None:
        self.steps += steps
        self.note = printable(note) or self.note
        self.news = True

    def __str__(self) -> str:
        """Return `40/160 (25 %)`, or only `25 %` if the counts are too large to be readable."""
        share = f"{100 * self.steps / self.total:.0f} %" if self.total else "100 %"
        return share if self.total > MOST_COUNTED else f"{self.steps}/{self.total} ({share})"


@dataclass(kw_only=True)
class Bars:
    """A `Progress` with one rich bar for each task that is going on."""

    bars: Progress
    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    tasks: dict[str, tuple[TaskID, _Count]] = field(default_factory=dict)

    def start(self, task: str, total: int) -> None:
        """Show a bar for `task`; one of the same name ends."""
        self.done(task)
        count = _Count(total=total, began=self.clock())
        bar = self.bars.add_task(printable(task), total=total, count=str(count), note="")
        self.tasks[task] = bar, count

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Move the bar; an empty note leaves the last one standing."""
        if task in self.tasks:
            bar, count = self.tasks[task]
            count.add(steps, note)
            self.bars.update(bar, completed=count.steps, count=str(count), note=count.note)

    def done(self, task: str) -> None:
        """Take the bar away, and leave a line of how long `task` took, if at least `LINE_SECONDS`."""
        if task in self.tasks:
            bar, count = self.tasks.pop(task)
            self.bars.remove_task(bar)
            _write_end(self.write, task, self.clock() - count.began)


@dataclass(kw_only=True)
class PlainLines:
    """A `Progress` of lines such as `seed 0: 40/160 (25 %), 12 s elapsed, about 36 s left, loss 1.25`."""

    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    tasks: dict[str, _Count] = field(default_factory=dict)
    first: float | None = None
    last_line: float = float("-inf")

    def start(self, task: str, total: int) -> None:
        """Remember when `task` began; writes nothing."""
        now = self.clock()
        self.first = now if self.first is None else self.first
        self.tasks[task] = _Count(total=total, began=now)

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Count; if the last lines are old enough, write one for each task that went on since."""
        if task not in self.tasks:
            return
        self.tasks[task].add(steps, note)
        now = self.clock()
        since = now - (now if self.first is None else self.first)
        if now - self.last_line < min(max(LINE_SECONDS, since / 20), RARELY_SECONDS):
            return
        self.last_line = now
        for name, count in self.tasks.items():
            if count.news:
                count.news = False
                self.write(self._line(printable(name), count, now))

    def done(self, task: str) -> None:
        """Write how long `task` took, if that was worth a line (at least `LINE_SECONDS`)."""
        count = self.tasks.pop(task, None)
        if count is not None:
            _write_end(self.write, task, self.clock() - count.began)

    @staticmethod
    def _line(task: str, count: _Count, now: float) -> str:
        elapsed = now - count.began
        parts = [f"{task}: {count}", f"{duration(elapsed)} elapsed"]
        left = time_left(count.steps, count.total, elapsed)
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return ", ".join([*parts, *([count.note] if count.note else [])])


def _write_end(write: Callable[[str], None], task: str, seconds: float) -> None:
    if seconds >= LINE_SECONDS:
        write(f"{printable(task)}: done in {duration(seconds)}")
