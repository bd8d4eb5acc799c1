"""A14: a property of a round's records shows in tensors' norms; its p-value is uniform under the null."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from attacks import white_box
from attacks.base import Budget, Exam, NotApplicable, replace_view
from attacks.membership import properties
from attacks.membership.properties import RECORDS, SHADOWS, TARGETS, PropertyInference, Rounds, features
from attacks.statistics import auc_estimate
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.record.view import view
from tests.support.recorded import record_run
from tests.support.tiny import write_records
from threat_models import get as threat_model


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The server's view of a masked run whose clients set 40 records aside, and the truth."""
    place = tmp_path_factory.mktemp("recorded")
    root = write_records(place / "records", clients=3, records=80)
    seed = record_run(
        place,
        clients=3,
        data={"root": root},
        audit={"record": True, "holdout": 0.5},
        local={"steps": 2, "batch_size": 16, "learning_rate": 1e-2, "optimizer": "sgd"},
        federate={"rounds": 2},
    )
    return view(seed, threat_model("server")), read_truth(seed)


@pytest.fixture(scope="module")
def exam(world):
    """The question about single clients' rounds."""
    seen, truth = world
    alone = replace_view(seen, updates={(0, n): s.rounds[0].update for n, s in truth.clients.items()})
    return PropertyInference().exam(truth, alone, rng())


def test_p_values_of_guesses_that_know_nothing_are_uniform():
    answer = np.arange(TARGETS) % 2 == 1
    values = []
    for seed in range(300):
        _, p = PropertyInference().score(rng(seed).normal(size=TARGETS), answer)
        values.append(p.value)
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert np.mean(np.array(values) <= 0.05) < 0.09


def test_a_guess_that_is_right_has_the_least_p_value_and_one_that_is_wrong_the_largest():
    answer = np.arange(TARGETS) % 2 == 1
    for guess, value in ((answer * 1.0, 1 / 200), (-1.0 * answer, 1.0)):
        auc, p = PropertyInference().score(guess, answer)
        assert auc.value == float(guess[1] > 0)
        assert p.value == value


def test_an_auc_that_permuted_labels_often_reach_does_not_count_as_success():
    """DeLong's interval alone would be above chance."""
    answer = np.array([kind == "1" for kind in "00100110001001100001110001111111"])  # from the lowest score
    raw = auc_estimate(np.arange(32.0), answer, metric="auc")
    auc, p = PropertyInference().score(np.arange(32.0), answer)
    assert 0.01 < p.value <= 0.025
    assert auc.value == raw.value
    assert auc.low <= 0.5 < raw.low
    sure = np.arange(32) >= 14  # all of a kind last: few permutations reach that
    auc, p = PropertyInference().score(np.arange(32.0), sure)
    assert p.value <= 0.01
    assert auc.low > 0.55


def test_a_property_of_single_clients_rounds_is_found_and_rounds_without_it_show_none(world, exam):
    seen, _ = world
    attack = PropertyInference()
    found = attack.score(attack.guess(seen, exam.question, Budget(), rng()), exam.answer)
    assert found[0].low > 0.55
    assert found[1].value < 0.05
    _, empty = attack.negative(seen, exam, rng())
    assert not np.array_equal(empty.question.targets, exam.question.targets)
    auc, _ = attack.score(attack.guess(seen, empty.question, Budget(), rng()), empty.answer)
    assert auc.low <= 0.5 <= auc.high


def test_the_question_is_of_as_many_rounds_with_the_property_as_without(exam):
    assert exam.question.shadows.shape[0] == SHADOWS
    assert exam.question.targets.shape[0] == TARGETS
    assert exam.question.labels.mean() == exam.answer.mean() == 0.5


@pytest.mark.slow
def test_in_a_sum_the_others_parts_are_added_to_every_round(world, exam):
    seen, truth = world
    summed = PropertyInference().exam(truth, seen, rng())
    parts = summed.question.targets - exam.question.targets
    assert (np.linalg.norm(parts, axis=1) > 0).all()
    assert len(np.unique(parts.round(6), axis=0)) > 3


