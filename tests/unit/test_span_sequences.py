"""A3 where the answer is known: sequences that are written down whole, or not at all."""

from dataclasses import replace

import numpy as np
import pytest

from attacks.base import Budget, Inconclusive, NotApplicable, Truth
from attacks.reconstruction.one_step import one_step_control, one_step_controls
from attacks.reconstruction.rouge import best_rouge
from attacks.reconstruction.sequences import (
    CONTROL_UPDATES,
    NOT_COUNTED,
    Found,
    LoraSpanSequences,
    without_prefixes,
)
from attacks.trial import run_one
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.data.planted import Canary
from fedproxy_secure.evidence.finding import Outcome
from tests.support.lab import make_lab, truth_of
from tests.support.reconstructions import maker_of_labs, rounds_of, run


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    return maker_of_labs(tmp_path_factory)


def test_an_update_that_leaves_a_as_it_was_is_left_out_of_the_search_for_sequences(labs):
    lab = labs(local={"steps": 1})
    moved = np.random.default_rng(0).normal(0, 0.02, len(lab.start)).astype(np.float32)
    at_first = replace(lab, start=lab.start - moved)  # where B is zero, the gradient of A is, too
    _, updates = rounds_of(at_first, clients=1)
    assert np.any(updates["c0"])
    with pytest.raises(Inconclusive, match="no update changes A"):
        LoraSpanSequences().guess(at_first.view(updates), None, Budget(), np.random.default_rng(0))


def test_sequences_do_not_apply_to_updates_of_adamw(labs):
    lab = labs(optimizer="adamw")
    items, updates = rounds_of(lab, clients=1)
    with pytest.raises(NotApplicable, match="clients use AdamW"):
        run(LoraSpanSequences(), lab.view(updates), truth_of(updates, items))


# A3


@pytest.mark.parametrize(("clients", "count"), [(1, 4), (2, 2)])
def test_within_capacity_a3_writes_every_record_down_and_nothing_else(labs, clients, count):
    lab = labs(local={"steps": 1}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=clients, count=count, tokens=40)
    found, _ = run(LoraSpanSequences(), lab.view(updates, summed=clients > 1), truth_of(updates, items))
    assert found["exact recall"].value == 1.0
    assert found["exact precision"].value == 1.0
    assert found["ROUGE-L"].value == 1.0


@pytest.mark.slow
def test_a3_recovers_8_records_of_16_tokens_close_to_capacity(tmp_path):
    lab = make_lab(tmp_path, hidden=128, adapter={"rank": 48, "alpha": 96}, local={"batch_size": 8})
    items, updates = rounds_of(lab, clients=1, tokens=60, length=16)
    found, _ = run(LoraSpanSequences(), lab.view(updates), truth_of(updates, items))
    assert found["exact recall"].value >= 7 / 8
    assert found["ROUGE-L"].value > 0.98


def test_beyond_capacity_a3_cannot_tell(labs):
    lab = labs(local={"steps": 1, "batch_size": 12}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=1, count=12, tokens=40)
    with pytest.raises(Inconclusive, match="beyond capacity: every update's span is full"):
        run(LoraSpanSequences(), lab.view(updates), truth_of(updates, items))


def test_an_update_beyond_capacity_makes_a3_no_surer():
    row = Encoded(ids=(1, 2, 3, 7), response_start=2)
    truth = truth_of({n: np.zeros(1) for n in "ab"}, {n: (row,) for n in "ab"})
    full, told = (Found(round=0, clients=(n,), sequences=(), evaluations=5, full=n == "a") for n in "ab")
    one, both = (LoraSpanSequences().score(g, truth)[0] for g in ((told,), (told, full)))
    assert (both.n, both.value, both.high) == (1, 0, one.high)


def test_records_of_vectors_beyond_capacity_do_not_hide_one_that_was_found():
    rows = {n: tuple(Encoded(ids=(1, i, i, 7), response_start=2) for i in range(2, 50)) for n in "bcd"}
    rows["a"] = (Encoded(ids=(1, 2, 3, 7), response_start=2),)
    truth = truth_of({n: np.zeros(1) for n in rows}, rows)
    found = tuple(
        Found(round=0, clients=(n,), sequences=((1, 2, 3),) * (n == "a"), evaluations=1, full=n != "a")
        for n in "abcd"
    )
    recall, precision, *_, left_out = LoraSpanSequences().score(found, truth)
    assert (recall.value, recall.n, precision.value) == (1, 1, 1)
    assert recall.how.endswith("of vectors within capacity")
    assert (left_out.metric, left_out.value, left_out.exact) == (NOT_COUNTED, 3, True)


