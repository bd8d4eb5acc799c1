"""The noise that a client's training steps need for the record-level privacy of the settings.

Two sets of records that differ by one record must get the same sampling rate and the same noise. If the
noise followed from the exact number of records, whoever sees an update could infer the number from the
noise, and so whether a certain record is present. So both follow from the settings and from a *public
size*, the number of records rounded up to a power of two. The sampling rate is batch size / public size, so
that a step takes between half a batch and a batch of records on average; its sum is divided by the batch
size.

Guarantees: rate, noise, and whether and with which text this module raises, are the same for neighbours
(one record there or not) of the same public size. Disclosed: the public size, to whoever can tell how much
noise an update has. Not covered: neighbours on both sides of a power of two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fedproxy_secure.config import LocalConfig, PrivacyConfig
from fedproxy_secure.dp.accounting import noise_multiplier_for
from fedproxy_secure.errors import ConfigError

log = logging.getLogger(__name__)
LEAST_NOISE = 1e-3  # a smaller noise multiplier would need integers too large to square


@dataclass(frozen=True, kw_only=True)
class RecordNoise:
    """The noise, clip and sampling of a client's private steps.

    `sampling_rate` is in (0, 1], the others are >= 0.
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float


def public_size(records: int) -> int:
    """Return the number of records, >= 1, rounded up to a power of two."""
    return 1 << (records - 1).bit_length()


def record_noise(privacy: PrivacyConfig, local: LocalConfig, *, rounds: int, records: int) -> RecordNoise:
    """Return the noise with which a client of `records` records stays within the target over all rounds.

    Raises `ConfigError` for a delta of 1 / `public_size` or more, a batch larger than that size, a target
    that no noise reaches, or a target that needs less than `LEAST_NOISE`. A client's error goes to the
    server, so its text does not state the size.
    """
    size = public_size(records)
    if privacy.target_delta >= 1 / size:
        log.info("privacy.target_delta=%g: must be < 1/%d", privacy.target_delta, size)
        raise ConfigError(
            f"privacy.target_delta={privacy.target_delta:g}: must be < 1 / the client's number of records, "
            "rounded up to a power of two; otherwise publishing one random record would satisfy it"
        )
    if local.batch_size > size:
        log.info("local.batch_size=%d: must be <= %d", local.batch_size, size)
        raise ConfigError(
            f"local.batch_size={local.batch_size}: must be <= the client's number of records, rounded up "
            "to a power of two, with privacy.unit=record"
        )
    rate = local.batch_size / size
    multiplier = noise_multiplier_for(
        target_epsilon=privacy.target_epsilon,
        delta=privacy.target_delta,
        sampling_rate=rate,
        steps=rounds * local.steps,
    )
    if multiplier < LEAST_NOISE:  # training would refuse it, but only after the ledger is charged
        raise ConfigError(
            f"privacy.target_epsilon={privacy.target_epsilon:g}: needs a noise multiplier below "
            f"{LEAST_NOISE:g}, which is too small to compute with; lower it, or set privacy.unit=none"
        )
    return RecordNoise(
        noise_multiplier=multiplier,
        clip_norm=privacy.clip_norm,
        sampling_rate=rate,
    )
