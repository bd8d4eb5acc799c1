"""What a report must say of unsafe settings, and how many clients a sum hides an update among."""

from __future__ import annotations

from fedproxy_secure.config import Config
from fedproxy_secure.dp.guarantees import SIMULATED_NOISE
from fedproxy_secure.protect.base import protection_of


def unsafe_stamps(config: Config) -> tuple[str, ...]:
    """Return what every report on these settings must say first; () if nothing in them is unsafe."""
    stamps = [*protection_of(config.protect).unsafe(config.protect)]
    if simulated_noise(config):
        stamps.append(SIMULATED_NOISE)
    return tuple(stamps)


def simulated_noise(config: Config) -> bool:
    """Return whether the noise of differential privacy follows from the seed: nothing is private."""
    return config.privacy.unit != "none" and config.privacy.randomness == "unsafe_simulated"


def effective_cohort(config: Config, *, fewest: int) -> int:
    """Return the size of the smallest group that an update hides in, minus those that may collude.

    Args:
        config: the settings.
        fewest: clients in the smallest round.
    """
    return fewest - config.protect.colluders if protection_of(config.protect).secure_sum else 1
