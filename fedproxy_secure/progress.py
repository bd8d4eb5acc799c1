"""How long work tells how far it is: three calls, no assumption about who listens.

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
        """`task` begins and will take `total` steps (>= 0)."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """`steps` more steps of `task` are done; `note` is a short text to show, such as a loss."""

    def done(self, task: str) -> None:
        """`task` ended, whether or not all its steps were taken."""


class NoProgress:
    """Shows nothing: the default of every function that takes a `Progress`."""

    def start(self, task: str, total: int) -> None:
        """Ignored."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Ignored."""

    def done(self, task: str) -> None:
        """Ignored."""
