"""What steps cost: bounds that agree with closed forms, and events that cannot be misread."""

import math

import numpy as np
import pytest
from scipy.special import ive
from scipy.stats import norm

from fedproxy_secure.dp import accounting
from fedproxy_secure.dp.accounting import (
    discrete_rdp,
    noise_multiplier_for,
    rdp_to_epsilon,
    sampler_delta,
    spent,
    variance_for,
)
from fedproxy_secure.dp.discrete import DISTANCE
from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian, from_fields, to_fields
from fedproxy_secure.dp.guarantees import guarantees, rounded_up
from fedproxy_secure.errors import ConfigError, DataError

DELTA = 1e-5


def gaussian(noise=1.0, rate=1.0, steps=1):
    return SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def summed(mechanism="skellam", variance=1e6, l2=100.0, l1=500.0, dimension=1000, summands=3, rounds=4):
    return DiscreteSum(
        mechanism=mechanism,
        variance=variance,
        l2=l2,
        l1=l1,
        dimension=dimension,
        summands=summands,
        rounds=rounds,
    )


def exact_delta(noise, steps, epsilon):
    """Of `steps` Gaussian mechanisms without sampling (Balle & Wang 2018, Theorem 8)."""
    mu = math.sqrt(steps) / noise
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.torch
@pytest.mark.parametrize("noise", [0.8, 1.5, 4.0, 20.0])
@pytest.mark.parametrize("steps", [1, 10, 60])
def test_without_sampling_the_cost_is_never_below_the_exact_one_and_close_to_it(noise, steps):
    found = spent([gaussian(noise, 1.0, steps)], delta=DELTA).epsilon
    assert exact_delta(noise, steps, found) <= DELTA
    assert exact_delta(noise, steps, found * 0.98 - 0.02) > DELTA


@pytest.mark.torch
def test_the_tighter_accountant_counts_and_both_are_kept():
    cost = spent([gaussian(1.0, 0.02, 300)], delta=DELTA)
    assert cost.accountant == "prv"
    assert cost.epsilon == cost.prv < cost.rdp


@pytest.mark.torch
@pytest.mark.parametrize("bounds", [(-0.0009, 0.2), (-0.2, -0.1), (0.3, -1e-17)])
def test_an_epsilon_below_nothing_is_nothing_and_can_be_reported(monkeypatch, bounds):
    """Where delta alone covers the cost, accountants return negative numbers."""
    rdp, prv = bounds
    monkeypatch.setattr(accounting, "_rdp_epsilon", lambda history, delta: rdp)
    monkeypatch.setattr(accounting, "_prv_epsilon", lambda history, delta, *, about: prv)
    cost = spent([gaussian()], delta=DELTA)
    assert (cost.epsilon, cost.rdp, cost.prv) == (0.0, max(0.0, rdp), max(0.0, prv))
    assert rounded_up(cost.epsilon) == "0"
    shown = guarantees(
        "record", epsilon=cost.epsilon, delta=DELTA, clip_norm=1.0, mechanism="skellam", simulated=False
    )
    assert shown


@pytest.mark.torch
def test_so_much_noise_that_delta_covers_it_costs_nothing():
    assert spent([gaussian(59.0, 0.25, 2)], delta=0.03).epsilon == 0.0


@pytest.mark.torch
def test_rounds_in_any_order_cost_what_their_sum_costs():
    a, b = gaussian(1.0, 0.02, 10), gaussian(2.0, 0.02, 10)
    together = spent([a, b, a], delta=DELTA).epsilon
    assert together == spent([b, gaussian(1.0, 0.02, 20)], delta=DELTA).epsilon
    assert together > spent([a, b], delta=DELTA).epsilon


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert spent([], delta=DELTA).epsilon == 0
    assert spent([gaussian(0.0)], delta=DELTA).epsilon == math.inf
    assert spent([summed(variance=0.0)], delta=DELTA).epsilon == math.inf
    assert spent([gaussian(5.0), gaussian(0.0)], delta=DELTA).epsilon == math.inf


@pytest.mark.torch
def test_very_little_noise_is_left_to_the_accountant_that_can():
    cost = spent([gaussian(0.2, 0.01, 10)], delta=DELTA)
    assert cost.prv is None
    assert cost.epsilon == cost.rdp < math.inf


@pytest.mark.torch
@pytest.mark.parametrize("target", [0.5, *(pytest.param(e, marks=pytest.mark.slow) for e in (1, 8)), 200])
def test_calibrated_noise_reaches_the_target_and_wastes_nothing(target):
    noise = noise_multiplier_for(target_epsilon=target, delta=DELTA, sampling_rate=0.04, steps=80)
    assert spent([gaussian(noise, 0.04, 80)], delta=DELTA).epsilon <= target
    assert spent([gaussian(noise * 0.99, 0.04, 80)], delta=DELTA).epsilon > target * 0.98


