"""What decides an attack's outcome: attempts that are counted, controls that can fail, reasons that fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks import registry, white_box
from attacks.base import Budget, Exam, Inconclusive, NotApplicable, OutOfTime, Truth, replace_view
from attacks.integrity.active_server import Attempts, SecaggActive
from attacks.integrity.passive_sums import SignCounts, coordinate_sums
from attacks.integrity.poisoning import Poisoning
from attacks.integrity.proxy_traps import TRAPS
from attacks.integrity.trapped_proxy import Round, TrappedProxy
from attacks.judging.outcome import judge
from attacks.membership.canaries import PROXY, CanaryExposure, Ranked, Secrets
from attacks.membership.overfit import overfitted
from attacks.membership.updates import UpdateMembership
from attacks.reconstruction.matching import GradientMatching
from attacks.reconstruction.one_step import one_step_control
from attacks.reconstruction.vectors import vectors, with_round_0, without_own
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import View
from tests.support.lab import make_lab, records
from tests.support.toys import CHANCE, HIGH, Toy, estimate, one


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return make_lab(tmp_path_factory.mktemp("lab"), hidden=32, adapter={"rank": 4}, clients=("a", "b", "c"))


def client(name, update=None, items=(), holdout=(), rounds=(0,)):
    done = PrivateRound(update=np.asarray(update, np.float32), used=np.arange(len(items)))
    return PrivateState(
        client=name,
        train=tuple(items),
        holdout=tuple(holdout),
        canaries=(),
        rounds=dict.fromkeys(rounds, done),
    )


# A10: attempts are counted


@pytest.mark.parametrize("attempts", [1, 17, 18, 500])
def test_one_attempt_that_breaks_the_protocol_is_a_success_however_many_others_fail(attempts):
    attack, info = SecaggActive(), SecaggActive.info
    tried = {f"attempt {i}": i == 0 for i in range(attempts)}
    (found,) = attack.score(Attempts(protocol=tried, read={}), {})
    (perfect,) = attack.score(Attempts(protocol=dict.fromkeys(tried, True), read={}), {})
    (none,) = attack.score(Attempts(protocol=dict.fromkeys(tried, False), read={}), {})
    assert judge(info, found, perfect, none)[0] == Outcome.SUCCEEDED
    assert judge(info, none, perfect, none)[0] == Outcome.RESISTED
    assert found.how.endswith("succeeded: attempt 0")
    assert none.how.endswith("succeeded: none")


def test_a_sum_that_is_the_victims_vector_counts_as_an_attempt_that_succeeded():
    victim = rng().normal(size=20).astype(np.float32)
    read = {"suppression": victim, "canary bit": "the round was aborted"}
    (found,) = SecaggActive().score(
        Attempts(protocol={"server: lies": False}, read=read), {"suppression": victim, "canary bit": victim}
    )
    assert (found.value, found.low, found.n) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    assert found.how.endswith("succeeded: suppression")


# outcomes


class CannotTell(Toy):
    """Its negative control raises."""

    error: Exception = Inconclusive("who knows")

    def guess(self, view, question, budget, rng):
        if view.threat_model == "empty":
            raise self.error
        return view.threat_model


def test_a_negative_control_that_cannot_tell_counts_as_missing():
    found = one(CannotTell())
    assert (found.outcome, found.negative, found.positive.value) == (Outcome.SUCCEEDED, None, 0.9)
    none = CannotTell()
    none.found = CHANCE
    assert one(none).outcome == Outcome.RESISTED


def test_a_negative_control_that_runs_out_of_time_still_decides():
    late = CannotTell()
    late.error = OutOfTime(3)
    found = one(late)
    assert (found.outcome, found.reason) == (
        Outcome.INCONCLUSIVE,
        "ran out of its 3 s in its negative control",
    )


def test_the_first_estimate_must_be_the_headline_that_the_attack_names():
    named = Toy(headline="exact recall")
    found = one(named)
    assert found.outcome == Outcome.ERROR
    assert "first estimate auc: must be exact recall, its headline" in found.reason
    named.found = named.control = named.empty = estimate(0.9, 0.8, 1.0, metric="exact recall")
    assert one(named).outcome != Outcome.ERROR


def test_two_tries_that_find_the_hidden_size_are_a_success():
    info = registry.get("logit_svd").info
    both = replace(HIGH, metric=info.headline, value=1.0, low=0.342, high=1.0)  # Wilson of 2 of 2
    assert judge(info, both, both, None)[0] == Outcome.SUCCEEDED


# controls that can fail


def test_the_trapped_proxys_negative_control_loses_what_columns_told_and_keeps_the_labels():
    seen = {"a": rng().normal(size=50).astype(np.float32)}
    exam = Exam(
        question=Round(seen=seen, tokens=(3, 4, 5, 6), trap=TRAPS[0]),
        answer={"a": np.array([True, False, True, False])},
    )
    _, empty = TrappedProxy().negative(View(threat_model="t"), exam, rng())
    assert empty.answer is exam.answer
    assert not np.array_equal(empty.question.seen["a"], seen["a"])
    np.testing.assert_array_equal(np.sort(empty.question.seen["a"]), np.sort(seen["a"]))


@pytest.mark.parametrize("unit", ["record", "client"])
def test_poisoning_does_not_stand_for_a_run_with_differential_privacy(lab, unit):
    privacy = lab.settings.privacy.model_copy(update={"unit": unit})
    items = records(rng(), 8, tokens=20, length=8)
    own = client("a", np.zeros(1), items, items)
    seen = replace(
        lab.view({}), own={"a": own}, settings=lab.settings.changed(privacy=privacy), threat_model="client"
    )
    truth = Truth(clients={n: client(n, np.zeros(1), items, items) for n in "bc"})
    with pytest.raises(NotApplicable, match="without the run's differential privacy"):
        Poisoning().exam(truth, seen, rng())


def test_a_text_control_sets_whole_texts_aside_as_its_members_are(lab):
    items = records(rng(), 30, tokens=20, length=8)
    truth = Truth(clients={"a": client("a", np.zeros(1), items[:15], items[15:])})
    _, known = overfitted(View(threat_model="t"), truth, what="texts")
    (made,) = known.clients.values()
    assert {i.response_start for i in (*made.train, *made.holdout)} == {1}
    assert [i.ids for i in made.holdout] == [i.ids for i in items[15:]]


def test_the_one_step_control_takes_a_client_that_trained_in_a_round_that_was_seen(lab):
    items = records(rng(), 6, tokens=20, length=8)
    away = client("a", np.zeros(len(lab.start)), items[:3], rounds=(7,))
    there = client("b", np.zeros(len(lab.start)), items[3:])
    truth = Truth(clients={"a": away, "b": there})
    _, control = one_step_control(lab.view({}), truth, records=3)
    assert set(next(iter(control.clients.values())).train) == set(items[3:])
    _, matched = GradientMatching().positive(lab.view({}), truth)
    assert len(matched.clients) == 1


def test_gradient_matching_has_targets_enough_for_an_interval_in_every_profile(lab):
    """Of fewer than two vectors nothing follows: neither success nor resistance."""
    items = records(rng(), 3, tokens=20, length=6)
    updates = {n: lab.update([item]) for n, item in zip("abc", items, strict=True)}
    truth = Truth(clients={n: client(n, updates[n], [i]) for n, i in zip("abc", items, strict=True)})
    attack, seen = GradientMatching(), lab.view(updates)
    exam = attack.exam(truth, seen, rng())
    found = attack.score(attack.guess(seen, exam.question, Budget(), rng()), exam.answer)[0]
    assert found.n == 3
    assert found.low is not None


def test_where_too_few_records_were_drawn_a5_says_so_and_does_not_ask_for_records_set_aside(lab):
    items = records(rng(), 15, tokens=20, length=8)
    seen = lab.view({"a": np.ones(len(lab.start), np.float32)})
    for aside, reason in ((12, "fewer than 4 records were drawn"), (0, "no records were set aside")):
        truth = Truth(clients={"a": client("a", np.zeros(1), items[:3], items[3 : 3 + aside])})
        with pytest.raises(NotApplicable, match=reason):
            UpdateMembership().exam(truth, seen, rng())


# what the adversary knows of its own clients, and of round 0


def test_a_client_takes_its_own_signs_out_before_it_looks_for_lone_values(lab):
    updates = {"a": [1, 2, 3, -1], "b": [2, -1, -2, -2], "c": [3, -2, 1, -3]}
    everybody = Truth(clients={n: client(n, u) for n, u in updates.items()})
    settings = lab.settings.changed(d=4)
    seen = View(threat_model="t", settings=settings, own={"a": everybody.clients["a"]})
    seen = replace_view(seen, sums=coordinate_sums(seen, everybody))
    guess = SignCounts().guess(seen, None, Budget(), rng())
    ((_, at, values, _),) = guess.named
    # of the others b is alone above and c below in the last place but one; both are negative in 1 and 3
    np.testing.assert_array_equal(at, [2])
    np.testing.assert_allclose(values, [1])
    assert (guess.lone, guess.unanimous) == (1, 3)
    honest = Truth(clients={n: everybody.clients[n] for n in "bc"})
    assert SignCounts().score(guess, honest)[0].value == 0.25


def test_without_its_own_part_a_mean_is_that_of_the_others_whoever_took_part(lab):
    updates = {n: rng(i).normal(size=6).astype(np.float32) for i, n in enumerate("abc")}
    seen = View(
        threat_model="t",
        settings=lab.settings,
        own={"a": client("a", updates["a"]), "c": client("c", updates["c"], rounds=(5,))},
    )
    mean = np.mean([updates["a"], updates["b"]], axis=0)
    np.testing.assert_allclose(without_own(seen, 0, ("a", "b"), mean), updates["b"], atol=1e-6)
    np.testing.assert_allclose(without_own(seen, 0, ("b",), updates["b"]), updates["b"])
    np.testing.assert_allclose(without_own(seen, 0, ("a",), updates["a"]), np.zeros(6))


def test_who_missed_round_0_knows_the_adapter_that_it_began_with(lab):
    late = replace(lab.view({}), adapters={2: lab.start})
    with white_box.opened(late) as box:
        untrained = get_vector(box.tuned)
    np.testing.assert_array_equal(with_round_0(late).adapters[0], untrained)
    assert set(with_round_0(late).adapters) == {0, 2}
    assert with_round_0(lab.view({})).adapters[0] is lab.view({}).adapters[0]
    assert not vectors(with_round_0(late), most=4)


# what is read at once


def test_the_inputs_after_every_token_come_in_passes_of_bounded_size(lab, monkeypatch):
    prefixes, tokens = torch.tensor([[1, 5], [1, 9], [1, 7]]), torch.arange(3, 30)
    with lab.opened() as box:
        (whole,) = box.next_inputs(prefixes, tokens, 1, budget=Budget())
        for rows in (10, 30):
            monkeypatch.setattr("attacks.white_box.ROWS_A_PASS", rows)
            parts = list(box.next_inputs(prefixes, tokens, 1, budget=Budget()))
            assert max(map(len, parts)) <= rows
            torch.testing.assert_close(torch.cat(parts), whole)
        with pytest.raises(OutOfTime):
            next(box.next_inputs(prefixes, tokens, 1, budget=Budget(seconds=1, began=0.0)))


# exposures


def test_exposures_that_agree_have_an_interval_within_what_ranks_allow():
    losses = np.stack([np.arange(17.0)] * 3)  # 16 references; all three secrets are first
    answer = Secrets(at=(0, 0, 0), secrets=("1", "2", "3"), repeats=(4, 4, 4))
    guess = Ranked(losses={PROXY: losses}, said={PROXY: ("", "", "")})
    found = {e.metric: e for e in CanaryExposure().score(guess, answer)}
    bits = found[f"exposure in the {PROXY}, 4 times"]
    assert bits.low < bits.value == bits.high == 4
    assert bits.low > np.log2(16 / 17)
