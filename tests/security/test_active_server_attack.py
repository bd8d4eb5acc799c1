"""A10: a cheating server gets an abort from installed clients, a client's vector from known-bad ones."""

from functools import cache

import numpy as np
import pytest

from attacks import white_box
from attacks.base import KNOWN_BAD, Budget, NotApplicable, replace_view
from attacks.integrity.active_server import SecaggActive
from attacks.integrity.inconsistency import CANARY_BIT, SUPPRESSION, played_round, silenced
from attacks.integrity.protocol_attempts import asked
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.config import ProtectConfig
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.record.view import view
from tests.support.recorded import record_run
from threat_models import get as threat_model

PROTOCOL_ATTEMPTS = {
    "server: plays all of a client's peers",
    "server: shows two sets of survivors",
    "server: lowers the threshold",
    "server: broadcasts another adapter to one client",
}


def seen_by_the_server(folder, **settings):
    """An active server's view of a masked run, and the truth."""
    seed = record_run(folder, **settings)
    return view(seed, threat_model("active_server")), read_truth(seed)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a masked run of four clients."""
    return record_run(tmp_path_factory.mktemp("active"))


@pytest.fixture(scope="module")
def world(recorded):
    return view(recorded, threat_model("active_server")), read_truth(recorded)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """What the server sees of a run whose adapters have A frozen, by their kind; one run for each kind."""

    @cache
    def seen(kind):
        return seen_by_the_server(
            tmp_path_factory.mktemp(kind), clients=3, adapter={"rank": 2, "kind": kind}
        )

    return seen


def play(world, attempt, *, checked, mask=None):
    seen, truth = world
    records = {n: s.train[:4] for n, s in truth.clients.items()}
    with white_box.opened(seen) as box:
        silent = silenced(box, attempt) if mask is None else mask
        return silent, played_round(
            box, seen.settings, records, seen.adapters[1], silent, checked=checked, budget=Budget()
        )


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_others_without_an_adapter_send_nothing_and_the_sum_is_the_victims_update(world):
    _, (total, own) = play(world, SUPPRESSION, checked=False)
    assert np.linalg.norm(own) > 0
    np.testing.assert_allclose(total, own, atol=1e-6)


def test_one_silenced_component_reads_the_victim_there_and_nowhere_else(world):
    mask, (total, own) = play(world, CANARY_BIT, checked=False)
    assert 0 < mask.sum() < 0.05 * len(mask)
    assert cosine(total[mask], own[mask]) > 0.999
    assert cosine(total[~mask], own[~mask]) < 0.99


def test_one_adapter_for_all_lets_the_server_read_a_sum_alone(world):
    nothing = np.zeros_like(world[0].adapters[0], dtype=bool)
    _, (total, own) = play(world, SUPPRESSION, checked=True, mask=nothing)
    assert cosine(total, own) < 0.99


@pytest.mark.parametrize("attempt", [SUPPRESSION, CANARY_BIT])
def test_clients_that_compare_the_broadcast_end_the_round(world, attempt):
    with pytest.raises(ProtocolAborted, match="broadcast adapter: differs from this client's own"):
        play(world, attempt, checked=True)


@pytest.mark.parametrize("kind", ["ffa", "core"])
def test_where_a_is_frozen_others_cannot_be_silenced(frozen, kind):
    _, (total, own) = play(frozen(kind), SUPPRESSION, checked=False)
    assert cosine(total, own) < 0.99


def test_every_attempt_on_installed_clients_fails_and_every_one_on_known_bad_clients_succeeds(world):
    seen, truth = world
    found = run_one(SecaggActive(), seen, truth, profile="smoke", seconds=60, seed=0)
    assert found.outcome == Outcome.RESISTED, found.reason
    assert found.headline.value == 0
    assert found.headline.n >= 15
    assert found.positive.value == 1
    assert found.positive.n == 8
    assert found.negative.value == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "installed", "known_bad"),
    [
        ("active_network", 8, 3),
        ("active_server_with_clients", 19, 9),
        pytest.param("sybils", 5, 5, marks=pytest.mark.slow),
        pytest.param("malicious_proxy", 6, 6, marks=pytest.mark.slow),
        pytest.param("parallel_server", 10, 10, marks=pytest.mark.slow),
    ],
)
def test_every_adversary_that_deviates_is_resisted_and_succeeds_where_a_check_is_missing(
    recorded, name, installed, known_bad
):
    """A known limit of the self test is no attempt: the threat model says that it is not covered."""
    model = threat_model(name)
    seen, truth = view(recorded, model), read_truth(recorded, honest_besides=model.clients)
    found = run_one(SecaggActive(), seen, truth, profile="smoke", seconds=280, seed=0)
    assert found.outcome == Outcome.RESISTED, found.reason
    assert (found.headline.value, found.headline.n) == (0, installed)
    assert (found.positive.value, found.positive.n) == (1, known_bad)
    assert found.negative.value == 0


@pytest.mark.slow
def test_beyond_the_smallest_profile_an_active_server_also_asks_for_what_no_policy_says(world):
    seen, _ = world
    tried = SecaggActive().guess(seen, {}, Budget(profile="standard"), np.random.default_rng(0))
    assert "active_server: plaintext of clients whose policy says masking" in tried.protocol
    assert not any(tried.protocol.values())


def test_a_liar_and_a_client_have_no_masking_to_cheat(recorded):
    for name in ("lying_clients", "client"):
        model = threat_model(name)
        seen, truth = view(recorded, model), read_truth(recorded, honest_besides=1)
        with pytest.raises(NotApplicable, match="no server is corrupted in this view"):
            SecaggActive().exam(truth, seen, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("active_server", ("installed", "active_server")),
        ("known-bad", ("known-bad", "active_server")),
        ("known-bad sybils", ("known-bad", "sybils")),
        ("nobody", ("nobody", "active_server")),
        ("somebody_else_s", ("installed", "active_server")),
    ],
)
def test_a_view_says_who_is_attacked_by_whom(name, who):
    assert asked(name) == who


def test_the_attempts_are_those_of_the_literature(world):
    seen, truth = world
    exam = SecaggActive().exam(truth, seen, np.random.default_rng(0))
    tried = SecaggActive().guess(seen, exam.question, Budget(), np.random.default_rng(0))
    assert set(tried.protocol) > PROTOCOL_ATTEMPTS
    assert set(tried.read) == {SUPPRESSION, CANARY_BIT}
    assert all("broadcast adapter" in why for why in tried.read.values())


def test_a_client_that_does_not_compare_the_broadcast_makes_the_attack_succeed(world, monkeypatch):
    monkeypatch.setattr("attacks.integrity.inconsistency.TermsPolicy.check", lambda *_, **__: None)
    seen, truth = world
    found = run_one(SecaggActive(), seen, truth, profile="smoke", seconds=60, seed=0)
    assert found.outcome == Outcome.SUCCEEDED


def test_with_frozen_a_known_bad_clients_are_tried_by_the_protocols_attempts_alone(frozen):
    seen, truth = frozen("core")
    exam = SecaggActive().exam(truth, replace_view(seen, threat_model=KNOWN_BAD), np.random.default_rng(0))
    assert exam.question == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"masked": {}, "sums": {}}, "no server is corrupted in this view"),
        ({"scheme": "unsafe_plaintext"}, "sees every update without cheating"),
        ({"scheme": "ckks"}, "by design"),
    ],
)
def test_where_there_is_nothing_to_cheat_for_the_attack_says_so(world, change, reason):
    seen, truth = world
    if "scheme" in change:
        seen = replace_view(seen, settings=seen.settings.changed(protect=ProtectConfig(**change)))
    else:
        seen = replace_view(seen, **change)
    with pytest.raises(NotApplicable, match=reason):
        SecaggActive().exam(truth, seen, np.random.default_rng(0))
