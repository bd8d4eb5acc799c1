"""What record-level privacy would take and allow, before anything is trained and without any record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.config import LocalConfig, PrivacyConfig
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.profile import PrivacyProfile, dp_sgd, gaussian
from fedproxy_secure.dp.record_noise import RecordNoise, public_size, record_noise

SHARES = np.linspace(0, 1, 4001)[1:]
FALSE_POSITIVES = 0.01
MOST_MU = 64.0  # of a Gaussian mechanism that is searched for: an epsilon of some 2,000


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What a client of so many records would add, spend and let an attacker find.

    Args:
        noise: noise multiplier, clip and sampling rate of each step.
        public_size: the number of records that the noise discloses.
        steps: private steps in all rounds.
        batch_size: records by which a step's sum is divided.
        epsilon, delta: what one training spends.
        all_epsilon: what `trainings` trainings on the same records spend together.
        trainings: how many.
        auc: the largest AUC that any membership attack on one record can have.
        rate: the largest share of members that any attack finds at 1 % false positives.
        person_records: records of one person.
        person_epsilon: about what these records together have, as under a Gaussian mechanism of `epsilon`.
    """

    noise: RecordNoise
    public_size: int
    steps: int
    batch_size: int
    epsilon: float
    delta: float
    all_epsilon: float
    trainings: int
    auc: float
    rate: float
    person_records: int
    person_epsilon: float

    def noise_norm(self, trained_numbers: int) -> float:
        """Return the length of the noise in a step's mean gradient, in clips.

        The mean gradient itself has about 1 at most: as many records are drawn as `batch_size` on average.
        """
        return self.noise.noise_multiplier * math.sqrt(trained_numbers) / self.batch_size


def plan_privacy(
    privacy: PrivacyConfig,
    local: LocalConfig,
    *,
    rounds: int,
    records: int,
    trainings: int = 1,
    person_records: int = 1,
) -> PrivacyPlan:
    """Return what these settings of unit `record` take for a client of `records` records, >= 1.

    Guarantees: `auc` and `rate` bound every attack that asks whether one record was there in one training,
    whatever it reads: the mechanism's own profile, of a record there against not there, bounds the share of
    members found at every share of false positives. `person_epsilon` is no bound.

    Raises `ConfigError` as `record_noise` does.
    """
    noise = record_noise(privacy, local, rounds=rounds, records=records)
    event = SampledGaussian(
        noise_multiplier=noise.noise_multiplier,
        sampling_rate=noise.sampling_rate,
        steps=rounds * local.steps,
    )
    profile, delta = dp_sgd(event, both=False), privacy.target_delta
    epsilon = spent([event], delta=delta).epsilon
    return PrivacyPlan(
        noise=noise,
        public_size=public_size(records),
        steps=event.steps,
        batch_size=local.batch_size,
        epsilon=epsilon,
        delta=delta,
        all_epsilon=spent([event] * trainings, delta=delta).epsilon,
        trainings=trainings,
        auc=float(profile.most(SHARES).mean()),  # of right ends: it rises, so this is no less than its area
        rate=float(profile.most(np.array(FALSE_POSITIVES))),
        person_records=person_records,
        person_epsilon=_gaussian_of(epsilon, delta, times=person_records).epsilon(delta),
    )


def _gaussian_of(epsilon: float, delta: float, *, times: int) -> PrivacyProfile:
    """Return the profile of `times` records under the Gaussian mechanism that has this epsilon for one."""
    low, high = 1e-3, MOST_MU
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gaussian(middle).epsilon(delta) < epsilon else (low, middle)
    return gaussian(times * high)
