"""A4 where the answer is known; and what holds for A2 to A4 alike."""

import numpy as np
import pytest

from attacks.base import Budget, Inconclusive, OutOfTime, Truth
from attacks.reconstruction.matching import GradientMatching, Matched, match
from attacks.reconstruction.objective import Lengths, Objective
from attacks.reconstruction.sequences import (
    LoraSpanSequences,
)
from attacks.reconstruction.spans import LoraSpanTokens
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from tests.support.lab import records, truth_of
from tests.support.reconstructions import maker_of_labs, rounds_of, run


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    return maker_of_labs(tmp_path_factory)


@pytest.mark.slow
def test_on_one_record_and_one_step_gradient_matching_beats_a_shuffled_update(labs):
    lab = labs(local={"steps": 1, "batch_size": 1})
    gains = []
    for seed in range(3):
        (item,) = records(np.random.default_rng(seed), 1, tokens=5, length=6)
        update = -0.1 * gradient_of(lab, item)
        state = PrivateState(
            client="c0",
            train=(item,),
            holdout=(),
            canaries=(),
            rounds={0: PrivateRound(update=update, used=np.array([0]))},
        )
        found, ((real, null),) = run(
            GradientMatching(), lab.view({"c0": update}), Truth(clients={"c0": state}), seed
        )
        assert real.cosine > null.cosine
        gains.append(found["ROUGE-1 above shuffled updates"].value)
    assert np.mean(gains) > 0.3


def gradient_of(lab, item):
    with lab.opened() as box:
        return box.gradient([item])


@pytest.mark.slow
def test_the_cosine_of_what_is_found_is_one_exactly_where_it_is_the_true_record(labs):
    lab = labs(local={"steps": 1, "batch_size": 1})
    (item,) = records(np.random.default_rng(0), 1, tokens=3, length=5)
    with lab.opened() as box:
        named = np.array(sorted(set(item.ids)))
        lengths = Lengths(tokens=5, response_start=item.response_start)
        aim = Objective.of(box, lab.start, -gradient_of(lab, item), named, lengths)
        ids, cosine = match(aim, steps=30, edits=150, budget=Budget(), rng=np.random.default_rng(0))
    assert ids[0] == 1
    assert (ids == item.ids) == (cosine > 0.9999)
    assert cosine > 0.5


def test_the_cosine_of_the_true_record_is_one(labs):
    """Of one token in all places but the first, there is no other record to be found."""
    lab = labs(local={"steps": 1, "batch_size": 1})
    item = Encoded(ids=(1, 20, 20, 20, 20), response_start=2)
    with lab.opened() as box:
        lengths = Lengths(tokens=5, response_start=2)
        aim = Objective.of(box, lab.start, -gradient_of(lab, item), np.array([20]), lengths)
        ids, cosine = match(aim, steps=1, edits=0, budget=Budget(), rng=np.random.default_rng(0))
    assert ids == item.ids
    assert cosine == pytest.approx(1, abs=1e-5)


def test_gradient_matching_on_zero_updates_is_inconclusive(labs):
    lab = labs()
    zero = {"c0": np.zeros_like(lab.start)}
    items = {"c0": records(np.random.default_rng(0), 2, tokens=3, length=5)}
    with pytest.raises(Inconclusive, match="every update is zero"):
        run(GradientMatching(), lab.view(zero), truth_of(zero, items))


def test_sequences_of_clients_whose_records_are_unknown_are_inconclusive():
    matched = Matched(round=0, clients=("c0",), ids=(1, 2), cosine=1.0)
    with pytest.raises(Inconclusive, match="nothing to compare with"):
        GradientMatching().score(((matched, matched),), Truth(clients={}))


@pytest.mark.parametrize("attack", [LoraSpanTokens(), LoraSpanSequences(), GradientMatching()])
def test_no_attack_goes_on_when_its_seconds_are_over(labs, attack):
    lab = labs()
    items, updates = rounds_of(lab, clients=1, count=2)
    spent = Budget(seconds=1.0, began=0.0)
    with pytest.raises(OutOfTime):
        run(attack, lab.view(updates), truth_of(updates, items), budget=spent)


@pytest.mark.parametrize("attack", [LoraSpanTokens(), LoraSpanSequences()])
def test_the_same_seed_gives_the_same_guess(labs, attack):
    lab = labs()
    _, updates = rounds_of(lab, clients=2, tokens=30)
    view = lab.view(updates, summed=True)
    one, two = (attack.guess(view, None, Budget(), np.random.default_rng(3)) for _ in range(2))
    assert repr(one) == repr(two)
    with lab.opened() as box:  # whatever others do with the shared model
        box.set(get_vector(box.tuned) + 1)
    assert repr(attack.guess(view, None, Budget(), np.random.default_rng(3))) == repr(one)
