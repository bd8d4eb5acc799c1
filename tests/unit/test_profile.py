"""Privacy profiles lie on or above the mechanism's own, in both directions, and close to it."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian
from fedproxy_secure.dp.profile import discrete_sum, dp_sgd, gaussian
from fedproxy_secure.errors import DataError
from tests.support.profiles import approximate

DELTA = 1e-5


def event(noise=1.0, rate=1.0, steps=1):
    return SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def exact_step(noise, rate, epsilon, *, there):
    """Delta of one step, from the densities on a fine grid."""
    x = np.linspace(-12 * noise, 12 * noise + 1, 2_000_001)
    null = norm.pdf(x, 0, noise)
    mixed = rate * norm.pdf(x, 1, noise) + (1 - rate) * null
    p, q = (mixed, null) if there else (null, mixed)
    return np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x)


@pytest.mark.parametrize("epsilon", [-0.5, 0.0, 0.2, 1.0])
@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.3), (0.7, 0.05)])
def test_one_step_is_not_below_the_exact_profile_in_either_direction_and_close(noise, rate, epsilon):
    for both in (False, True):
        exact = exact_step(noise, rate, epsilon, there=True)
        if both:
            exact = max(exact, exact_step(noise, rate, epsilon, there=False))
        found = dp_sgd(event(noise, rate), both=both)
        at = np.interp(epsilon, found.epsilons, found.deltas)
        assert exact * (1 - 1e-6) <= at <= exact + 0.01


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_sampling_that_takes_almost_everything_composes_like_the_gaussian_in_closed_form(steps):
    noise = 2 * math.sqrt(steps)
    whole = dp_sgd(event(noise, 1.0, steps), both=True)
    almost = dp_sgd(event(noise, 1 - 1e-9, steps), both=True)
    assert whole.epsilon(DELTA) <= almost.epsilon(DELTA) <= whole.epsilon(DELTA) + 0.02
    mu = 0.5
    delta = norm.cdf(mu / 2 - 1 / mu) - math.e * norm.cdf(-mu / 2 - 1 / mu)
    assert whole.epsilon(delta) == pytest.approx(1, abs=1e-3)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [
        (1.0, 0.5, 10),
        (0.8, 0.008, 80),
        (0.6, 0.05, 400),
        pytest.param(2.0, 0.16, 400, marks=pytest.mark.slow),
    ],
)
def test_epsilon_is_the_accountant_s_and_the_other_direction_costs_no_more(noise, rate, steps):
    """Opacus's accountant computes one direction; this one computes both on its own."""
    pytest.importorskip("opacus")
    from fedproxy_secure.dp.accounting import spent

    prv = spent([event(noise, rate, steps)], delta=DELTA).epsilon
    for both in (False, True):
        assert dp_sgd(event(noise, rate, steps), both=both).epsilon(DELTA) == pytest.approx(prv, rel=0.01)


def test_a_profile_says_how_much_an_event_can_weigh_at_most():
    shares = np.array([0.0, 1e-4, 0.01, 0.3, 0.9, 1.0])
    exact = norm.cdf(norm.ppf(shares) + 1)
    assert np.all(exact <= gaussian(1.0).most(shares) + 1e-12)
    assert gaussian(1.0).most(shares) == pytest.approx(exact, rel=1e-3, abs=1e-12)
    known = approximate(1.0, 0.1).most(np.array([0.0, 0.2, 1.0]))
    assert known == pytest.approx([0.1, 0.1 + 0.2 * math.e, 1])


def test_a_noisy_sum_s_profile_is_near_the_gaussian_of_its_size_and_not_below():
    claim = DiscreteSum(
        mechanism="skellam", variance=1e9, l2=2e4, l1=1e6, dimension=2000, summands=3, rounds=4
    )
    found, normal = discrete_sum(claim), gaussian(2 * 2e4 / math.sqrt(1e9))
    assert normal.epsilon(DELTA) <= found.epsilon(DELTA) <= 1.15 * normal.epsilon(DELTA)
    shares = np.array([1e-4, 0.01, 0.3, 0.9])
    assert np.all(normal.most(shares) <= found.most(shares) * (1 + 1e-6))


def test_what_has_no_profile_is_refused():
    with pytest.raises(DataError, match="noise_multiplier=0: has no profile"):
        dp_sgd(event(0.0), both=False)
    with pytest.raises(DataError, match="variance=0: has no profile"):
        discrete_sum(
            DiscreteSum(mechanism="skellam", variance=0, l2=1, l1=1, dimension=1, summands=1, rounds=1)
        )
    assert gaussian(1.0).epsilon(1e-300) == math.inf


@pytest.mark.parametrize(
    ("epsilon", "mu", "auc", "rate", "two", "five"),
    [
        (1, 0.268, 0.575, 0.02, 2.2, 6.2),
        (4, 0.925, 0.743, 0.081, 9.1, 30),
        (8, 1.666, 0.881, 0.255, 19, 69),
    ],
)
def test_what_an_epsilon_allows_is_what_the_page_on_differential_privacy_says(
    epsilon, mu, auc, rate, two, five
):
    allowed, shares = gaussian(mu), np.linspace(0, 1, 4001)
    assert allowed.epsilon(1e-5) == pytest.approx(epsilon, rel=5e-3)
    assert np.trapezoid(allowed.most(shares), shares) == pytest.approx(auc, abs=2e-3)
    assert norm.cdf(mu / math.sqrt(2)) == pytest.approx(auc, abs=1e-3)
    assert allowed.most(np.array(0.01)) == pytest.approx(rate, abs=1e-3)
    assert norm.cdf(mu + norm.ppf(0.01)) == pytest.approx(rate, abs=1e-3)
    assert gaussian(2 * mu).epsilon(1e-5) == pytest.approx(two, rel=0.03)
    assert gaussian(5 * mu).epsilon(1e-5) == pytest.approx(five, rel=0.03)