@pytest.mark.parametrize("full", [False, True])
def test_vectors_that_tell_nothing_or_whose_records_nobody_knows_leave_a3_inconclusive(full):
    found = Found(round=0, clients=("a",), sequences=(), evaluations=0, full=full)
    items = {"a": (Encoded(ids=(1, 2, 3, 7), response_start=2),)} if full else {}
    truth = truth_of({n: np.zeros(1) for n in items}, items)
    with pytest.raises(Inconclusive, match="of no vector within capacity is a record known"):
        LoraSpanSequences().score((found,), truth)


def test_where_rounding_hides_sequences_a3_is_not_resisted(labs):
    lab = labs(local={"steps": 1, "learning_rate": 1e-6}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=1, count=4, tokens=40)
    attack, truth = LoraSpanSequences(), truth_of(updates, items)
    finding = run_one(attack, lab.view(updates), truth, profile="smoke", seconds=600, seed=0)
    assert finding.outcome == Outcome.INCONCLUSIVE
    assert finding.reason == "exact recall 0; positive control 0: its interval must be above 0.01"


@pytest.mark.parametrize(
    "profile", ["smoke", *(pytest.param(p, marks=pytest.mark.slow) for p in ("standard", "full"))]
)
def test_a3_is_resisted_in_every_profile_even_of_one_sum_in_which_nothing_is_found(labs, profile):
    lab = labs(local={"steps": 1}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=2, count=10, tokens=40)
    noise = {n: np.random.default_rng(0).permutation(u) for n, u in updates.items()}
    seen, truth = lab.view(noise, summed=True), truth_of(noise, items)
    finding = run_one(LoraSpanSequences(), seen, truth, profile=profile, seconds=600, seed=0)
    assert (finding.headline.value, finding.positive.value) == (0, 1), finding.reason
    assert finding.headline.high < finding.positive.low
    assert finding.outcome == Outcome.RESISTED


def test_a3_s_control_is_many_updates_of_one_record_each_no_two_alike(labs):
    lab = labs(local={"steps": 1}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=2, count=10)
    items = {"c0": (*items["c0"], *items["c0"][:3]), "c1": (*items["c1"], items["c0"][0])}
    truth = truth_of(updates, items)
    view, control = LoraSpanSequences().positive(lab.view(updates, summed=True), truth)
    assert len(view.updates) == len(control.clients) == CONTROL_UPDATES
    learned = [item for state in control.clients.values() for item in state.train]
    assert len(set(learned)) == CONTROL_UPDATES
    assert set(learned) & set(items["c0"])
    assert set(learned) & set(items["c1"])
    assert all(len(state.train) == 1 for state in control.clients.values())
    few, _ = one_step_controls(
        lab.view(updates), truth_of(updates, {n: i[:2] for n, i in items.items()}), updates=9
    )
    assert len(few.updates) == 4


def test_a3_s_control_searches_as_many_updates_as_it_has_time_for(labs):
    lab = labs(local={"steps": 1}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=1, count=10)
    view, truth = LoraSpanSequences().positive(lab.view(updates), truth_of(updates, items))
    found, guess = run(LoraSpanSequences(), view, truth, budget=Budget(last=0.0))
    assert len(guess) == found["exact recall"].n == 1


def test_the_control_takes_the_step_that_a_client_would_have_taken(labs):
    for rate, most in ((0.1, 1e9), (0.01, 0.5)):
        lab = labs(local={"steps": 1, "learning_rate": rate, "max_grad_norm": most, "batch_size": 1})
        items, updates = rounds_of(lab, clients=1, count=1)
        view, _ = one_step_control(lab.view(updates), truth_of(updates, items), records=1)
        np.testing.assert_allclose(view.updates[0, "control"], updates["c0"], atol=1e-6)


@pytest.mark.parametrize(
    "more", [{"blocks": (1,)}, pytest.param({"modules": "mlp"}, marks=pytest.mark.slow)]
)
def test_without_adapters_on_embeddings_a3_is_exact_over_many_steps(labs, more):
    """What is frozen below does not move: the defence against A2 makes A3's search longer, and surer."""
    lab = labs(local={"steps": 3}, adapter={"rank": 32, **more})
    items, updates = rounds_of(lab, clients=1, count=3, length=8)
    found, _ = run(LoraSpanSequences(), lab.view(updates), truth_of(updates, items))
    assert found["exact recall"].value == 1.0
    assert found["exact precision"].value == 1.0


