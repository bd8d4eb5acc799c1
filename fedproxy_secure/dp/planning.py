"""Plan record-level privacy: its noise and what an attacker can find, before training, without records."""

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
MOST_MU = 64.0  # of a searched Gaussian mechanism: an epsilon of about 2,000


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """The noise and spending of a client with a given number of records, and what attackers can find.

    Args:
        noise: noise multiplier, clip and sampling rate of each step.
        public_size: the number of records that the noise discloses.
        steps: private steps in all rounds.
        batch_size: records by which a step's sum is divided.
        epsilon, delta: the spending of one training.
        all_epsilon: the epsilon of `trainings` trainings on the same records together.
        trainings: number of trainings.
        auc: the largest AUC that any membership attack on one record can have.
        rate: the largest share of members that any attack finds at 1 % false positives.
        person_records: records of one person.
        person_epsilon: approximate epsilon of these records together, as under a Gaussian mechanism of
            `epsilon`.
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

        The mean gradient's length is about 1 at most: on average at most `batch_size` records are drawn.
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
    """Return the plan of settings of unit `record` for a client of `records` records, >= 1.

    Guarantees: `auc` and `rate` bound every attack that decides whether one record was present in one
    training, whatever it reads: the mechanism's own profile, of a record present against absent, bounds the
    share of members found at every share of false positives. `person_epsilon` is no bound.

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
