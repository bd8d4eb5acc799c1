"""A5 where the answer is known: exact on one step, at chance where nothing is to be found."""

from dataclasses import replace

import numpy as np
import pytest

from attacks import registry
from attacks.base import Budget, NotApplicable, OutOfTime, Truth
from attacks.membership.gradients import record_gradients
from attacks.membership.updates import RoundQuestion, UpdateMembership, betas_of, deviations, scores
from attacks.statistics import auc_value
from fedproxy_secure.data.planted import draw_canaries
from fedproxy_secure.record.private import PrivateRound, PrivateState
from tests.support.lab import make_lab, records
from tests.support.toys import late

DRAWN = 12


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    made = {}

    def lab(optimizer="sgd", steps=1):
        if (optimizer, steps) not in made:
            local = {
                "optimizer": optimizer,
                "steps": steps,
                "batch_size": DRAWN,
                "learning_rate": 0.1 if optimizer == "sgd" else 3e-3,
            }
            made[optimizer, steps] = make_lab(
                tmp_path_factory.mktemp("lab"), adapter={"rank": 4}, local=local
            )
        return made[optimizer, steps]

    return lab


ROUNDS = {}  # what was trained already, by the lab's own folder, clients and seed


def rounds_of(lab, clients, seed=0):
    """Clients that drew 12 records and set 12 of the same kind aside; their updates and the truth."""
    key = (lab.proxy, clients, seed)
    if key not in ROUNDS:
        ROUNDS[key] = trained_rounds(lab, clients, seed)
    return ROUNDS[key]


def trained_rounds(lab, clients, seed):
    rng = np.random.default_rng(seed)
    states, updates = {}, {}
    for i in range(clients):
        items = records(rng, 2 * DRAWN, tokens=60, length=10)
        name, train = f"c{i}", items[:DRAWN]
        updates[name] = lab.update(train)
        states[name] = PrivateState(
            client=name,
            train=train,
            holdout=items[DRAWN:],
            canaries=(),
            rounds={0: PrivateRound(update=updates[name], used=np.arange(DRAWN))},
        )
    return updates, Truth(clients=states)


def auc_of(view, truth, seed=0):
    return shuffled_aucs(view, truth, [None], seed)[0]


def shuffled_aucs(view, truth, shuffles, seed=0):
    """The headline for each seed of `shuffles`, by which the update or sum is shuffled; None: as it is."""
    attack, found = UpdateMembership(), []
    for shuffle in shuffles:
        seen, exam = view, attack.exam(truth, view, np.random.default_rng(seed))
        if shuffle is not None:
            seen, exam = attack.negative(view, exam, np.random.default_rng(shuffle))
        guess = attack.guess(seen, exam.question, Budget(profile="standard"), np.random.default_rng(seed))
        found.append(attack.score(guess, exam.answer)[0])
    return found


@pytest.mark.parametrize("clients", [1, 4])
def test_one_step_of_sgd_gives_every_drawn_record_away_also_in_a_sum(labs, clients):
    lab = labs()
    updates, truth = rounds_of(lab, clients)
    found = auc_of(lab.view(updates, summed=clients > 1), truth)
    assert found.n == 2 * DRAWN * clients
    assert found.value == 1.0


def test_the_share_of_a_record_in_one_step_is_its_part_of_the_batch(labs):
    lab = labs()
    updates, truth = rounds_of(lab, 1)
    state = truth.clients["c0"]
    with lab.opened() as box:
        gradients = np.stack([-box.gradient([d]) for d in (*state.train, *state.holdout)])
    length = np.linalg.norm(gradients[:DRAWN].mean(axis=0))
    clipped = 0.1 * min(1.0, 1.0 / length)  # learning rate, and max_grad_norm
    shares = scores(gradients, updates["c0"], "sgd")["share"]
    np.testing.assert_allclose(shares[:DRAWN], clipped / DRAWN, rtol=0.02)
    np.testing.assert_allclose(shares[DRAWN:], 0, atol=0.02 * clipped / DRAWN)


