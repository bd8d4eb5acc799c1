"""Polling delays that grow with the time already waited.

An answer that comes soon is seen soon, and one that takes an hour is not polled for ten times a second. The
delay is a third of the time waited so far, between two bounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SHARE = 1 / 3


def pause_s(waited_s: float, *, least_s: float, most_s: float) -> float:
    """Return how long to sleep before the next poll, in seconds: a third of `waited_s`, within bounds.

    >>> [round(pause_s(waited, least_s=0.05, most_s=0.4), 2) for waited in (0, 0.3, 60)]
    [0.05, 0.1, 0.4]
    """
    return min(most_s, max(least_s, SHARE * waited_s))


@dataclass(kw_only=True)
class Patience:
    """A polling delay that grows with the time waited; call `come` when something has arrived.

    `least_s`, `most_s`: bounds of a pause, seconds.
    """

    least_s: float
    most_s: float
    _since: float = field(default_factory=time.monotonic)

    def come(self) -> None:
        """Restart the wait, so that the next delay is short again."""
        self._since = time.monotonic()

    def pause_s(self) -> float:
        """Return how long to sleep now, seconds."""
        return pause_s(time.monotonic() - self._since, least_s=self.least_s, most_s=self.most_s)
