"""Rounds over the in-process grid: who takes part, who fails, what is saved, what a resume repeats."""

import json

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import DataError, RoundAborted, TrainingError
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, initial_state
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.federate.training import train
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.nodes import Registered
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.models.adapters import attach, get_vector
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import LEAKAGE
from tests.support.tiny import save_tiny, tiny_settings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A job of three clients and three rounds, the model's folder and the initial state."""
    folder = tmp_path_factory.mktemp("world")
    config = parse_config(tiny_settings(folder, protect={"scheme": "unsafe_plaintext"}))
    job = FederationJob.from_config(config, seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    initial = initial_state(attach(model, job.adapter, seed=0))
    return job, folder / "llm", initial


def with_rounds(job, rounds, **changes):
    return job.changed(federate=job.federate.model_copy(update={"rounds": rounds, **changes}))


class Wrapped(ClientApp):
    """The real client app, except that some nodes' training raises."""

    def __init__(self, failing):
        super().__init__()
        self.failing = failing

    def __call__(self, message, context):
        if message.metadata.message_type == "train" and context.node_id in self.failing:
            raise RuntimeError("no power")
        return client_app.app(message, context)


def serve_with_failing(world, failing, **changes):
    job, folder, initial = world
    grid = InProcessGrid(Wrapped(failing), len(job.clients))
    seen = []
    job = with_rounds(job, 1, **changes)
    with proxy_store.offered_on_this_host(folder):
        state = serve(grid, job, folder, initial, on_client=seen.append)
    return state, seen


def test_what_flowed_in_an_aborted_round_stays_in_the_ledger_and_is_marked(world, tmp_path):
    job, folder, initial = world
    job = with_rounds(job, 1, min_clients=3)
    with proxy_store.offered_on_this_host(folder):
        with pytest.raises(RoundAborted):
            serve(InProcessGrid(Wrapped({2}), 3), job, folder, initial, run_folder=tmp_path)
        serve(InProcessGrid(Wrapped(set()), 3), job, folder, initial, run_folder=tmp_path)
    rows = RunFolder(path=tmp_path).read_jsonl(LEAKAGE)
    updates = [(row.get("aborted", False), row["count"]) for row in rows if row["message"] == "Update"]
    assert updates == [(True, 2), (False, 3)]


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(world):
    job, folder, initial = world
    one, two = federate(job, folder, initial), federate(job, folder, initial)
    assert one.adapter.tobytes() == two.adapter.tobytes()
    assert not np.array_equal(one.adapter, initial.adapter)


@pytest.mark.parametrize("rule", ["h_ties", "fedadam"])
def test_a_resumed_run_ends_like_an_unbroken_one(world, tmp_path, rule):
    job, folder, initial = world
    job = job.changed(fusion=job.fusion.model_copy(update={"rule": rule, "pcr_lambda": 0.1}))
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    whole = federate(job, folder, initial, run_folder=unbroken)
    federate(with_rounds(job, 2), folder, initial, run_folder=broken)
    with (broken / "rounds.jsonl").open("a") as lines:  # killed after the line, before the state
        lines.write(json.dumps({"round": 2}) + "\n")
    resumed = federate(job, folder, initial, run_folder=broken)
    assert resumed.adapter.tobytes() == whole.adapter.tobytes()
    assert untimed_rounds(broken) == untimed_rounds(unbroken)


def untimed_rounds(folder):
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_round_goes_on_without_a_client_that_fails(world):
    state, seen = serve_with_failing(world, failing={3})
    assert sorted(seen) == ["c0", "c2"]
    assert state.round == 1


class Deaf(InProcessGrid):
    """A grid whose node 3 hears training requests and never answers."""

    def pull_messages(self, message_ids):
        heard = [m for m in message_ids if m in self._waiting]
        silent = [m for m in heard if self._waiting[m].metadata.dst_node_id == 3]
        training = [m for m in silent if self._waiting[m].metadata.message_type == "train"]
        return super().pull_messages(m for m in heard if m not in training)


@pytest.mark.parametrize(("minimum", "ends"), [(2, True), (3, False)])
def test_a_client_that_never_answers_is_waited_for_no_longer_than_the_timeout(world, minimum, ends):
    job, folder, initial = world
    job = with_rounds(job, 1, timeout_s=2.0, min_clients=minimum)
    seen = []
    with proxy_store.offered_on_this_host(folder):
        grid = Deaf(client_app.app, len(job.clients))
        if ends:
            assert serve(grid, job, folder, initial, on_client=seen.append).round == 1
            assert sorted(seen) == ["c0", "c2"]
        else:
            why = r"; left out: c1 \(did not answer train in 2 s\)$"
            with pytest.raises(RoundAborted, match=r"2 clients answered in round 0: must be >= 3 .*" + why):
                serve(grid, job, folder, initial)


def test_a_round_under_the_minimum_is_aborted_and_the_last_good_one_stays(world, tmp_path):
    job, folder, initial = world
    federate(with_rounds(job, 1), folder, initial, run_folder=tmp_path)
    good = (tmp_path / "state.safetensors").read_bytes()
    line = (
        r"1 clients answered in round 1: must be >= 2 .*; left out: c1 \(failed: .*\), c2 \(failed: .*\)$"
    )
    with proxy_store.offered_on_this_host(folder), pytest.raises(RoundAborted, match=line):
        serve(InProcessGrid(Wrapped({3, 4}), 3), with_rounds(job, 2), folder, initial, run_folder=tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == good


def test_sites_that_are_not_connected_are_named_whether_enough_are_there_or_not(world):
    """Node 4, which would be c2, is not there: too few are, or enough are and one of them fails."""
    job, folder, initial = world
    registered = Registered(names={2: "c0", 3: "c1", 4: "c2"}, wait_s=0.1, have_policies=False)
    with proxy_store.offered_on_this_host(folder):
        grid = InProcessGrid(Wrapped({3}), 2)
        for least, line in (
            (3, r"2 clients connected: must be >= 3 .*; left out: c2 \(is not connected\)$"),
            (2, r"1 clients answered .*; left out: c1 \(failed: .*\), c2 \(is not connected\)$"),
        ):
            asked = with_rounds(job, 1, min_clients=least, timeout_s=1.0)
            with pytest.raises(RoundAborted, match=line):
                serve(grid, asked, folder, initial, registered=registered)


def test_partial_participation_takes_the_share_and_differs_between_rounds(world, tmp_path):
    job, folder, initial = world
    federate(with_rounds(job, 6, participation=0.67), folder, initial, run_folder=tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    chosen = [tuple(line["participants"]) for line in lines]
    assert {len(c) for c in chosen} == {2}
    assert len(set(chosen)) > 1


def test_a_loss_that_is_not_a_number_names_client_and_step_and_keeps_the_last_round(world, tmp_path):
    job, folder, initial = world
    bad = initial.adapter.copy()
    bad[:] = 1e30
    ServerState(round=1, adapter=bad).save(tmp_path / "state.safetensors")
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"client c0, round 1: loss=nan at local step 0"):
        federate(job, folder, initial, run_folder=tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_client_with_one_record_is_refused_before_the_first_round(world):
    job, folder, initial = world
    lonely = job.clients[1].model_copy(update={"train_records": 1})
    job = job.changed(clients=(job.clients[0], lonely, job.clients[2]))
    with pytest.raises(DataError, match=r"client c1: has 1 training records; must have >= 2"):
        federate(job, folder, initial)


def test_prox_and_conflict_penalties_hold_the_adapter_back(world):
    job, folder, initial = world

    def step(**fusion):
        changed = job.changed(fusion=job.fusion.model_copy(update={"rule": "fedavg", **fusion}))
        return np.linalg.norm(federate(with_rounds(changed, 2), folder, initial).adapter - initial.adapter)

    free = step()
    assert step(prox_mu=1e3) < 0.9 * free
    assert step(pcr_lambda=1e3) < 0.99 * free


def test_a_job_survives_json(world):
    job, _, _ = world
    assert FederationJob.from_json(job.to_json()) == job


def test_a_model_written_anew_in_the_same_folder_is_the_one_that_clients_train(world, tmp_path):
    job, _, initial = world
    job, folder = with_rounds(job, 1), save_tiny(tmp_path / "llm")
    first = federate(job, folder, initial)
    save_tiny(folder, seed=1)
    second = federate(job, folder, initial)
    elsewhere = federate(job, save_tiny(tmp_path / "other", seed=1), initial)
    assert second.adapter.tobytes() == elsewhere.adapter.tobytes()
    assert second.adapter.tobytes() != first.adapter.tobytes()


def test_a_round_of_one_client_leaves_nothing_in_the_model_that_the_next_one_trains(world):
    job, folder, initial = world
    named = with_proxy(job, folder)
    one, other = (build_client(named, i, folder) for i in range(2))
    assert one.model is other.model
    assert np.abs(one.train(round=0, start=initial.adapter + 1).update).max() > 0
    with other.model.lent() as tuned:
        assert np.array_equal(get_vector(tuned), initial.adapter)
        assert all(p.grad is None for p in tuned.parameters())


def test_under_client_level_privacy_a_record_that_cannot_be_encoded_is_left_out_and_only_the_site_is_told(
    tmp_path, caplog
):
    """Whoever made the tokenizer could make it fail for chosen words; here a response is too long."""
    raw = tiny_settings(tmp_path, fusion={"rule": "fedavg"})
    file = tmp_path / "data" / "0.train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["choices"] = ["no " * 500, "yes " * 500]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def built(unit):
        settings = {**raw, "privacy": {"unit": unit, "target_delta": 1e-3}}
        job = FederationJob.from_config(parse_config(settings), seed=0)
        return build_client(with_proxy(job, tmp_path / "llm"), 0, tmp_path / "llm")

    assert len(built("client").items) == len(rows) - 1
    assert f": 1 of {len(rows)} records cannot be encoded and are left out" in caplog.text
    with pytest.raises(DataError, match="its response has"):
        built("none")


def test_whoever_stops_training_finds_the_model_in_evaluation_mode(world):
    job, folder, _ = world
    client = build_client(with_proxy(job, folder), 0, folder)

    def stop(step):
        raise TimeoutError

    with client.model.lent() as tuned:
        with pytest.raises(TimeoutError):
            train(
                tuned,
                client.items,
                steps=2,
                local=job.local,
                pad_id=client.pad_id,
                rng=np.random.default_rng(0),
                subject="c",
                on_step=stop,
            )
        assert not tuned.training