def test_gradients_record_by_record_are_those_of_single_records(labs):
    lab = labs()
    _, truth = rounds_of(lab, 1)
    items = truth.clients["c0"].train[:5]
    items = [replace(i, ids=i.ids[: len(i.ids) - cut]) for cut, i in enumerate(items)]  # unlike lengths
    with lab.opened() as box:
        single = np.stack([box.gradient([i]) for i in items])
        together = record_gradients(box, items, budget=Budget())
    np.testing.assert_allclose(together, single, atol=1e-5 * np.abs(single).max())


def test_adamw_over_several_steps_still_tells(labs):
    lab = labs("adamw", 5)
    updates, truth = rounds_of(lab, 1)
    assert auc_of(lab.view(updates), truth).low > 0.5


def test_many_steps_of_adamw_are_read_at_three_points_and_fewer_or_sgd_at_one(labs):
    assert betas_of(labs("adamw", 20).settings.local) == (0.0, 0.5, 1.0)
    assert betas_of(labs("adamw", 10).settings.local) == (0.0, 0.5, 1.0)
    assert betas_of(labs("adamw", 9).settings.local) == (0.0,)
    assert betas_of(labs("adamw", 5).settings.local) == (0.0,)
    assert betas_of(labs("sgd", 20).settings.local) == (0.0,)


@pytest.mark.parametrize("summed", [False, True])
def test_the_points_lie_between_the_first_adapter_and_where_the_update_led(labs, summed):
    lab = labs("adamw", 20)
    updates, truth = rounds_of(lab, 2)
    view = lab.view(updates, summed=summed)
    exam = UpdateMembership().exam(truth, view, np.random.default_rng(0))
    budget, rng = Budget(profile="standard"), np.random.default_rng(0)
    found = UpdateMembership().guess(view, exam.question, budget, rng)
    for asked, guessed in zip(exam.question, found, strict=True):
        moved = np.mean([updates[name] for name in asked.clients], axis=0)
        by_hand = []
        with lab.opened() as box:
            for beta in (0.0, 0.5, 1.0):
                box.set((lab.start + beta * moved).astype(np.float32))
                gradients = -record_gradients(box, asked.documents, budget=budget)
                by_hand.append(deviations(scores(gradients, moved, "adamw")["auc"]))
        np.testing.assert_allclose(guessed["auc"], np.mean(by_hand, axis=0), atol=1e-3)


def test_the_points_of_a_sum_do_not_depend_on_who_knows_its_own_part(labs):
    """A corrupted client subtracts its own part of a sum; A5 reads the mean of the others' parts."""
    lab = labs("adamw", 20)
    updates, truth = rounds_of(lab, 3)
    honest = Truth(clients={n: s for n, s in truth.clients.items() if n != "c0"})
    colluding = replace(lab.view(updates, summed=True), own={"c0": truth.clients["c0"]})
    without = lab.view({n: u for n, u in updates.items() if n != "c0"}, summed=True)
    found = []
    for view in (colluding, without):
        exam = UpdateMembership().exam(honest, view, np.random.default_rng(0))
        budget, rng = Budget(profile="standard"), np.random.default_rng(0)
        found.append(UpdateMembership().guess(view, exam.question, budget, rng)[0]["auc"])
    np.testing.assert_allclose(np.sort(found[0]), np.sort(found[1]), atol=1e-2)


def test_many_steps_of_adamw_still_tell(labs):
    lab = labs("adamw", 20)
    for summed in (False, True):
        updates, truth = rounds_of(lab, 2)
        assert auc_of(lab.view(updates, summed=summed), truth).low > 0.5


