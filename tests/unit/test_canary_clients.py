"""Canary clients: found where they were, absent where they were not, and epsilon as in closed form."""

import math

import numpy as np
import pytest
from scipy import stats

from attacks.audit.canary_clients import canaries, estimate, gaussian_epsilon
from fedproxy_secure.errors import DataError


def rng(seed=0):
    return np.random.default_rng(seed)


def test_canaries_that_were_not_there_have_cosines_as_the_null_has_them():
    directions = canaries(400, 2000, rng())
    movement = rng(1).standard_normal(2000)
    cosines = directions @ movement / np.linalg.norm(movement)
    assert stats.kstest(cosines * math.sqrt(2000), "norm").pvalue > 1e-3
    assert stats.kstest(cosines * math.sqrt(2000) * 1.5, "norm").pvalue < 1e-3
    found = estimate(directions, movement, delta=1e-5)
    assert abs(found.mean) < 4 * found.null_deviation / 20
    assert found.low < 1


def test_canaries_that_were_there_are_found_and_noise_hides_them():
    directions = canaries(20, 5000, rng())
    there = directions.sum(axis=0)
    loud = estimate(directions, there, delta=1e-5)
    quiet = estimate(directions, there + rng(1).standard_normal(5000), delta=1e-5)
    assert loud.epsilon > 10 * quiet.epsilon
    assert loud.advantage > 0.99 > quiet.advantage
    assert quiet.low <= quiet.epsilon <= quiet.high


def test_few_canaries_of_a_right_mechanism_accuse_it_no_more_often_than_the_interval_says():
    d, mu, accused = 1000, 0.93, 0
    claimed = gaussian_epsilon(mu, 1.0, 1.0, delta=1e-5)
    for seed in range(60):
        directions = canaries(32, d, rng(seed))
        noise = rng(1000 + seed).standard_normal(d) / mu
        found = estimate(directions, directions.sum(axis=0) + noise, delta=1e-5)
        accused += found.low > claimed
        assert found.low <= found.epsilon <= found.high
    assert stats.binomtest(accused, 60, 0.05, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_between_gaussians_of_one_width_epsilon_is_the_analytic_one(mu, delta):
    found = gaussian_epsilon(mu, 1.0, 1.0, delta=delta)
    exact = stats.norm.cdf(mu / 2 - found / mu) - math.exp(found) * stats.norm.cdf(-mu / 2 - found / mu)
    assert exact <= delta * (1 + 1e-4)
    less = found - 1e-3
    assert stats.norm.cdf(mu / 2 - less / mu) - math.exp(less) * stats.norm.cdf(-mu / 2 - less / mu) > delta


def test_unequal_widths_are_integrated_exactly():
    found = gaussian_epsilon(0.5, 1.3, 1.0, delta=1e-3)
    x = np.linspace(-15, 15, 400_001)
    p, q = stats.norm.pdf(x, 0.5, 1.3), stats.norm.pdf(x, 0, 1)
    over = max(
        np.trapezoid(np.maximum(p - math.exp(found) * q, 0), x),
        np.trapezoid(np.maximum(q - math.exp(found) * p, 0), x),
    )
    assert over == pytest.approx(1e-3, rel=1e-2)


def test_equal_laws_cost_nothing_and_far_ones_everything():
    assert gaussian_epsilon(0.0, 1.0, 1.0, delta=1e-5) == 0
    assert gaussian_epsilon(1e3, 1.0, 1.0, delta=1e-5) == math.inf


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: canaries(1, 5, rng()), "count=1, dimension=5: must be >= 2"),
        (lambda: estimate(np.ones((3, 4)), np.ones(5), delta=0.1), r"must be \[m, d\] and \[d\]"),
        (lambda: estimate(np.ones((3, 4)), np.zeros(4), delta=0.1), "movement of length 0.0"),
        (lambda: estimate(np.ones((3, 4)), np.ones(4), delta=0.0), r"delta=0.0: must be in \(0, 1\)"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, line):
    with pytest.raises(DataError, match=line):
        call()
