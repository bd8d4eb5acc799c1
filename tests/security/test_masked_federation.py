"""Masked rounds over Flower messages: the sums as in the clear, drop-outs, resumed runs, the ledger."""

import json
from functools import cache
from statistics import median

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedproxy_secure.errors import RoundAborted, RunFolderError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate, with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.store import writing
from fedproxy_secure.protect.secure_sum.terms import first_clip
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.runtime.files.names import LEAKAGE
from fedproxy_secure.secagg.provision import provision
from fedproxy_secure.secagg.terms import Terms
from tests.support.masked_rounds import (
    STEPS,
    Wrapped,
    journal_of,
    kept_in,
    masked_world,
    move,
    serve_with,
    with_,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return masked_world(tmp_path_factory)


@pytest.fixture(scope="module")
def ended(world):
    """The state that a run of `with_` ends in, from one run for all who ask for the same."""
    job, folder, initial = world

    @cache
    def end(rule="fedavg", rounds=2, **protect):
        return federate(with_(job, rule, rounds, **protect), folder, initial)

    return end


@pytest.fixture(scope="module")
def updates(world):
    """What each client makes in round 0, float32 [d]."""
    job, folder, initial = world
    plain = with_(job, rounds=1, scheme="unsafe_plaintext")
    with proxy_store.offered_on_this_host(folder):
        clients = (build_client(with_proxy(plain, folder), i, folder) for i in range(5))
        return [client.train(round=0, start=initial.adapter).update for client in clients]


def test_masked_fedavg_is_fedavg(world, ended):
    plain, masked = ended(scheme="unsafe_plaintext"), ended()
    np.testing.assert_allclose(move(world, masked), move(world, plain), atol=1e-6)


def test_fedavg_and_h_ties_under_ckks_are_those_under_masking(world, ended):
    pytest.importorskip("tenseal")
    for rule in ("fedavg", "h_ties"):
        masked, encrypted = ended(rule, rounds=1), ended(rule, rounds=1, scheme="ckks")
        difference = np.linalg.norm(encrypted.adapter - masked.adapter)
        assert difference < 1e-3 * np.linalg.norm(move(world, masked))


@pytest.mark.parametrize(("scheme", "message"), [("masking", "MaskedInput"), ("ckks", "Encrypted")])
def test_a_rounds_line_says_how_many_bytes_a_clients_vector_takes(world, tmp_path, scheme, message):
    if scheme == "ckks":
        pytest.importorskip("tenseal")
    told = []
    serve_with(world, with_(world[0], rounds=1, scheme=scheme), run_folder=tmp_path, on_round=told.append)
    rows = map(json.loads, (tmp_path / LEAKAGE).read_text().splitlines())
    (sent,) = (r for r in rows if r["message"] == message)
    assert told[0]["vector_bytes"] == pytest.approx(sent["bytes"] / sent["count"], rel=0.05)


@pytest.mark.parametrize("bits", [16, 24])
def test_smaller_rings_come_as_close_as_their_step_says(world, ended, bits):
    plain, masked = ended(rounds=1, scheme="unsafe_plaintext"), ended(rounds=1, bits=bits)
    step = first_clip(world[0]) / ((2 ** (bits - 1) - 1) // 5)
    assert np.abs(masked.adapter - plain.adapter).max() <= step + 1e-6


@pytest.mark.parametrize("granularity", ["block", "coordinate"])
@pytest.mark.parametrize("weights", ["uniform", "self"])
def test_masked_h_ties_moves_like_h_ties(world, ended, granularity, weights):
    plain = move(world, ended("h_ties", scheme="unsafe_plaintext"))
    masked = move(world, ended("h_ties", granularity=granularity, weights=weights))
    cosine = plain @ masked / np.linalg.norm(plain) / np.linalg.norm(masked)
    assert cosine > 0.9


def gram_job(world, rounds=1):
    pytest.importorskip("tenseal")
    return with_(world[0], "h_ties", rounds=rounds, granularity="coordinate", weights="encrypted_gram")


@pytest.fixture(scope="module")
def with_cosines(world, tmp_path_factory):
    """The state that a round with encrypted cosines ends in, and its folder."""
    _, folder, initial = world
    place = tmp_path_factory.mktemp("cosines")
    return federate(gram_job(world), folder, initial, run_folder=place), place


def test_encrypted_cosines_bring_a_round_closer_to_h_ties_than_weights_without_them(
    world, ended, with_cosines, monkeypatch
):
    plain = ended("h_ties", rounds=1, scheme="unsafe_plaintext")
    uniform = ended("h_ties", rounds=1, granularity="coordinate")
    encrypted, _ = with_cosines
    _, folder, initial = world

    def distance(state):
        return float(np.linalg.norm(state.adapter - plain.adapter))

    # a round has one sketch; of 27 others, the distances were .17 to .54, .36 in the mean
    others = []
    for mark in (b"1", b"2"):
        monkeypatch.setattr(Terms, "sketch_seed", lambda terms, mark=mark: terms.broadcast_sha256 + mark)
        others.append(federate(gram_job(world), folder, initial))
    assert others[0].adapter.tobytes() != others[1].adapter.tobytes()
    assert median(map(distance, [encrypted, *others])) < 0.8 * distance(uniform)


def test_the_ledger_of_encrypted_cosines_names_them(with_cosines):
    _, place = with_cosines
    lines = [json.loads(line) for line in (place / "ledger.jsonl").read_text().splitlines()]
    (products,) = [line for line in lines if line["message"] == "GramProducts"]
    assert products["to"] == "clients"
    assert "cosine" in products["reveals"]
    assert sum(line["message"] == "EncryptedSketch" for line in lines) == 1
    vectors = {line["message"] for line in lines if line.get("vector")}
    assert vectors == {"Proxy", "Broadcast", "EncryptedSketch", "GramProducts", "MaskedInput"}


def test_a_client_shown_other_cosines_is_not_in_the_sum(world, tmp_path):
    class Lying(ClientApp):
        def __call__(self, message, context):
            if message.metadata.message_type == "query.gram_weigh" and context.node_id == 3:
                record = message.content.config_records["protocol"]
                turned = {**record, "products": list(record["products"])[::-1]}
                message.content = RecordDict({"protocol": ConfigRecord(turned)})
            return client_app.app(message, context)

    serve_with(world, gram_job(world), Lying(), run_folder=tmp_path)
    (line,) = (tmp_path / "rounds.jsonl").read_text().splitlines()
    names = [c.name for c in world[0].clients]
    assert json.loads(line)["participants"] == [names[0], *names[2:]]


def test_a_round_with_encrypted_cosines_is_summed_once(world):
    """A server that makes up cosines would have the same updates summed under weights of its choice."""
    job, (_, folder, initial) = gram_job(world), world
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        serve(InProcessGrid(Wrapped(), 5), keyed, folder, initial)
        with pytest.raises(RoundAborted, match="products: 0 clients opened the same cosines"):
            serve(InProcessGrid(Wrapped(), 5), keyed, folder, initial)


def test_clients_that_forget_the_attempt_between_its_steps_abort_it(world):
    def drop(message, context):
        if message.metadata.message_type == "query.gram_sketch":
            with writing(journal_of(context)) as database:
                database.execute("DELETE FROM kept")

    with pytest.raises(RoundAborted, match="products: 0 clients opened the same cosines"):
        serve_with(world, gram_job(world), Wrapped(sees=drop))


def test_conflict_of_a_masked_round_holds_the_next_one_back(world, ended):
    job, folder, initial = world
    free = with_(job, "h_ties")
    assert free.fusion.pcr_lambda == 0
    changed = free.changed(fusion=free.fusion.model_copy(update={"pcr_lambda": 1e3}))
    held = np.linalg.norm(move(world, federate(changed, folder, initial)))
    assert held < 0.99 * np.linalg.norm(move(world, ended("h_ties")))


@pytest.mark.parametrize("step", STEPS)
def test_a_client_lost_at_any_step_leaves_the_exact_mean_of_the_survivors(world, updates, step):

    def lost(kind, node):
        return kind == step and node == 4

    masked = serve_with(world, with_(world[0], rounds=1), Wrapped(fails=lost))
    survivors = range(5) if step in STEPS[3:] else (0, 1, 3, 4)
    expected = [updates[i] for i in survivors]
    np.testing.assert_allclose(move(world, masked), np.mean(expected, axis=0), atol=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_too_many_lost_aborts_the_round_and_keeps_nothing(world, tmp_path, step):
    job, _, _ = world

    def lost(kind, node):
        return kind == step and node in (3, 4)

    with pytest.raises(RoundAborted, match="3 of 5 clients; must be >= 4"):
        serve_with(world, with_(job, rounds=1), Wrapped(fails=lost), run_folder=tmp_path)
    assert not (tmp_path / "state.safetensors").exists()
    assert not (tmp_path / "rounds.jsonl").exists()


def test_an_aborted_round_says_whose_answers_could_not_be_used(world, tmp_path):
    job, *_ = world

    class Nonsense(Wrapped):
        def __call__(self, message, context):
            if message.metadata.message_type == "query.mask" and context.node_id in (3, 4):
                return Message(RecordDict(), reply_to=message)
            return super().__call__(message, context)

    with pytest.raises(RoundAborted, match=r"must be >= 4; left out: c1 \(.*\), c2 \(") as caught:
        serve_with(world, with_(job, rounds=1), Nonsense(), run_folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_an_aborted_round_can_be_tried_again(world, ended, tmp_path):
    job, folder, initial = world

    def lost(kind, node):
        return kind == "query.mask" and node in (3, 4)

    with pytest.raises(RoundAborted):
        serve_with(world, with_(job), Wrapped(fails=lost), run_folder=tmp_path)
    again = federate(with_(job), folder, initial, run_folder=tmp_path)
    unbroken = ended()
    assert again.adapter.tobytes() == unbroken.adapter.tobytes()


class Unheard(Wrapped):
    """One client is away when updates are sent; of those who help to unmask, the server hears too few."""

    def __init__(self):
        super().__init__(fails=lambda kind, node: kind == "query.mask" and node == 4)

    def __call__(self, message, context):
        reply = super().__call__(message, context)
        if message.metadata.message_type == "query.unmask" and context.node_id in (2, 3):
            return Message(RecordDict(), reply_to=message)
        return reply


def opened_and_not_saved(world, folder, **protect):
    """Abort a round while it is unmasked; return the job, whose clients keep keys and journals."""
    job = with_(world[0], rounds=1, **protect)
    provision([client.name for client in job.clients], folder / "keys")
    job = job.changed(protect=job.protect.model_copy(update={"keys": str(folder / "keys")}))
    with pytest.raises(RoundAborted):
        serve_with(world, job, Unheard(), run_folder=folder / "run")
    assert not (folder / "run" / "state.safetensors").exists()
    return job


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_a_round_that_was_unmasked_and_not_saved_goes_on_without_those_who_were_not_in_it(
    world, tmp_path, scheme
):
    """Its clients unmask it for no others; who was away in the first attempt is back in the second."""
    job = opened_and_not_saved(world, tmp_path, scheme=scheme)
    again = federate(job, world[1], world[2], run_folder=tmp_path / "run")
    (line,) = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert len(json.loads(line)["participants"]) == 4
    alone = serve_with(world, with_(world[0], rounds=1, scheme=scheme), Wrapped(fails=Unheard().fails))
    if scheme == "masking":
        assert again.adapter.tobytes() == alone.adapter.tobytes()
    else:
        np.testing.assert_allclose(again.adapter, alone.adapter, atol=1e-5)


def test_where_one_it_was_unmasked_for_is_gone_the_abort_says_what_can_be_done(world, tmp_path):
    job = opened_and_not_saved(world, tmp_path)
    gone = Wrapped(fails=lambda kind, node: kind == "query.setup" and node == 2)
    with pytest.raises(RoundAborted, match=r"included c0, now not connected, .* another seed$"):
        serve_with(world, job, gone, run_folder=tmp_path / "run")


def test_a_masked_run_resumed_after_a_kill_ends_like_an_unbroken_one_bit_for_bit(world, ended, tmp_path):
    job, folder, initial = world
    job = with_(job, "h_ties", rounds=3)
    whole = ended("h_ties", rounds=3)
    federate(with_(job, "h_ties", rounds=2), folder, initial, run_folder=tmp_path)
    resumed = federate(job, folder, initial, run_folder=tmp_path)
    assert resumed.adapter.tobytes() == whole.adapter.tobytes()
    assert resumed.clip is not None


def test_a_run_whose_weights_rest_on_what_clients_remember_is_not_resumed_to_another_result(
    world, tmp_path
):
    job, folder, initial = world
    federate(with_(job, "h_ties", rounds=2, weights="self"), folder, initial, run_folder=tmp_path)
    with pytest.raises(RunFolderError, match=r"protect\.weights=self: cannot resume from round 2"):
        federate(with_(job, "h_ties", rounds=3, weights="self"), folder, initial, run_folder=tmp_path)


def test_weights_that_rest_on_journals_survive_a_kill_where_the_journals_do(world, ended, tmp_path):
    job, folder, initial = world
    job = with_(job, "h_ties", rounds=3, weights="self")

    def keyed(name):
        provision([client.name for client in job.clients], tmp_path / name)
        return job.changed(protect=job.protect.model_copy(update={"keys": str(tmp_path / name)}))

    seen = []

    def killed_after_two(metrics):
        seen.append(metrics)
        if len(seen) == 2:
            raise KeyboardInterrupt

    whole = federate(keyed("whole"), folder, initial)
    cut = keyed("cut")
    with pytest.raises(KeyboardInterrupt):
        federate(cut, folder, initial, run_folder=tmp_path / "run", on_round=killed_after_two)
    resumed = federate(cut, folder, initial, run_folder=tmp_path / "run")
    assert resumed.adapter.tobytes() == whole.adapter.tobytes()
    uniform = ended("h_ties", rounds=3)
    assert resumed.adapter.tobytes() != uniform.adapter.tobytes()


def test_the_ledger_says_what_flowed(world, tmp_path):
    job, folder, initial = world
    federate(with_(job, "h_ties", rounds=1), folder, initial, run_folder=tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    to_server = {line["message"] for line in lines if line["to"] == "server"}
    assert to_server == {
        "Advertise",
        "Shares",
        "MaskedInput",
        "Confirmation",
        "Unmask",
        "sum of update",
        "sum of squares",
        "sum of control",
        "sum of sentinels",
    }
    computed = {line["message"] for line in lines if line.get("computed")}
    assert computed == {name for name in to_server if name.startswith("sum of")}
    masked = next(line for line in lines if line["message"] == "MaskedInput")
    d = len(initial.adapter)
    assert masked["count"] == 5
    assert masked["bytes"] / 5 <= 1.02 * 4 * d + 500


def test_in_the_clear_the_ledger_says_so(world, tmp_path):
    job, folder, initial = world
    federate(with_(job, rounds=1, scheme="unsafe_plaintext"), folder, initial, run_folder=tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["to"] == "server")
    assert (line["message"], line["count"]) == ("Update", 5)
    assert all(line["vector"] for line in lines), "nobody sends keys, shares or signatures"
    assert line["reveals"] == "the client's whole update"
    to_clients = {line["message"]: line for line in lines if line["to"] == "clients"}
    assert to_clients["Broadcast"]["bytes"] == 5 * initial.adapter.nbytes
    assert to_clients["Proxy"]["reveals"].startswith("the proxy; the report says")


def test_between_messages_a_client_keeps_nothing_readable(world, updates):
    job, _, initial = world
    states, kept, files = [], {}, []

    def watch(message, context):
        states.append(set(context.state.config_records))
        kind = message.metadata.message_type
        if kind in STEPS and context.node_id == 2:
            kept[kind] = kept_in(journal_of(context))
            files.append(journal_of(context).read_bytes())

    serve_with(world, with_(job, rounds=1), Wrapped(sees=watch))
    assert all(names <= {"job", "journal"} for names in states)
    assert {k: set(v) for k, v in kept.items()} == {
        "train": {"terms", "session", "words"},
        "query.share": {"terms", "session", "words"},
        "query.mask": {"terms", "session"},
        "query.confirm": {"terms", "session", "survivors"},
        "query.unmask": set(),
    }
    for content in files:
        assert updates[0][:8].tobytes() not in content
        assert initial.adapter[:8].tobytes() not in content
