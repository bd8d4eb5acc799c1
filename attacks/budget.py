"""The budget of an attack: seconds, shared with its controls, queries, sizes; the alarm that ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fedproxy_secure.errors import Stopped
from fedproxy_secure.evidence.finding import Profile
from fedproxy_secure.runtime.progress import Progress

TICK_S = 1.0  # between two messages of a bar


class OutOfTime(Stopped):
    """The budget's seconds are used up; a resumed suite runs the attack again.

    It is not derived from `Exception`, because it can be raised between any two lines, even inside code
    that catches every `Exception` as its own failure, such as training under differential privacy. Code
    that catches every `BaseException`, such as loading a proxy, passes `Stopped` on.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"ran out of its {seconds:g} s")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one attack: wall-clock seconds from `began`, model queries, and a profile for sizes.

    The attack and its controls share the seconds. Loops that can stop early stop at the share `last` of the
    seconds, so that time remains to score their result.
    """

    profile: Profile = "smoke"
    seconds: float = 600.0
    queries: int = 4096
    began: float = field(default_factory=time.monotonic)
    last: float = 0.9

    def pick(self, *, smoke: Any, standard: Any, full: Any) -> Any:
        """Return the value for the budget's profile."""
        return {"smoke": smoke, "standard": standard, "full": full}[self.profile]

    @property
    def left_s(self) -> float:
        """The seconds that are left; negative once they are used up."""
        return self.began + self.seconds - time.monotonic()

    @property
    def used(self) -> float:
        """The share of the seconds that is used up: 0 at the beginning, above 1 after the end."""
        return 1 - self.left_s / self.seconds

    def until(self, share: float) -> float:
        """Return the value of `used` once this share of the seconds has passed from now, at most `last`.

        A loop calls it once, before it begins, and compares the result with `used`. So a control, which
        begins late, does as much work as the attack itself.
        """
        return min(self.last, self.used + share)

    def halfway(self) -> Budget:
        """Return the budget of a control that is followed by another: half of the time that loops have."""
        used = self.used
        return replace(self, last=used + max(0.0, self.last - used) / 2)

    def check(self) -> None:
        """Raise `OutOfTime` if the seconds are used up; long loops call it in every step."""
        if self.left_s < 0:
            raise OutOfTime(self.seconds)


@dataclass(kw_only=True)
class SecondsBar:
    """The progress bar of one attack: seconds that have passed, out of the most that it may take."""

    shown: Progress
    task: str
    part: str = "the attack itself"
    _told: int = 0

    def tell(self, passed: float) -> None:
        """Report the seconds that have passed, and what is running."""
        self.shown.advance(self.task, int(passed) - self._told, note=self.part.removeprefix("its "))
        self._told = int(passed)


@contextmanager
def alarm(seconds: float, bar: SecondsBar) -> Iterator[None]:
    """Raise `OutOfTime` when the seconds are over, between any two lines of Python; advance the bar.

    Signals reach the main thread only. In other threads only `budget.check` ends the attack, and the bar
    does not move.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    began = time.monotonic()

    def ring(_signal: int, _frame: object) -> None:
        passed = time.monotonic() - began
        if passed >= seconds:
            raise OutOfTime(seconds)
        signal.setitimer(signal.ITIMER_REAL, min(TICK_S, max(seconds - passed, 1e-3)))
        bar.tell(passed)

    before = signal.signal(signal.SIGALRM, ring)
    earlier_s, _ = signal.getitimer(signal.ITIMER_REAL)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, min(TICK_S, seconds))
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # it may ring just before, and raises then
    finally:
        remaining = max(earlier_s - (time.monotonic() - began), 1e-3) if earlier_s else 0
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, remaining)  # an alarm that was set before still rings in time
