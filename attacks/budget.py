"""The budget of an attack: how many seconds, shared with its controls, how many queries, which sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from fedproxy_secure.evidence.finding import Profile


class OutOfTime(BaseException):
    """The budget's seconds are used up; a resumed suite runs the attack again.

    No `Exception`: it is raised between any two lines, also within code that takes every exception for a
    failure of its own, such as training under differential privacy, and would be lost there.
    """

    BEGINS = "ran out of its"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{self.BEGINS} {seconds:g} s")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one attack: wall-clock seconds from `began`, model queries, and a profile for sizes.

    The attack and its controls share the seconds. Loops that can stop early do so at the share `last`, so
    that there is time left to score what they did.
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
        """The share of the seconds that is used up: 0 at the beginning, above 1 when they are over."""
        return 1 - self.left_s / self.seconds

    def until(self, share: float) -> float:
        """Return how much will be used once this share of the seconds has passed from now on.

        Never beyond `last`. A loop asks once, before it begins, and then compares with `used`: a control,
        which begins late, does as much as the attack itself.
        """
        return min(self.last, self.used + share)

    def halfway(self) -> Budget:
        """Return the budget of a control after which another one comes: half of what is left to loops."""
        used = self.used
        return replace(self, last=used + max(0.0, self.last - used) / 2)

    def check(self) -> None:
        """Raise `OutOfTime` if the seconds are used up; long loops call it in every step."""
        if self.left_s < 0:
            raise OutOfTime(self.seconds)
