"""Canary clients: as long as a client's clip, disjoint, in by coins, and a bound on what sums give away."""

import numpy as np
import pytest

from attacks.audit.canary_clients import CanaryClients, audit_sums, sums_family
from fedproxy_secure.dp.accounting import variance_for
from fedproxy_secure.dp.events import DiscreteSum
from fedproxy_secure.errors import DataError

DELTA, NORM, D, ROUNDS = 1e-5, 2**12, 8000, 2


def claim(epsilon=4.0):
    l2 = NORM + D**0.5 / 2
    shape = {"mechanism": "skellam", "l2": l2, "l1": l2 * D**0.5, "dimension": D, "summands": 3}
    variance = variance_for(target_epsilon=epsilon, delta=DELTA, rounds=ROUNDS, **shape)
    return DiscreteSum(variance=variance, rounds=ROUNDS, **shape)


def found(seed=0, *, share=1.0, epsilon=4.0, canaries=2000):
    return audit_sums(
        claim(epsilon),
        norm=NORM,
        claimed_epsilon=epsilon,
        delta=DELTA,
        canaries=canaries,
        rng=np.random.default_rng(seed),
        noise_share=share,
    )


def test_a_canary_is_no_longer_than_the_noise_covers_and_stays_in_its_block():
    made = CanaryClients.drawn(30, norm=NORM, dimension=1000, rng=np.random.default_rng(0))
    l2 = NORM + 1000**0.5 / 2  # of a clipped vector that is rounded to whole steps
    for i in range(30):
        alone = made.sum(np.arange(30) == i)
        assert NORM * 0.99 < np.linalg.norm(alone) <= l2
        scores = made.scores(alone)
        assert scores[i] > 0
        assert not np.delete(scores, i).any()


def test_sums_with_the_claimed_noise_are_not_accused_and_show_part_of_the_claim():
    for seed in range(3):
        result = found(seed)
        assert 0.3 * 4 < result.lower_bound <= 4
        assert result.verdict == "NOT_FALSIFIED"


def test_sums_with_a_third_of_the_claimed_noise_fail():
    assert [found(seed, share=1 / 3).verdict for seed in range(3)] == ["FAIL"] * 3


def test_less_noise_in_the_family_has_a_larger_epsilon_and_the_claim_s_own_is_the_claim():
    family = sums_family(claim(), norm=NORM, delta=DELTA, canaries=100)
    epsilons = [family.epsilon(part) for part in (2.0, 1.0, 0.5)]
    assert epsilons == sorted(epsilons)
    assert epsilons[1] == pytest.approx(4, rel=0.01)


def test_canaries_that_do_not_fit_are_refused():
    for count, norm in ((1, 5), (11, 5), (3, 0)):
        with pytest.raises(DataError, match=r"must be in \[2, 10\], the dimension, with norm >= 1"):
            CanaryClients.drawn(count, norm=norm, dimension=10, rng=np.random.default_rng(0))
