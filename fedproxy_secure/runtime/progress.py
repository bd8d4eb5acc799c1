"""Reporting the progress of long work: three calls, with no assumption about who listens.

>>> progress: Progress = NoProgress()
>>> progress.start("seed 0", total=2)
>>> progress.advance("seed 0", note="loss 1.25")
>>> progress.done("seed 0")
"""

from __future__ import annotations

from typing import Protocol


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
