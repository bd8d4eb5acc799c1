"""Each threat model's view holds what its parties sent, received or held, and nothing else."""

from dataclasses import fields, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from attacks.reconstruction.vectors import vectors
from fedproxy_secure.config import (
    AdapterConfig,
    FederateConfig,
    FusionConfig,
    LocalConfig,
    PrivacyConfig,
    ProtectConfig,
)
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.record.contribution import contribution
from fedproxy_secure.record.private import PrivateRound, PrivateState, read_private
from fedproxy_secure.record.transcript import STATE, read_events
from fedproxy_secure.record.view import PublicSettings, Sums, View, view
from tests.support.recorded import prepared, record_run
from tests.support.tampering import federate_tampered
from threat_models import ThreatModel, get

FEDAVG = {"rule": "fedavg"}
NETWORK = ThreatModel(
    name="meddler",
    title="active network",
    network=True,
    active=True,
    knowledge="proxy only",
    capabilities=(),
    assumptions=(),
    non_goals=(),
)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Four clients, three a round, three rounds, masked."""
    return record_run(tmp_path_factory.mktemp("masked"), federate={"participation": 0.75}, fusion=FEDAVG)


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """Four clients, three rounds, every update in the clear."""
    return record_run(
        tmp_path_factory.mktemp("clear"), protect={"scheme": "unsafe_plaintext"}, fusion=FEDAVG
    )


def seen(run, name):
    return view(run, get(name), llm="the LLM")


def transcript(run):
    return run / "federation" / "transcript"


def states(run):
    return {e.round: e for e in read_events(transcript(run)) if e.kind == STATE}


def took_part(run, client):
    return {e.round for e in read_events(transcript(run)) if e.kind == "train" and e.receiver == client}


def held(one):
    """Names of the fields of a view that hold anything, besides the settings, those of the API included."""
    there = {f.name for f in fields(one) if getattr(one, f.name) not in (None, False, {})}
    return there - {"settings", "api_policy"}


def test_a_server_under_masking_sees_sums_and_masked_words_and_no_update(masked):
    one = seen(masked, "server")
    assert held(one) == {"threat_model", "adapters", "sums", "cohorts", "masked", "proxy", "llm"}
    assert sorted(one.adapters) == [0, 1, 2, 3]
    assert one.surfaces == {"AGG", "MR", "MOD"}
    for number, state in states(masked).items():
        clients = state.values["clients"]
        assert one.sums[number].clients == one.cohorts[number] == tuple(clients)
        assert len(clients) == 3
        updates = [read_private(transcript(masked), c).rounds[number].update for c in clients]
        np.testing.assert_allclose(one.aggregate(number), np.mean(updates, axis=0), atol=1e-6)
    assert {r for r, _ in one.masked} == {0, 1, 2}
    assert all(w.dtype == np.uint8 for w in one.masked.values())


def test_a_server_in_the_clear_sees_every_update_as_it_was(clear):
    one = seen(clear, "server")
    assert held(one) == {"threat_model", "adapters", "updates", "cohorts", "proxy", "llm"}
    assert one.surfaces == {"IND", "AGG", "MR", "MOD"}
    assert sorted(one.updates) == [(r, f"c{i}") for r in range(3) for i in range(4)]
    for (number, client), update in one.updates.items():
        expected = read_private(transcript(clear), client).rounds[number].update
        assert update.tobytes() == expected.tobytes()


def test_a_client_sees_its_own_state_the_adapters_it_received_and_the_final_one(masked):
    one = seen(masked, "client")
    assert held(one) == {"threat_model", "adapters", "cohorts", "own", "proxy", "api", "active"}
    assert list(one.own) == ["c0"]
    mine = took_part(masked, "c0")
    assert len(mine) < 3  # or the claim is empty
    assert set(one.adapters) == mine | {3}
    assert set(one.cohorts) == mine
    assert one.adapters[3].tobytes() == states(masked)[2].arrays()["adapter"].tobytes()
    assert not one.sums


def test_a_client_in_the_clear_sees_no_update_of_others(clear):
    one = seen(clear, "client")
    assert held(one) == {"threat_model", "adapters", "own", "proxy", "api", "active"}
    assert sorted(one.adapters) == [0, 1, 2, 3]
    np.testing.assert_allclose(
        one.aggregate(1),
        np.mean([read_private(transcript(clear), f"c{i}").rounds[1].update for i in range(4)], axis=0),
        atol=1e-6,
    )


def test_colluders_pool_what_they_hold_and_lend_the_server_their_state(masked, clear):
    two = seen(masked, "colluding_clients")
    assert list(two.own) == ["c0", "c1"]
    assert set(two.adapters) == took_part(masked, "c0") | took_part(masked, "c1") | {3}
    with_server = seen(clear, "server_with_clients")
    assert list(with_server.own) == ["c0", "c1"]
    assert {client for _, client in with_server.updates} == {"c2", "c3"}
    assert {client for _, client in seen(masked, "server_with_clients").masked} <= {"c2", "c3"}


def test_an_eavesdropper_sees_messages_and_what_they_give_but_neither_llm_nor_any_state(masked, clear):
    one = seen(masked, "network")
    assert held(one) == {"threat_model", "adapters", "sums", "cohorts", "masked", "proxy"}
    assert len(seen(clear, "network").updates) == 12


def test_a_user_of_the_api_holds_the_fused_llm_to_query_and_nothing_else(masked, clear):
    for run in (masked, clear):
        one = seen(run, "api_user")
        assert held(one) == {"threat_model", "api"}
        assert one.settings is None
        assert one.surfaces == {"API"}


def test_settings_in_a_view_say_how_the_run_works_and_not_where_anything_lies(masked):
    for name in ("server", "client", "network"):
        settings = seen(masked, name).settings
        assert settings.federate.participation == 0.75
        assert settings.d == len(seen(masked, name).adapters[3])
        assert settings.protect.keys is None
        assert settings.privacy.ledger is None
        assert str(masked.parent) not in repr(settings)


def test_only_an_active_threat_model_may_deviate(masked):
    assert not seen(masked, "server").active
    assert seen(masked, "active_server").active
    assert "ACT" in seen(masked, "active_server").surfaces


def test_corrupting_more_clients_than_there_are_is_refused(masked):
    many = replace(get("colluding_clients"), clients=5)
    with pytest.raises(RunFolderError, match="corrupts 5 clients; this run has 4"):
        view(masked, many)


def test_a_run_that_was_not_recorded_is_refused(tmp_path):
    for name in ("server", "api_user"):
        with pytest.raises(RunFolderError, match="holds no transcript; run with --record"):
            seen(tmp_path, name)


def test_what_colluders_know_is_taken_off_a_sum(masked):
    one = seen(masked, "server_with_clients")
    found = {r: (clients, vector) for r, clients, vector in vectors(one, most=9)}
    assert found
    for number, (clients, vector) in found.items():
        honest = [c for c in clients if c not in ("c0", "c1")]
        rest = [read_private(transcript(masked), c).rounds[number].update for c in honest]
        np.testing.assert_allclose(vector, np.mean(rest, axis=0), atol=1e-6)


def test_a_client_takes_its_own_part_off_what_a_round_moved_by_its_true_cohort(tmp_path):
    run = record_run(tmp_path, federate={"participation": 0.75, "rounds": 2}, fusion=FEDAVG)
    two = view(run, get("colluding_clients"))
    rounds = [r for r in two.cohorts if {r, r + 1} <= set(two.adapters)]
    found = {r: (clients, vector) for r, clients, vector in vectors(two, most=9)}
    assert rounds
    for number in rounds:
        clients, vector = found[number]
        assert clients == tuple(states(run)[number].values["clients"])
        honest = [c for c in clients if c not in ("c0", "c1")]
        rest = [read_private(transcript(run), c).rounds[number].update for c in honest]
        np.testing.assert_allclose(vector, np.mean(rest, axis=0), atol=1e-5)


def test_a_client_that_trained_and_dropped_out_is_not_taken_off_the_sum(masked):
    one = seen(masked, "server_with_clients")
    number, sums = next((r, s) for r, s in one.sums.items() if "c0" not in s.clients)
    ghost = {0: read_private(transcript(masked), "c0").rounds[min(took_part(masked, "c0"))]}
    haunted = replace(one, own={"c0": replace(one.own["c0"], rounds={number: ghost[0]})})
    (vector,) = (v for r, _, v in vectors(haunted, most=9) if r == number)
    np.testing.assert_allclose(vector, sums.segments["update"] / 3, atol=1e-6)


def made_settings(clients=("a", "b"), **changes):
    made = {
        "seed": 0,
        "d": 2,
        "adapter": AdapterConfig(),
        "local": LocalConfig(),
        "fusion": FusionConfig(),
        "federate": FederateConfig(),
        "protect": ProtectConfig(),
        "privacy": PrivacyConfig(),
        "max_tokens": 8,
        "blocks": None,
    }
    return PublicSettings(**{**made, **changes}, clients=clients)


def test_more_vectors_than_asked_for_are_thinned_evenly():
    adapters = {r: np.full(2, r, dtype=np.float32) for r in range(11)}
    one = View(threat_model="x", settings=made_settings(), adapters=adapters)
    assert [r for r, _, _ in vectors(one, most=3)] == [0, 4, 9]


# what clients sent


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": {"rule": "ties"}},
        {"fusion": {"rule": "h_ties"}, "protect": {"weights": "self"}},
        {"fusion": FEDAVG, "protect": {"clip": 1e-3}},
    ],
    ids=["trimmed", "weighed", "clipped"],
)
def test_what_clients_are_said_to_have_added_makes_up_the_sum(tmp_path, changes):
    run = record_run(tmp_path, clients=3, federate={"rounds": 2}, **changes)
    one = seen(run, "server")
    assert sorted(one.sums) == [0, 1]
    for number, sums in one.sums.items():
        clients = [read_private(transcript(run), c) for c in sums.clients]
        parts = [contribution(c, number, one.settings, one.adapters) for c in clients]
        np.testing.assert_allclose(sum(parts), sums.segments["update"], atol=1e-6)
        trained = sum(c.rounds[number].update for c in clients)
        assert np.abs(trained - sums.segments["update"]).max() > 1e-4


@pytest.mark.parametrize("unit", ["none", "client"])
def test_colluders_take_off_what_they_sent_and_not_what_they_trained(unit):
    rng, names = np.random.default_rng(0), ("a", "b", "c", "d")
    updates = {n: rng.normal(size=1000).astype(np.float32) for n in names}
    if unit == "none":
        settings = made_settings(names, fusion=FusionConfig(rule="ties"))
        sent = {n: keep_largest(u, 0.2) for n, u in updates.items()}
    else:
        privacy = PrivacyConfig(unit="client", clip_norm=0.5)
        settings = made_settings(names, fusion=FusionConfig(rule="fedavg"), privacy=privacy)
        sent = {n: u / np.linalg.norm(u) / 2 for n, u in updates.items()}
    one = View(
        threat_model="x",
        settings=settings,
        sums={0: Sums(clients=names, segments={"update": sum(sent.values())})},
        cohorts={0: names},
        own={n: state_of(n, updates[n]) for n in "ab"},
    )
    ((_, clients, vector),) = vectors(one, most=9)
    assert clients == names
    np.testing.assert_allclose(vector, (sent["c"] + sent["d"]) / 2, atol=1e-5)


def test_a_client_that_saw_no_cohort_takes_its_part_off_as_many_clients_as_the_settings_say():
    names, update, rest = ("a", "b", "c", "d"), np.ones(2, np.float32), np.array([4, -2], np.float32)
    settings = made_settings(
        names,
        fusion=FusionConfig(rule="fedavg"),
        federate=FederateConfig(participation=0.5),
        protect=ProtectConfig(scheme="unsafe_plaintext"),
    )
    adapters = {0: np.zeros(2, np.float32), 1: (update + rest) / 2}
    one = View(threat_model="x", settings=settings, adapters=adapters, own={"a": state_of("a", update)})
    ((_, clients, vector),) = vectors(one, most=9)
    assert clients == names  # who the other is was not seen
    np.testing.assert_allclose(vector, rest, atol=1e-6)


def state_of(name, update):
    done = PrivateRound(update=update, used=np.arange(1))
    return PrivateState(client=name, train=(), holdout=(), canaries=(), rounds={0: done})


def test_a_server_decrypts_every_update_under_ckks_with_a_clients_help_and_none_without(tmp_path):
    pytest.importorskip("tenseal")
    run = record_run(tmp_path, clients=3, federate={"rounds": 1}, protect={"scheme": "ckks"})
    alone, helped = seen(run, "server"), seen(run, "active_server_with_clients")
    assert (alone.updates, list(helped.own), list(helped.updates)) == ({}, ["c0"], [(0, "c1"), (0, "c2")])
    assert "IND" in helped.surfaces - alone.surfaces
    own = contribution(helped.own["c0"], 0, helped.settings, helped.adapters)
    total = sum(helped.updates.values()) + own
    np.testing.assert_allclose(total, helped.sums[0].segments["update"], atol=1e-5)
    for name in ("client", "colluding_clients", "network"):  # without the messages, or without a key
        assert not seen(run, name).updates


# tampering


@pytest.mark.parametrize(("model", "both_ways"), [(get("active_server"), False), (NETWORK, True)])
def test_the_server_changes_what_it_sends_and_the_network_what_flows_both_ways(tmp_path, model, both_ways):
    job, proxy, initial = prepared(
        tmp_path, protect={"scheme": "unsafe_plaintext"}, federate={"rounds": 1}, fusion=FEDAVG
    )
    kinds = set()

    def change(kind, client, content):
        kinds.add(kind)
        if kind == "train.reply" and client == "c1":
            update = content.array_records["vectors"]["update"].numpy()
            vectors = ArrayRecord({"update": Array(np.zeros_like(update))})
            return RecordDict({**content, "vectors": vectors})
        return content

    place = tmp_path / "seed-0" / "federation"
    federate_tampered(job, proxy, initial, place, model, change)
    assert ("train.reply" in kinds) == both_ways
    assert {"query.setup", "train"} <= kinds
    arrived = view(tmp_path / "seed-0", get("server")).updates[0, "c1"]
    assert np.any(arrived) != both_ways
    assert np.any(read_private(place / "transcript", "c1").rounds[0].update)
