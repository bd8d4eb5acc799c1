"""A8 and A9 in the suite: right mechanisms are not accused, weak ones are; claims decide who is asked."""

import numpy as np
import pytest

from attacks.audit import suite_entries
from attacks.audit.suite_entries import WOULD_FAIL, CanaryClientAudit, DpAudit, more_canaries
from attacks.base import KNOWN_BAD, Budget, NotApplicable, Truth, replace_view
from attacks.trial import run_one
from fedproxy_secure.config import FederateConfig, LocalConfig, PrivacyConfig, ProtectConfig
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.record.private import PrivateState
from fedproxy_secure.record.view import View
from tests.support.lab import make_lab, records

RECORD = PrivacyConfig(unit="record", target_epsilon=1.0, target_delta=1e-5)
CLIENT = PrivacyConfig(unit="client", target_epsilon=4.0, target_delta=1e-5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return make_lab(tmp_path_factory.mktemp("lab"), hidden=16, clients=("a", "b", "c", "d"))


def seen(lab, privacy, *, d=2000, sampled=False):
    """What the server sees; with record-level noise one step of all records, unless they are `sampled`.

    Without sampling what noise it takes is known at once, and with it that takes seconds.
    """
    once = privacy.unit == "record" and not sampled
    steps, batch, rounds = (1, 256, 1) if once else (5, 16, 2)
    settings = lab.settings.changed(
        privacy=privacy,
        d=d,
        local=LocalConfig(steps=steps, batch_size=batch, optimizer="sgd"),
        federate=FederateConfig(rounds=rounds),
    )
    return View(threat_model="server", settings=settings, adapters={0: lab.start}, proxy=lab.proxy)


@pytest.fixture(scope="module")
def truth():
    items = records(np.random.default_rng(0), 320, tokens=40, length=8)
    states = {}
    for name, count in (("a", 320), ("b", 200)):
        states[name] = PrivateState(client=name, train=items[:count], holdout=(), canaries=(), rounds={})
    return Truth(clients=states)


def tried(attack, view, truth):
    return run_one(attack, view, truth, profile="smoke", seconds=100, seed=0)


@pytest.mark.parametrize(
    ("attack", "privacy"), [(DpAudit(), RECORD), (CanaryClientAudit(), CLIENT)], ids=["A8", "A9"]
)
def test_the_runs_own_mechanism_is_not_accused_and_known_faults_are(
    lab, truth, attack, privacy, monkeypatch
):
    monkeypatch.setitem(suite_entries.PASSES, "smoke", 2000)
    if privacy.unit == "record":
        pytest.importorskip("opacus")
    found = tried(attack, seen(lab, privacy), truth)
    assert found.outcome == Outcome.RESISTED, found.reason
    assert found.headline.high < 1 < found.positive.low
    shown = found.headline.value * privacy.target_epsilon
    assert found.estimates[1].low == pytest.approx(shown)
    assert shown <= found.estimates[1].value <= found.estimates[1].high
    told = {e.metric: e for e in found.estimates}
    assert {found.headline.nature, told["audited epsilon"].nature} == {"lower bound"}, "neither is exact"
    assert told[WOULD_FAIL].value >= 0.5
    right = told["right guesses"]  # with its n and the number of canaries the bound can be computed again
    assert 0 < right.value <= right.n
    assert "canaries" in right.how
    assert "not for this run's training" in found.headline.how
    assert "the run's settings" in found.title


@pytest.mark.parametrize(
    ("attack", "unit"), [(DpAudit(), "record"), (CanaryClientAudit(), "client")], ids=["A8", "A9"]
)
def test_a_run_that_claims_nothing_of_the_kind_is_not_audited(lab, truth, attack, unit):
    found = tried(attack, seen(lab, PrivacyConfig()), truth)
    assert found.outcome == Outcome.NOT_APPLICABLE
    assert f"claims no {unit}-level differential privacy" in found.reason


def test_the_client_with_fewest_records_is_audited_since_it_samples_most_often(lab, truth):
    exam = DpAudit().exam(truth, seen(lab, RECORD, sampled=True), np.random.default_rng(0))
    assert exam.question == 200


def test_a_run_that_asks_few_of_its_clients_each_round_is_audited_with_as_many(lab, truth):
    """In 24 bits there is room for the noise of 20 clients, but not for that of all 400."""
    some = seen(lab, CLIENT)
    settings = some.settings.changed(
        clients=tuple(f"c{i}" for i in range(400)),
        federate=FederateConfig(rounds=4, participation=0.05),
        protect=ProtectConfig(scheme="masking", bits=24),
    )
    found = tried(CanaryClientAudit(), replace_view(some, settings=settings), truth)
    assert found.outcome == Outcome.RESISTED, found.reason


@pytest.mark.slow
def test_a_claim_of_8_is_within_what_the_canaries_can_show(lab, truth):
    pytest.importorskip("opacus")
    claim = RECORD.model_copy(update={"target_epsilon": 8.0})
    found = tried(DpAudit(), seen(lab, claim, sampled=True), truth)
    assert found.outcome == Outcome.RESISTED
    assert found.estimates[2].metric == "most that these canaries could show"
    assert found.estimates[2].value > 8
    assert found.estimates[3].value < found.estimates[1].value  # without the mechanism's curve


def test_more_noise_than_claimed_leaves_less_of_a_client(lab, truth):
    attack, few = CanaryClientAudit(), seen(lab, CLIENT)
    question = attack.exam(truth, few, np.random.default_rng(0)).question
    strict = seen(lab, CLIENT.model_copy(update={"target_epsilon": 2.5}))
    found = [
        attack.guess(view, question, Budget(), np.random.default_rng(0)).result.lower_bound
        for view in (few, strict)
    ]
    assert found[0] > found[1]


def test_the_positive_control_is_the_same_view_of_a_known_bad_mechanism(lab, truth):
    view, same = CanaryClientAudit().positive(seen(lab, CLIENT), truth)
    assert same is truth
    assert view == replace_view(view, threat_model=KNOWN_BAD)


def test_an_audit_that_would_not_fail_half_of_the_noise_is_inconclusive(lab, truth):
    some = seen(lab, CLIENT, d=20)  # as many canary clients as numbers
    found = tried(CanaryClientAudit(), some, truth)
    assert found.outcome == Outcome.INCONCLUSIVE
    assert "of the claimed noise or less; must be 0.5 or more" in found.reason
    assert "an adapter of 20 numbers has no room for more canaries; train a larger one" in found.reason
    assert found.headline is not None


def test_the_remedy_names_what_bounds_the_number_of_canaries():
    assert more_canaries(1_000, most=10_000).startswith("run a larger profile")
    assert more_canaries(10_000, most=10_000) == "no profile has more canaries"
    assert more_canaries(2_000, most=10_000, room=2_001).startswith("run a larger profile")
    assert more_canaries(2_000, most=10_000, room=2_000).startswith(
        "an adapter of 2000 numbers has no room"
    )


def test_a_claim_with_next_to_no_noise_is_not_audited_since_no_fault_leaves_less(lab, truth):
    claim = RECORD.model_copy(update={"target_epsilon": 1e5})
    found = tried(DpAudit(), seen(lab, claim, sampled=True), truth)
    assert found.outcome == Outcome.NOT_APPLICABLE, found.reason
    assert "takes noise of 0.0074 clips; must be 0.01 or more" in found.reason


def test_an_audit_without_a_view_of_settings_is_not_applicable(truth):
    for attack in (DpAudit(), CanaryClientAudit()):
        with pytest.raises(NotApplicable):
            attack.exam(truth, View(threat_model="toy"), np.random.default_rng(0))