@pytest.mark.slow
@pytest.mark.torch
def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(
        ConfigError, match=r"target_epsilon=1e-06: .* exceed it even with a noise multiplier of"
    ):
        noise_multiplier_for(target_epsilon=1e-6, delta=1e-5, sampling_rate=1.0, steps=100)
    with pytest.raises(ConfigError, match=r"target_epsilon=1e-09: 8 rounds"):
        variance_for(
            target_epsilon=1e-9,
            delta=1e-5,
            mechanism="skellam",
            l2=100,
            l1=500,
            dimension=10,
            summands=3,
            rounds=8,
        )


@pytest.mark.torch
@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_calibrated_integer_noise_costs_what_a_gaussian_of_its_size_would(mechanism):
    variance = variance_for(
        target_epsilon=4,
        delta=DELTA,
        mechanism=mechanism,
        l2=4096,
        l1=4096 * 30,
        dimension=900,
        summands=3,
        rounds=8,
    )
    event = summed(mechanism, variance, 4096, 4096 * 30, 900, 3, 8)
    assert 3.98 <= spent([event], delta=DELTA).epsilon <= 4
    noise = math.sqrt(variance) / 4096
    assert spent([event], delta=DELTA).epsilon == pytest.approx(
        spent([gaussian(noise, 1.0, 8)], delta=DELTA).rdp, rel=0.02
    )


@pytest.mark.parametrize("variance", [4.0, 25.0, 400.0])
@pytest.mark.parametrize("shift", [1, 3, 6])
def test_the_skellam_bound_lies_above_the_exact_renyi_divergence(variance, shift):
    k = np.arange(-300, 301)
    with np.errstate(all="ignore"):
        p, q = np.log(ive(np.abs(k), variance)), np.log(ive(np.abs(k - shift), variance))
    there = np.isfinite(p) & np.isfinite(q)
    for order in (2, 3, 8, 16):
        terms = order * p[there] - (order - 1) * q[there]
        exact = float(np.logaddexp.reduce(terms)) / (order - 1)
        event = summed("skellam", variance, shift, shift, 1, 1, 1)
        bound = float(discrete_rdp(event, np.array([order]))[0])
        assert exact <= bound <= 1.6 * exact + 10 * order * shift**2 / variance**1.5


@pytest.mark.parametrize("variance", [2.0, 9.0])
@pytest.mark.parametrize("summands", [2, 3])
def test_the_bound_for_summed_discrete_gaussians_lies_above_the_exact_divergence(variance, summands):
    k = np.arange(-200, 201)
    one = np.exp(-(k**2) * summands / (2 * variance))
    one /= one.sum()
    law = one
    for _ in range(summands - 1):
        law = np.convolve(law, one, mode="same")
    p, q = law[1:], law[:-1]
    there = (p > 1e-280) & (q > 1e-280)
    for order in (2, 4, 8):
        exact = math.log(np.sum(p[there] * (p[there] / q[there]) ** (order - 1))) / (order - 1)
        event = summed("discrete_gaussian", variance, 1, 1, 1, summands, 1)
        assert exact <= float(discrete_rdp(event, np.array([order]))[0]) * (1 + 1e-9)


def test_the_bound_for_summed_discrete_gaussians_is_proposition_14_with_its_three_terms():
    """By hand, at sigma = 1/2: n = 2, tau = 10 exp(-pi^2 / 4) = .8480; n = 3 adds 10 exp(-pi^2 / 3)."""
    two = 10 * math.exp(-(math.pi**2) / 4)
    three = two + 10 * math.exp(-(math.pi**2) / 3)
    assert two == pytest.approx(0.8480, abs=6e-5)
    for n, tau in ((2, two), (3, three)):
        for l2, l1, d in ((1.0, 1.0, 1), (3.0, 5.0, 40), (0.01, 0.01, 1000), (40.0, 41.0, 3)):
            mu = n / 4
            for alpha in (2, 7):
                terms = (
                    alpha * l2**2 / (2 * mu) + tau * d,
                    alpha / 2 * (l2**2 / mu + 2 * tau * l1 / math.sqrt(mu) + tau**2 * d),
                    alpha / 2 * (l2 / math.sqrt(mu) + tau * math.sqrt(d)) ** 2,
                )
                event = summed("discrete_gaussian", mu, l2, l1, d, n, 1)
                found = float(discrete_rdp(event, np.array([alpha]))[0])
                assert found == pytest.approx(min(terms), rel=1e-12)


def test_discrete_gaussians_narrower_than_the_proposition_allows_have_no_bound():
    narrow = summed("discrete_gaussian", 2 * 0.2499, 0.1, 0.1, 1, 2, 1)
    assert spent([narrow], delta=DELTA).epsilon == math.inf
    assert spent([summed("discrete_gaussian", 2 * 0.25, 0.1, 0.1, 1, 2, 1)], delta=DELTA).epsilon < math.inf
    one = summed("discrete_gaussian", 0.2, 0.1, 0.1, 1, 1, 1)  # a single one needs no such condition
    assert spent([one], delta=DELTA).epsilon < math.inf