@pytest.mark.parametrize(
    ("optimizer", "steps"), [("sgd", 1), ("adamw", 5), pytest.param("adamw", 20, marks=pytest.mark.slow)]
)
def test_documents_of_another_client_are_at_chance(labs, optimizer, steps):
    """95 % intervals: 4 or more of 10 miss .5 with a probability below 1 in 900."""
    lab = labs(optimizer, steps)
    misses, values = 0, []
    for seed in range(10):
        updates, truth = rounds_of(lab, 2, seed)
        others = Truth(clients={"c0": truth.clients["c1"]})
        found = auc_of(lab.view({"c0": updates["c0"]}), others, seed)
        misses += not found.low <= 0.5 <= found.high
        values.append(found.value)
    assert misses < 4
    assert abs(np.mean(values) - 0.5) < 4 * np.std(values, ddof=1) / np.sqrt(10)


@pytest.mark.parametrize(("optimizer", "steps"), [("sgd", 1), ("adamw", 20)])
@pytest.mark.parametrize("summed", [False, True])
def test_a_shuffled_update_or_sum_is_at_chance(labs, summed, optimizer, steps):
    """95 % intervals: 4 or more of 10 miss .5 with a probability below 1 in 900."""
    lab = labs(optimizer, steps)
    updates, truth = rounds_of(lab, 2)
    view = lab.view(updates, summed=summed)
    found = shuffled_aucs(view, truth, range(10))
    assert sum(not f.low <= 0.5 <= f.high for f in found) < 4
    values = [f.value for f in found]
    assert abs(np.mean(values) - 0.5) < 4 * np.std(values, ddof=1) / np.sqrt(10)


@pytest.mark.parametrize("steps", [5, 20])
def test_the_positive_control_succeeds(labs, steps):
    lab = labs("adamw", steps)
    updates, truth = rounds_of(lab, 2)
    view, control = UpdateMembership().positive(lab.view(updates, summed=True), truth)
    assert auc_of(view, control).value == 1.0


def test_members_are_records_that_were_drawn_and_no_canary(labs):
    lab = labs()
    items = records(np.random.default_rng(0), 20, tokens=60, length=10)
    canaries = draw_canaries("c0", [2], seed=0)
    state = PrivateState(
        client="c0",
        train=items[:12],  # the last two stand for the canary
        holdout=items[12:],
        canaries=canaries,
        rounds={0: PrivateRound(update=lab.start, used=np.array([0, 1, 2, 3, 4, 5, 0, 10, 11]))},
    )
    assert state.drawn().tolist() == state.drawn(0).tolist() == [*range(6), 10, 11]
    assert state.own_drawn().tolist() == list(range(6))
    exam = UpdateMembership().exam(
        Truth(clients={"c0": state}), lab.view({"c0": lab.start}), np.random.default_rng(0)
    )
    (asked,), (labels,) = exam.question, exam.answer
    members = {d for d, label in zip(asked.documents, labels, strict=True) if label}
    assert members == set(items[:6])
    assert {d for d, label in zip(asked.documents, labels, strict=True) if not label} <= set(items[12:])
    assert labels.sum() == len(labels) - labels.sum() == 6


def test_a_text_that_an_honest_client_trains_on_is_asked_about_as_a_member_alone(labs):
    lab = labs()
    items = records(np.random.default_rng(0), 32, tokens=60, length=10)
    done = {0: PrivateRound(update=lab.start, used=np.arange(8))}
    held = {"c0": (items[:8], items[8:24]), "c1": (items[16:24], (*items[:8], *items[24:]))}
    clients = {
        n: PrivateState(client=n, train=train, holdout=aside, canaries=(), rounds=done)
        for n, (train, aside) in held.items()
    }
    view = lab.view({n: lab.start for n in clients}, summed=True)
    for seed in range(9):
        exam = UpdateMembership().exam(Truth(clients=clients), view, np.random.default_rng(seed))
        (asked,), (labels,) = exam.question, exam.answer
        assert labels.sum() * 2 == len(labels) == 32
        absent = {d for d, label in zip(asked.documents, labels, strict=True) if not label}
        assert absent == {*items[8:16], *items[24:]}


def test_without_records_set_aside_there_is_nothing_to_compare_with(labs):
    lab = labs()
    updates, truth = rounds_of(lab, 1)
    bare = PrivateState(**{**vars(truth.clients["c0"]), "holdout": ()})
    with pytest.raises(NotApplicable, match=r"no records were set aside; run with --set audit.holdout=0.3"):
        UpdateMembership().exam(Truth(clients={"c0": bare}), lab.view(updates), np.random.default_rng(0))


