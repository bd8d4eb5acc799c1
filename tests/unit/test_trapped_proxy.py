"""A proxy made to leak tells which tokens records hold, in sums as in updates; noise alone hides them."""

import numpy as np
import pytest

from attacks.base import Budget, NotApplicable, OutOfTime, replace_view
from attacks.integrity.proxy_traps import TRAPS
from attacks.integrity.trapped_proxy import EVERYBODY, Round, TrappedProxy, chosen, trap
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.errors import ModelError
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.record.view import view
from tests.support.recorded import record_run
from tests.support.tiny import write_records
from threat_models import get as threat_model


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    place = tmp_path_factory.mktemp("trapped")
    return record_run(
        place,
        data={"root": write_records(place / "records", clients=4, records=60)},
        adapter={"rank": 4, "alpha": 8},
        local={"steps": 5, "batch_size": 8},
    )


@pytest.fixture(scope="module")
def world(recorded):
    return view(recorded, threat_model("malicious_proxy")), read_truth(recorded)


def under(seen, scheme="masking", **privacy):
    protect = seen.settings.protect.model_copy(update={"scheme": scheme})
    own = seen.settings.privacy.model_copy(update=privacy)
    return replace_view(seen, settings=seen.settings.changed(protect=protect, privacy=own))


def tried(seen, truth, *, checked=False):
    """What the plainest trap reads; with `checked`, what the best that clients take reads."""
    return run_one(TrappedProxy(checked=checked), seen, truth, profile="standard", seconds=100, seed=0)


@pytest.mark.parametrize("scheme", ["masking", "unsafe_plaintext"])
def test_tokens_are_read_exactly_off_a_masked_sum_as_off_updates_in_the_clear(world, scheme):
    """After five AdamW steps the sum hides which client holds a token, not that some client does."""
    seen, truth = world
    found = tried(under(seen, scheme), truth)
    assert found.outcome == Outcome.SUCCEEDED, found.reason
    assert found.headline.value == 1
    assert found.negative.low <= 0.5 <= found.negative.high


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [8.0, pytest.param(1.0, marks=pytest.mark.nightly)])  # 8 hides less
def test_under_record_level_privacy_the_same_proxy_tells_no_token(world, epsilon):
    pytest.importorskip("opacus")
    seen, truth = world
    private = under(seen, unit="record", target_epsilon=epsilon, target_delta=1e-3)
    found = tried(private, truth)
    assert found.outcome != Outcome.SUCCEEDED, found.reason  # a value just above the bar is inconclusive
    assert found.headline.low < 0.5 < found.headline.high
    assert found.positive.value == 1


def test_under_client_level_privacy_the_sum_is_noise(world):
    seen, truth = world
    fusion = seen.settings.fusion.model_copy(update={"rule": "fedavg"})
    plain = replace_view(seen, settings=seen.settings.changed(fusion=fusion))
    found = tried(under(plain, unit="client", target_delta=1e-3, clip_norm=0.05), truth)
    assert found.outcome == Outcome.RESISTED, found.reason


def test_under_a_sum_there_is_one_vector_and_in_the_clear_one_a_client(world):
    seen, truth = world
    for scheme, who in (("masking", {EVERYBODY}), ("unsafe_plaintext", set(truth.clients))):
        exam = TrappedProxy().exam(truth, under(seen, scheme), np.random.default_rng(0))
        assert isinstance(exam.question, Round)
        assert set(exam.question.seen) == set(exam.answer) == who
        assert all(len(labels) == len(exam.question.tokens) for labels in exam.answer.values())


def test_the_attack_plays_only_traps_that_clients_take_and_names_the_trap(world, tmp_path):
    """`trap` loads the proxy as clients do, and they refuse the plainer ones."""
    seen, truth = world
    by_name = {one.name: one for one in TRAPS}
    for refused in ("zeros", "column"):
        with pytest.raises(ModelError, match="proxy: "):
            trap(seen, seen.settings, by_name[refused], (100, 101), tmp_path)
    found = tried(under(seen), truth, checked=True)
    assert found.headline.how.endswith(("the trap neuron", "the trap faint"))
    assert tried(under(seen), truth).headline.how.endswith("the trap zeros")


def test_where_every_trap_is_refused_it_says_why(world):
    seen, truth = world
    plain = [one for one in TRAPS if one.name in ("zeros", "column")]
    with pytest.raises(NotApplicable, match=r"zeros: proxy: .* a zero embedding.*; column: proxy: "):
        TrappedProxy(plain).exam(truth, seen, np.random.default_rng(0))


def test_a_client_that_does_not_check_its_proxy_is_read_by_the_plainest_trap(world):
    seen, truth = world
    attack = TrappedProxy(checked=False)
    exam = attack.exam(truth, under(seen), np.random.default_rng(0))
    assert exam.question.trap.name == "zeros"
    guess = attack.guess(seen, exam.question, Budget(), np.random.default_rng(0))
    assert attack.score(guess, exam.answer)[0].value == 1


def test_half_of_the_tokens_are_in_the_records_and_half_in_none():
    items = {"a": [Encoded(ids=(1, *range(10, 30), 2), response_start=3)]}
    tokens = chosen(items, vocabulary=100, most=16, rng=np.random.default_rng(0))
    assert len(tokens) == len(set(tokens)) == 16
    assert sum(10 <= t < 30 for t in tokens) == 8
    with pytest.raises(NotApplicable, match="at least two must be in records and two not"):
        chosen(items, vocabulary=4, most=16, rng=np.random.default_rng(0))


@pytest.mark.parametrize("adapter", [{"kind": "ffa"}, {"kind": "core"}, {"blocks": [1]}], ids=str)
def test_where_block_0_trains_no_columns_no_trap_is_built_and_it_says_so(tmp_path, adapter):
    folder = record_run(tmp_path, clients=3, adapter={"rank": 2, **adapter}, federate={"rounds": 1})
    seen, truth = view(folder, threat_model("malicious_proxy")), read_truth(folder)
    with pytest.raises(NotApplicable, match="no trap is built"):
        TrappedProxy().exam(truth, seen, np.random.default_rng(0))


def test_a_client_sets_no_traps(recorded):
    model = threat_model("lying_clients")
    seen, truth = view(recorded, model), read_truth(recorded, honest_besides=1)
    with pytest.raises(NotApplicable, match="no server is corrupted"):
        TrappedProxy().exam(truth, seen, np.random.default_rng(0))


def test_the_smallest_suite_leaves_it_out():
    assert not TrappedProxy().info.smoke


def test_seconds_that_end_while_clients_check_the_proxy_are_no_refusal_of_theirs(world, monkeypatch):
    def ring(_model):
        raise OutOfTime(3)

    monkeypatch.setattr("fedproxy_secure.proxy_intake.model.check_finite", ring)
    found = tried(*world, checked=True)
    assert found.outcome == Outcome.INCONCLUSIVE
    assert found.reason == "ran out of its 3 s in the attack itself"