def test_the_sampler_s_error_counts_for_every_client_number_and_round_and_both_neighbours():
    """43 clients, 10^5 numbers, 10 rounds: 4.3 x 10^7 draws, times 1 + e^8 = 2981.96 at epsilon 8."""
    events = [summed(dimension=10**5, summands=43, rounds=rounds) for rounds in (4, 6)]
    assert sampler_delta(events, 8.0) / DISTANCE == pytest.approx(4.3e7 * 2981.957987, rel=1e-9)
    # with numbers that are within 2^-50 of their law this would be 1.1e-4, ten times a delta of 1e-5
    assert sampler_delta(events, 8.0) / DISTANCE * 2.0**-50 == pytest.approx(1.14e-4, rel=0.01)
    assert sampler_delta(events, 8.0) < 1e-18
    assert sampler_delta(events, 1e4) == math.inf


def test_the_sampler_s_error_cannot_be_charged_less():
    """A sampler within eta of its law for which (1 + e^epsilon) eta of delta is just enough."""
    epsilon, delta, eta = 1.5, 1e-3, 1e-4
    q = 0.2
    p = math.exp(epsilon) * q + delta  # exact noise: P(S) - e^epsilon Q(S) = delta on the event S
    drawn_p, drawn_q = p + eta, q - eta
    needed = drawn_p - math.exp(epsilon) * drawn_q
    charged = sampler_delta([summed(dimension=1, summands=1, rounds=1)], epsilon) / DISTANCE * eta
    assert needed == pytest.approx(delta + charged, rel=1e-12)


def test_epsilon_leaves_room_in_delta_for_the_sampler_s_error_at_that_epsilon():
    """Where that error matters: a delta of 10^-17 and 10^10 draws."""
    event = summed(variance=4e4, dimension=10**10, summands=1, rounds=1)
    delta = 500 * sampler_delta([event], 0.0)
    found = spent([event], delta=delta).epsilon
    orders = np.unique(np.round(np.logspace(np.log10(2), 4, 200))).astype(int)
    rdp = discrete_rdp(event, orders)

    def holds(epsilon):
        left = delta - sampler_delta([event], epsilon)
        return left > 0 and rdp_to_epsilon(orders, rdp, delta=left) <= epsilon

    assert holds(found)
    assert not holds(found * 0.999)
    assert found > rdp_to_epsilon(orders, rdp, delta=delta - sampler_delta([event], 0.0))
    assert spent([event], delta=1.01 * sampler_delta([event], 0.0)).epsilon == math.inf


def test_renyi_bounds_turn_into_epsilon_as_for_one_gaussian():
    orders = np.arange(2, 200)
    found = rdp_to_epsilon(orders, orders / (2 * 3.0**2), delta=DELTA)
    assert exact_delta(3.0, 1, found) <= DELTA
    assert exact_delta(3.0, 1, 0.9 * found) > DELTA


def test_a_client_that_sends_nothing_costs_nothing():
    assert not discrete_rdp(summed(l2=0.0, l1=0.0), np.array([2, 3])).any()


@pytest.mark.parametrize("event", [gaussian(1.5, 0.1, 7), summed()])
def test_events_survive_the_way_through_json(event):
    assert from_fields(to_fields(event)) == event


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"kind": "laplace", "scale": 1}, r"privacy event 'laplace': must be one of"),
        ({"noise_multiplier": 1.0}, r"privacy event None: must be one of"),
        ({"kind": "sampled_gaussian", "noise": 1.0}, r"privacy event sampled_gaussian: .*noise"),
        (
            {"kind": "sampled_gaussian", "noise_multiplier": -1, "sampling_rate": 0.1, "steps": 1},
            r"noise_multiplier=-1: must be >= 0",
        ),
        (
            {"kind": "sampled_gaussian", "noise_multiplier": 1, "sampling_rate": 1.5, "steps": 1},
            r"sampling_rate=1.5: must be in \(0, 1\]",
        ),
        (
            {"kind": "sampled_gaussian", "noise_multiplier": 1, "sampling_rate": 0.5, "steps": 0},
            r"steps=0: must be >= 1",
        ),
        ({**to_fields(summed()), "mechanism": "laplace"}, r"mechanism='laplace': must be skellam or"),
    ],
)
def test_an_event_that_is_not_understood_is_an_error_not_free(raw, line):
    with pytest.raises(DataError, match=line):
        from_fields(raw)


def test_what_cannot_be_accounted_is_refused():
    with pytest.raises(DataError, match=r"delta=1.0: must be in"):
        spent([gaussian()], delta=1.0)
    with pytest.raises(DataError, match="mix the units record and client; a ledger must hold only one"):
        spent([gaussian(), summed()], delta=DELTA)
    with pytest.raises(DataError, match="which the sampler's error takes"):
        spent([summed(dimension=10**9, rounds=10**3)], delta=1e-18)
