"""Checks of options that several commands of `attack` share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    from fedproxy_secure.evidence.finding import Profile


def profile_of(suite: str) -> Profile:
    """Return the profile with this name. Raises `ConfigError` if there is none."""
    for profile in ("smoke", "standard", "full"):
        if suite == profile:
            return profile
    raise ConfigError(f"--suite {suite}: must be smoke, standard or full")


def check_seconds(seconds: float) -> None:
    """Raise `ConfigError` for a time limit that is no number of seconds, as `inf` and `nan` are none."""
    if not math.isfinite(seconds):
        raise ConfigError(f"--budget-seconds {seconds:g}: must be a finite number; for no limit say 1e9")
