"""A report's stamps for unsafe settings, and the number of clients among which a sum hides an update."""

from __future__ import annotations

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import CompressConfig, Config
from fedproxy_secure.dp.guarantees import SIMULATED_NOISE
from fedproxy_secure.protect.base import protection_of


def unsafe_stamps(config: Config) -> tuple[str, ...]:
    """Return the warnings at the top of every report on these settings; () if all settings are safe."""
    stamps = [*protection_of(config.protect).unsafe(config.protect), *whole_llm_stamps(config.compress)]
    if simulated_noise(config):
        stamps.append(SIMULATED_NOISE)
    return tuple(stamps)


def whole_llm_stamps(compress: CompressConfig) -> tuple[str, ...]:
    """Return the warning that clients hold the whole LLM, where nothing is removed; else ()."""
    form, ratio = compression_of(compress).whole(compress), compress.remove_ratio
    return (f"remove_ratio={ratio:g}: every client holds the whole LLM, {form}.",) if form else ()


def simulated_noise(config: Config) -> bool:
    """Return whether differential privacy draws its noise from the seed, so that nothing is private."""
    return config.privacy.unit != "none" and config.privacy.randomness == "unsafe_simulated"


def effective_cohort(config: Config, *, fewest: int) -> int:
    """Return the size of the smallest group that hides an update, minus the clients that may collude.

    Args:
        config: the settings.
        fewest: clients in the smallest round.
    """
    hidden = protection_of(config.protect).server_learns == "sums"
    return fewest - config.protect.colluders if hidden else 1
