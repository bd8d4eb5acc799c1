"""Trainings on the same records compose: the arithmetic, and what a result on disk says was spent."""

import json
import math
from dataclasses import replace

import pytest
from scipy.special import ndtr

from fedproxy_secure.dp.accounting import noise_multiplier_for, spent
from fedproxy_secure.dp.events import DiscreteSum, SampledGaussian, to_fields
from fedproxy_secure.errors import DataError
from fedproxy_secure.report.composition import (
    Cost,
    Training,
    added_up,
    composed,
    joined,
    merged,
    one_alone,
    to_json,
)

DELTA = 1e-5
WHOLE = SampledGaussian(noise_multiplier=3.0, sampling_rate=1.0, steps=2)  # no sampling: known exactly
SUM = DiscreteSum(
    mechanism="skellam", variance=1e6, l2=300.0, l1=3000.0, dimension=100, summands=5, rounds=4
)


def exact_epsilon(mu: float) -> float:
    """Of the Gaussian mechanism with sensitivity over noise `mu` (Balle & Wang 2018, Theorem 8)."""

    def delta(epsilon: float) -> float:
        tail = math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)
        return float(ndtr(mu / 2 - epsilon / mu) - tail)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    return high


def training(*, events=(WHOLE,), names=("clinic", "bank"), delta=DELTA):
    return Training(delta=delta, events={name: tuple(events) for name in names})


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_seeds_compose_to_the_known_epsilon_of_the_gaussian_mechanism(count):
    cost = composed([training()] * count)
    exact = exact_epsilon(math.sqrt(2 * count) / WHOLE.noise_multiplier)
    assert exact <= cost.epsilon <= exact * 1.01
    assert (cost.delta, cost.trainings) == (DELTA, count)


def test_three_seeds_of_epsilon_8_are_far_from_8_together_and_below_24():
    noise = noise_multiplier_for(target_epsilon=8, delta=DELTA, sampling_rate=1.0, steps=80)
    seed = training(events=[SampledGaussian(noise_multiplier=noise, sampling_rate=1.0, steps=10)] * 8)
    assert one_alone([seed] * 3) == pytest.approx(8, rel=0.01)
    exact = exact_epsilon(math.sqrt(3 * 80) / noise)
    assert composed([seed] * 3).epsilon == pytest.approx(exact, rel=0.01)
    assert 15 < exact < 16


def test_rounds_that_hide_clients_compose_too():
    seeds = [training(events=[SUM])] * 3
    assert composed(seeds).epsilon == spent([replace(SUM, rounds=12)], delta=DELTA).epsilon
    assert composed(seeds).epsilon > 1.5 * composed(seeds[:1]).epsilon


def test_each_client_composes_its_own_ledgers_and_the_one_that_spent_most_counts():
    """`clinic` spends more in one seed, `bank` over all: the worst seed of any client is not the answer."""
    loud, quiet = replace(WHOLE, steps=8), replace(WHOLE, steps=5)
    seeds = [
        Training(delta=DELTA, events={"clinic": (loud,), "bank": (quiet,)}),
        Training(delta=DELTA, events={"bank": (quiet,)}),  # clinic dropped out
    ]
    cost = composed(seeds)
    assert cost.client == "bank"
    assert cost.epsilon == spent([quiet] * 2, delta=DELTA).epsilon
    assert one_alone(seeds) == spent([loud], delta=DELTA).epsilon < cost.epsilon


def test_alike_events_are_merged_without_a_change_of_cost():
    events = [WHOLE, replace(WHOLE, noise_multiplier=2.0), WHOLE, WHOLE]
    assert merged(events) == (replace(WHOLE, steps=6), replace(WHOLE, noise_multiplier=2.0))
    assert merged([SUM, SUM]) == (replace(SUM, rounds=8),)
    assert spent(merged(events), delta=DELTA) == spent(events, delta=DELTA)
    assert merged(merged(events)) == merged(events)


def test_one_training_of_unknown_cost_makes_the_whole_unknown():
    assert composed([training(), Training(delta=DELTA)]) is None
    assert one_alone([training(), Training(delta=DELTA)]) is None
    assert composed([]) is None
    assert joined([training(), Training(delta=DELTA)]) == {}


def test_no_noise_is_no_finite_epsilon():
    assert not composed([training(events=[replace(WHOLE, noise_multiplier=0.0)])]).finite


def test_a_result_is_read_back_as_what_it_was_written_from():
    events = {"clinic": (WHOLE, WHOLE), "bank": (SUM,)}
    alone = {name: spent(merged(mine), delta=DELTA).epsilon for name, mine in events.items()}
    result = {
        "spent": {name: {"epsilon": epsilon} for name, epsilon in alone.items()},
        "events": json.loads(json.dumps(to_json(events))),
    }
    read = Training.of_result(result, delta=DELTA)
    assert read.events == {"clinic": (replace(WHOLE, steps=4),), "bank": (SUM,)}
    assert read.alone == alone


@pytest.mark.parametrize(
    "events",
    [
        {"clinic": [to_fields(WHOLE)]},
        {"clinic": [to_fields(WHOLE)], "bank": []},
        {"clinic": [to_fields(WHOLE)], "bank": [to_fields(WHOLE)], "insurer": [to_fields(WHOLE)]},
        {},
        None,
    ],
)
def test_events_of_some_clients_alone_are_not_taken_for_all(events):
    result = {"spent": {"clinic": {"epsilon": 3.0}, "bank": {"epsilon": 9.0}}, "events": events}
    with pytest.raises(DataError, match="what was spent"):
        Training.of_result(result, delta=DELTA)


def test_a_client_that_has_trained_on_nothing_yet_has_spent_nothing():
    result = {"spent": {"clinic": {"epsilon": 0.0}}, "events": {"clinic": []}}
    assert Training.of_result(result, delta=DELTA).alone == {"clinic": 0.0}


def test_a_result_must_say_what_was_spent_and_on_what():
    for result in ({"spent": {}}, {"events": {}}):
        with pytest.raises(DataError, match="what was spent"):
            Training.of_result(result, delta=DELTA)
    assert composed([Training.of_result({"spent": {}, "events": {}}, delta=DELTA)]) is None


def test_added_up_is_the_sum_of_all():
    costs = [
        Cost(epsilon=epsilon, delta=DELTA, client="clinic", trainings=1, how="") for epsilon in (3.0, 4.0)
    ]
    assert added_up(costs).epsilon == 7
    assert added_up(costs).delta == pytest.approx(2 * DELTA)