@pytest.mark.parametrize("aside", [0, 3])
def test_a_sum_holds_the_parts_of_clients_that_set_few_records_aside_too(world, monkeypatch, aside):
    seen, truth = world
    first, second, third = truth.clients.items()
    few = dict([first, (second[0], replace(second[1], holdout=second[1].holdout[:aside])), third])
    parts = []

    def counted(box, settings, start, name, items, count, rng):
        parts.append((name, items))
        return np.zeros((count, 1))

    def rounds(box, settings, start, items, *, count, **more):
        return np.zeros((count, 1)), np.arange(count) % 2 == 1

    monkeypatch.setattr(properties, "_parts", counted)
    monkeypatch.setattr(properties, "_train", rounds)
    PropertyInference().exam(replace(truth, clients=few), seen, rng())
    assert [name for name, _ in parts] == [second[0]] * 3 + [third[0]] * 3
    pool = first[1].holdout if aside == 0 else second[1].holdout[:aside]
    assert [items for _, items in parts[:3]] == [pool, second[1].train, second[1].train]


def test_features_are_the_log_norms_of_tensors_one_by_one(world):
    with white_box.opened(world[0]) as box:
        sizes = [int(np.prod(s)) for s in box.shapes]
        updates = rng().normal(size=(3, sum(sizes))).astype(np.float32)
        found = features(box, updates)
    assert found.shape == (3, len(sizes))
    start = sum(sizes[:2])
    expected = np.log(np.linalg.norm(updates[1, start : start + sizes[2]]))
    assert found[1, 2] == pytest.approx(expected, abs=1e-5)


def test_a_property_that_is_in_the_norms_alone_is_read_from_them(world):
    with white_box.opened(world[0]) as box:
        d = sum(int(np.prod(s)) for s in box.shapes)
    labels, answer = np.arange(SHADOWS) % 2 == 0, np.arange(TARGETS) % 2 == 0

    def drawn(seed, there):
        scale = np.where(there, 2.0, 1.0)[:, None]
        return (rng(seed).normal(size=(len(there), d)) * scale).astype(np.float32)

    targets = drawn(1, answer)
    asked = Rounds(shadows=drawn(0, labels), labels=labels, targets=targets, without=drawn(2, ~answer))
    guess = PropertyInference().guess(world[0], asked, Budget(), rng())
    assert PropertyInference().score(guess, answer)[0].value == 1
    # a control that can fail: here its rounds have the property where others lack it
    _, empty = PropertyInference().negative(world[0], Exam(question=asked, answer=answer), rng())
    guess = PropertyInference().guess(world[0], empty.question, Budget(), rng())
    assert PropertyInference().score(guess, empty.answer)[0].value == 0


def test_without_enough_records_set_aside_there_is_nothing_to_train_shadows_on(world):
    seen, truth = world
    with pytest.raises(NotApplicable, match=f"no client set {2 * RECORDS} records aside"):
        PropertyInference().exam(type(truth)(clients={}), seen, rng())


def test_texts_that_are_learned_whole_share_no_answer_that_could_be_the_property(world):
    seen, truth = world

    def apart(items):
        return tuple(Encoded(ids=(*item.ids, *item.ids[:1], i), response_start=1) for i, item in items)

    clients = {
        name: replace(
            state,
            train=apart(enumerate(state.train)),
            holdout=apart(enumerate(state.holdout, start=len(state.train))),
        )
        for name, state in truth.clients.items()
    }
    with pytest.raises(NotApplicable, match="share no answer"):
        PropertyInference().exam(type(truth)(clients=clients), seen, rng())


def test_under_differential_privacy_it_does_not_stand_for_the_run(world):
    """Its rounds are trained by the examiner, without the run's noise."""
    seen, truth = world
    private = seen.settings.privacy.model_copy(update={"unit": "record"})
    with pytest.raises(NotApplicable, match="without the run's differential privacy"):
        PropertyInference().exam(
            truth, replace_view(seen, settings=seen.settings.changed(privacy=private)), rng()
        )


@pytest.mark.slow
def test_the_attack_as_a_whole_has_both_controls(world):
    seen, truth = world
    found = run_one(PropertyInference(), seen, truth, profile="standard", seconds=100, seed=0)
    assert found.positive is not None
    assert found.negative is not None
