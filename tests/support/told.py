"""A `Progress` that remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Told:
    """What was started, every step, and the tasks that are open: name -> (steps, total, last note)."""

    started: list[str] = field(default_factory=list)
    advanced: list[tuple[str, int]] = field(default_factory=list)
    open: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def start(self, task: str, total: int) -> None:
        self.started.append(task)
        self.open[task] = (0, total, "")

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        self.advanced.append((task, steps))
        if task in self.open:
            before, total, last = self.open[task]
            self.open[task] = (before + steps, total, note or last)

    def done(self, task: str) -> None:
        self.open.pop(task, None)