def test_the_attack_stops_when_its_seconds_are_over(labs):
    lab = labs()
    updates, truth = rounds_of(lab, 1)
    asked = RoundQuestion(round=0, clients=("c0",), documents=truth.clients["c0"].train)
    with pytest.raises(OutOfTime):
        UpdateMembership().guess(
            lab.view(updates), [asked], Budget(seconds=1.0, began=0.0), np.random.default_rng(0)
        )


def test_a_control_that_begins_late_scores_as_many_documents_as_the_attack(labs, monkeypatch):
    monkeypatch.setattr("attacks.membership.updates.FEWEST", 4)
    lab, attack = labs(), UpdateMembership()
    updates, truth = rounds_of(lab, 2)
    view = lab.view(updates)
    exam = attack.exam(truth, view, np.random.default_rng(0))
    guess = attack.guess(view, exam.question, late(), np.random.default_rng(0))
    assert [len(g["auc"]) for g in guess] == [2 * DRAWN] * 2


def test_the_first_documents_are_scored_as_many_as_memory_holds_gradients_of(labs, monkeypatch):
    lab = labs()
    updates, truth = rounds_of(lab, 1)
    monkeypatch.setattr("attacks.membership.updates.FEWEST", 4)
    monkeypatch.setattr("attacks.membership.updates.GRADIENTS", 6 * lab.start.size)
    assert auc_of(lab.view(updates), truth).n == 6


def test_the_negative_control_needs_no_new_gradients(labs):
    """Its questions were asked before, and its adapters are the same."""
    lab, attack = labs(), UpdateMembership()
    updates, truth = rounds_of(lab, 2)
    for view in (lab.view(updates), lab.view(updates, summed=True)):
        exam = attack.exam(truth, view, np.random.default_rng(0))
        attack.guess(view, exam.question, Budget(), np.random.default_rng(0))
        positive = attack.positive(view, truth)
        asked = attack.exam(positive[1], positive[0], np.random.default_rng(1)).question
        attack.guess(positive[0], asked, Budget(), np.random.default_rng(0))
        empty, same = attack.negative(view, exam, np.random.default_rng(0))
        over = Budget(seconds=1.0, began=0.0)  # any new pass would raise
        attack.guess(empty, same.question, over, np.random.default_rng(0))


def test_scores_do_not_depend_on_how_many_numbers_are_computed_with_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 40)).astype(np.float32)
    update = gradients[0] + rng.normal(size=40)
    for optimizer in ("sgd", "adamw"):
        whole = scores(gradients, update, optimizer)
        with monkeypatch.context() as patched:
            patched.setattr("attacks.membership.gradients.COLUMNS", 7)
            for name, values in scores(gradients, update, optimizer).items():
                np.testing.assert_allclose(values, whole[name], rtol=1e-9)


def test_scores_of_orthogonal_gradients_are_their_parts():
    gradients = np.diag([1.0, 2.0, 4.0, 1.0])
    update = np.array([1.0, 2.0, 0.0, -1.0])
    found = scores(gradients, update, "sgd")
    np.testing.assert_allclose(found["share"], [1, 1, 0, -1], atol=1e-5)
    np.testing.assert_allclose(found["cosine"], update / np.linalg.norm(update), atol=1e-6)
    assert auc_value(found["auc"], np.array([True, True, False, False])) == 1.0


def test_deviations_of_equal_values_are_zero():
    assert deviations(np.full(4, 3.0)).tolist() == [0, 0, 0, 0]
    assert deviations(np.array([1.0, 3.0])).tolist() == [-1, 1]


def test_a5_claims_no_more_than_it_asks():
    """Records that were not drawn in a round but in another one are no part of its question."""
    title = registry.get("update_membership").info.title
    assert title.startswith("drawn records told from ones never trained on")
