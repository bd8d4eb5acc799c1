"""The noise that a client's training steps need for the record-level privacy that the settings ask for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fedproxy_secure.config import LocalConfig, PrivacyConfig
from fedproxy_secure.dp.accounting import noise_multiplier_for
from fedproxy_secure.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordNoise:
    """The noise, clip and sampling of a client's private steps.

    `sampling_rate` is in (0, 1], the others are >= 0.
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float


def record_noise(privacy: PrivacyConfig, local: LocalConfig, *, rounds: int, records: int) -> RecordNoise:
    """Return the noise with which a client of so many records stays within the target over all rounds.

    Raises `ConfigError` for a delta of 1 / records or more, a batch larger than the records, or a target
    that no noise reaches. A client's error goes to the server, so its text does not say how many there are.
    """
    if privacy.target_delta >= 1 / records:
        log.info("privacy.target_delta=%g: must be < 1/%d", privacy.target_delta, records)
        raise ConfigError(
            f"privacy.target_delta={privacy.target_delta:g}: must be < 1 / the client's number of records; "
            "publishing one record at random would pass otherwise"
        )
    if local.batch_size > records:
        log.info("local.batch_size=%d: must be <= %d", local.batch_size, records)
        raise ConfigError(
            f"local.batch_size={local.batch_size}: must be <= the client's number of records, with "
            "privacy.unit=record"
        )
    rate = local.batch_size / records
    return RecordNoise(
        noise_multiplier=noise_multiplier_for(
            target_epsilon=privacy.target_epsilon,
            delta=privacy.target_delta,
            sampling_rate=rate,
            steps=rounds * local.steps,
        ),
        clip_norm=privacy.clip_norm,
        sampling_rate=rate,
    )