def test_one_adapted_block_that_reads_tokens_is_not_enough_for_sequences(labs):
    lab = labs(adapter={"blocks": (0,)})
    items, updates = rounds_of(lab, clients=1)
    with pytest.raises(NotApplicable, match="one block of the proxy is adapted"):
        run(LoraSpanSequences(), lab.view(updates), truth_of(updates, items))


def test_a3_on_a_shuffled_update_finds_no_record(labs):
    lab = labs(local={"steps": 1}, adapter={"rank": 32})
    items, updates = rounds_of(lab, clients=1, count=4, tokens=40)
    shuffled = {"c0": np.random.default_rng(0).permutation(updates["c0"])}
    found, _ = run(LoraSpanSequences(), lab.view(shuffled), truth_of(shuffled, items))
    assert found["exact recall"].value == 0.0


def test_beginnings_and_repeats_of_found_sequences_are_dropped():
    found = [(1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4), (1, 5), (1, 9, 9)]
    assert without_prefixes(found) == ((1, 2, 3, 4), (1, 9, 9))


def test_wrong_sequences_cost_precision_and_a_truth_is_matched_once():
    rows = [(1, 2, 3, 7), (1, 2, 3, 8), (1, 4, 5, 9)]
    items = {"a": tuple(Encoded(ids=row, response_start=2) for row in rows)}
    truth = truth_of({"a": np.zeros(1)}, items)  # read: (1, 2, 3) twice, (1, 4, 5)
    found = Found(
        round=0,
        clients=("a",),
        sequences=((1, 2, 3), (1, 2, 3), (1, 6, 6), (1, 6, 7)),
        evaluations=5,
        full=False,
    )
    by_metric = {e.metric: e for e in LoraSpanSequences().score((found,), truth)}
    assert (by_metric["exact recall"].value, by_metric["exact recall"].n) == (0.5, 2)
    assert (by_metric["exact precision"].value, by_metric["exact precision"].n) == (0.25, 4)


def test_rouge_is_over_one_to_one_matches_with_every_truth_in_the_denominator():
    assert best_rouge([(1, 2), (3, 4)], [(1, 2)]) == [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
    assert best_rouge([(1, 2), (1, 2)], [(1, 2)]).count((0.0, 0.0, 0.0)) == 1
    assert best_rouge([(1, 2)], []) == [(0.0, 0.0, 0.0)]
    ((one, two, longest),) = best_rouge([(1, 2, 3, 4)], [(1, 2, 4, 3)])
    assert (one, two, longest) == (1.0, pytest.approx(1 / 3), 0.75)


def test_the_positive_control_succeeds_and_says_who_and_what(labs):
    lab = labs(local={"steps": 5}, optimizer="adamw")
    items, updates = rounds_of(lab, clients=2)
    view, truth = one_step_control(lab.view(updates, summed=True), truth_of(updates, items), records=1)
    assert list(view.updates) == [(0, "control")]
    assert not view.sums
    assert view.settings.local.steps == 1
    assert view.settings.local.optimizer == "sgd"
    found, _ = run(LoraSpanSequences(), view, truth)
    assert found["exact recall"].value == 1.0


def test_the_control_s_records_are_the_shortest_or_any_and_never_planted_ones(labs):
    lab = labs()
    items, updates = rounds_of(lab, clients=1)
    truth = truth_of(updates, items)
    ((name, state),) = truth.clients.items()
    long, short = (Encoded(ids=(*range(3, 3 + n),), response_start=1) for n in (9, 6))
    secret = Encoded(ids=(3, 4, 5), response_start=1)
    planted = Canary(prompt="p", secret="s", repeats=2)
    train = (*(replace(long, ids=(*long.ids, n)) for n in range(30)), short, secret, secret)
    held = Truth(clients={name: replace(state, train=train, canaries=(planted,))})
    _, shortest = one_step_control(lab.view(updates), held, records=1)
    assert shortest.clients["control"].train == (short,)
    _, drawn = one_step_control(lab.view(updates), held, records=16, drawn=True)
    assert len(set(drawn.clients["control"].train)) == 16
    assert secret not in drawn.clients["control"].train


def test_there_is_no_control_without_a_proxy_or_a_trained_round(labs):
    lab = labs()
    items, updates = rounds_of(lab, clients=1)
    truth = truth_of(updates, items)
    assert one_step_control(replace(lab.view(updates), proxy=None), truth, records=1) is None
    assert one_step_control(lab.view(updates), Truth(clients={}), records=1) is None
    assert one_step_control(replace(lab.view(updates), adapters={}), truth, records=1) is None
    assert LoraSpanSequences().positive(lab.view(updates), Truth(clients={})) is None
