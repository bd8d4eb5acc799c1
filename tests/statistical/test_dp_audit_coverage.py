"""The audits are right about our own mechanisms: too little noise fails, the claimed noise does not."""

import numpy as np
from scipy.stats import binom

from attacks.audit.canary_clients import canaries, estimate
from attacks.audit.dp_audit import audit
from attacks.audit.training_audit import audit_private_steps
from fedproxy_secure.dp import discrete
from fedproxy_secure.dp.accounting import noise_multiplier_for, variance_for
from fedproxy_secure.dp.noise import Noise

CANARIES, DELTA, EPSILON = 1000, 1e-5, 1.0
GUESSES = (100, 400)  # fixed here, before any score
STEPS, RATE = 10, 0.5


def test_over_200_runs_in_which_nothing_leaks_a_positive_bound_is_as_rare_as_alpha():
    rng = np.random.default_rng(0)
    positive = 0
    for _ in range(200):
        included = rng.random(CANARIES) < 0.5
        made = audit(
            rng.standard_normal(CANARIES), included, guesses=GUESSES, delta=DELTA, claimed_epsilon=0.0
        )
        positive += made.lower_bound > 0
    assert positive <= binom.ppf(0.999, 200, 0.05)


def verdicts(part_of_the_noise):
    needed = noise_multiplier_for(target_epsilon=EPSILON, delta=DELTA, sampling_rate=RATE, steps=STEPS)
    return [
        audit_private_steps(
            noise_multiplier=needed * part_of_the_noise,
            sampling_rate=RATE,
            steps=STEPS,
            claimed_epsilon=EPSILON,
            delta=DELTA,
            seed=seed,
        ).verdict
        for seed in range(20)
    ]


def test_training_with_the_claimed_noise_is_not_falsified_in_20_runs():
    assert verdicts(1.0) == ["NOT_FALSIFIED"] * 20


def test_training_with_a_quarter_of_the_claimed_noise_fails_in_20_of_20_runs():
    assert verdicts(0.25) == ["FAIL"] * 20


def found_in_a_sum(part_of_the_noise):
    """A9 on the integer noise of a sum: 60 canary clients of 64; all bring noise."""
    d, clients, claimed, norm = 20_000, 64, 4.0, 2.0**12
    l2 = norm + d**0.5 / 2
    variance = variance_for(
        target_epsilon=claimed,
        delta=DELTA,
        mechanism="skellam",
        l2=l2,
        l1=l2 * d**0.5,
        dimension=d,
        summands=clients,
        rounds=1,
    )
    directions = canaries(60, d, np.random.default_rng(0))
    total = np.rint(directions.astype(np.float64) * norm).sum(axis=0)
    for client in range(clients):
        share = variance / clients * part_of_the_noise**2
        total += discrete.draw("skellam", share, Noise(client.to_bytes(32, "big")), d)
    return estimate(directions, total, delta=DELTA), claimed


def test_canary_clients_in_a_noisy_sum_show_no_more_than_is_claimed():
    found, claimed = found_in_a_sum(1.0)
    assert found.low <= claimed
    assert found.epsilon < 1.5 * claimed  # an estimate, not a bound


def test_canary_clients_show_that_noise_is_a_quarter_of_the_claim():
    found, claimed = found_in_a_sum(0.25)
    assert found.low > claimed
