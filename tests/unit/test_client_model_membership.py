"""A15: a client's update is a model that knows its records; the mean of several knows them less."""

from dataclasses import replace

import numpy as np
import pytest

from attacks.base import Budget, NotApplicable, Truth
from attacks.membership.client_models import ClientModelMembership
from attacks.trial import run_one
from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from tests.support.lab import make_lab, records
from tests.support.toys import late

CLIENTS, RECORDS = 6, 12
HARD = LocalConfig(steps=30, batch_size=RECORDS, learning_rate=2e-2)


def as_text(item: Encoded) -> Encoded:
    return Encoded(ids=item.ids, response_start=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A lab, and what six clients held and sent after learning their texts by heart."""
    lab = make_lab(tmp_path_factory.mktemp("lab"), hidden=32, adapter={"rank": 8})
    rng, states, updates = np.random.default_rng(0), {}, {}
    for number in range(CLIENTS):
        name = f"c{number}"
        items = tuple(map(as_text, records(rng, 2 * RECORDS, tokens=40, length=12)))
        with lab.opened() as box:
            box.set(lab.start)
            train(
                box.tuned, items[:RECORDS], steps=HARD.steps, local=HARD, pad_id=0, rng=rng, subject="test"
            )
            updates[name] = get_vector(box.tuned) - lab.start
        states[name] = PrivateState(
            client=name,
            train=items[:RECORDS],
            holdout=items[RECORDS:],
            canaries=(),
            rounds={0: PrivateRound(update=updates[name], used=np.arange(RECORDS))},
        )
    return lab, updates, Truth(clients=states)


def found(view, truth):
    return run_one(ClientModelMembership(), view, truth, profile="smoke", seconds=120, seed=0)


@pytest.fixture(scope="module")
def in_the_clear(world):
    """What the attack finds in updates that nothing protects."""
    lab, updates, truth = world
    return found(lab.view(updates), truth)


def test_an_update_in_the_clear_gives_its_records_away(in_the_clear):
    finding = in_the_clear
    assert finding.outcome == Outcome.SUCCEEDED
    assert finding.headline.n == 2 * RECORDS * CLIENTS
    assert finding.headline.value > 0.95


def test_a_control_that_begins_late_reads_as_many_documents_as_the_attack(world, monkeypatch):
    monkeypatch.setattr("attacks.membership.client_models.AT_ONCE", 8)
    lab, updates, truth = world
    seen, attack = lab.view(updates), ClientModelMembership()
    exam = attack.exam(truth, seen, np.random.default_rng(0))
    guess = attack.guess(seen, exam.question, late(), np.random.default_rng(0))
    assert [len(scores) for scores in guess] == [2 * RECORDS] * CLIENTS


def test_the_mean_of_the_updates_tells_less(world, in_the_clear):
    lab, updates, truth = world
    mean = found(lab.view(updates, summed=True), truth).headline
    assert mean.high < in_the_clear.headline.low


def test_the_same_records_are_asked_about_with_and_without_protection(world):
    lab, updates, truth = world
    exams = [
        ClientModelMembership().exam(truth, lab.view(updates, summed=s), np.random.default_rng(3))
        for s in (False, True)
    ]
    assert exams[0].question == exams[1].question


def test_the_control_with_shuffled_numbers_finds_nothing(in_the_clear):
    assert in_the_clear.negative.low < 0.5 < in_the_clear.negative.high


def test_the_control_finds_nothing_in_an_adapter_that_earlier_rounds_taught(world):
    lab, updates, truth = world
    taught = lab.start + np.mean(list(updates.values()), axis=0)
    second = {(1, name): update for name, update in updates.items()}
    view = replace(lab.view(updates), adapters={0: lab.start, 1: taught}, updates=second)
    clients = {n: replace(s, rounds={1: s.rounds[0]}) for n, s in truth.clients.items()}
    attack, known = ClientModelMembership(), Truth(clients=clients)
    rng = np.random.default_rng(0)
    exam = attack.exam(known, view, rng)
    empty, same = attack.negative(view, exam, rng)
    aucs = [
        attack.score(attack.guess(v, e.question, Budget(), rng), e.answer)[0]
        for v, e in ((view, exam), (empty, same))
    ]
    assert aucs[0].low > 0.8
    assert aucs[1].low < 0.5 < aucs[1].high


@pytest.mark.slow
def test_updates_that_taught_nothing_are_resisted_because_the_control_finds_what_is_there(world):
    lab, updates, truth = world
    rng = np.random.default_rng(5)
    nothing = {n: 1e-4 * rng.standard_normal(len(u)).astype(np.float32) for n, u in updates.items()}
    finding = found(lab.view(nothing), truth)
    assert finding.outcome in (Outcome.RESISTED, Outcome.INCONCLUSIVE)
    assert finding.positive.value > 0.9
    assert finding.headline.low < 0.5 < finding.headline.high


def test_a_score_for_as_many_documents_as_there_is_time_for(world):
    lab, updates, truth = world
    attack = ClientModelMembership()
    view = lab.view(updates)
    exam = attack.exam(truth, view, np.random.default_rng(0))
    guess = attack.guess(view, exam.question, Budget(seconds=1e-6 + 30), np.random.default_rng(0))
    assert [len(g) for g in guess] == [2 * RECORDS] * CLIENTS
    short = tuple(g[:6] for g in guess)
    assert attack.score(short, exam.answer)[0].n == 6 * CLIENTS


def test_without_set_aside_records_there_is_nothing_to_tell_apart(world):
    lab, updates, truth = world
    bare = Truth(clients={n: replace(s, holdout=()) for n, s in truth.clients.items()})
    with pytest.raises(NotApplicable, match="set aside"):
        ClientModelMembership().exam(bare, lab.view(updates), np.random.default_rng(0))
    repeated = {n: replace(s, holdout=s.train) for n, s in truth.clients.items()}
    with pytest.raises(NotApplicable, match="set aside that no client trains on as well"):
        ClientModelMembership().exam(Truth(clients=repeated), lab.view(updates), np.random.default_rng(0))


def test_a_text_that_another_client_trains_on_is_no_nonmember(world):
    lab, updates, truth = world
    first, second = truth.clients["c0"], truth.clients["c1"]
    mixed = replace(first, holdout=(*first.holdout[:6], *second.train[:6]))
    both = Truth(clients={"c0": mixed, "c1": second})
    exam = ClientModelMembership().exam(both, lab.view(updates), np.random.default_rng(0))
    asked, labels = exam.question[0].documents, exam.answer[0]
    assert {d for d, label in zip(asked, labels, strict=True) if not label} == set(first.holdout[:6])


def test_a_client_is_asked_about_the_last_round_that_the_view_shows_anything_of(world):
    """A client that took part in rounds 0, 1 and 3 of 6 knows what round 0 moved, not what 3 did."""
    lab, updates, truth = world
    adapters = {r: lab.start + r for r in (0, 1, 3, 6)}
    seen = replace(lab.view(updates), adapters=adapters, updates={}, cohorts={})
    state = truth.clients["c0"]
    later = Truth(clients={"c0": replace(state, rounds={0: state.rounds[0], 3: state.rounds[0]})})
    (asked,) = ClientModelMembership().exam(later, seen, np.random.default_rng(0)).question
    assert (asked.client, asked.round) == ("c0", 0)
    unseen = Truth(clients={"c0": replace(state, rounds={3: state.rounds[0]})})
    with pytest.raises(NotApplicable, match="no update and no sum of a round"):
        ClientModelMembership().exam(unseen, seen, np.random.default_rng(0))
