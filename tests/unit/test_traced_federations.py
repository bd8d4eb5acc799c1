"""Federations on traced copies: the same adapter bit for bit, copies that stay or go, no key no copy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.shared_proxy import forget_proxies
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate, with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.tracing.copies import make_marks
from fedproxy_secure.tracing.key import trace_key
from fedproxy_secure.tracing.suspects import rows_of, trace_rows
from tests.support.masked_rounds import masked_world, with_
from tests.support.tiny import tiny_settings
from tests.support.traced import traced_proxy


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    return traced_proxy(tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    job, folder, initial = masked_world(tmp_path_factory)
    marks = make_marks(folder)
    trace_key(folder, make=True)
    return job.changed(marks=marks), folder, initial


@pytest.fixture(scope="module")
def untraced(world):
    """The adapter of two masked rounds with weights `self` on the proxy as it lies."""
    job, folder, initial = world
    job = with_(job, rule="h_ties", weights="self").changed(marks=None)
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        return serve(InProcessGrid(client_app.app, 5), keyed, folder, initial).adapter


class SeparateMachines(ClientApp):
    """The real client app, made to forget other clients before each client loads its own copy."""

    def __init__(self):
        super().__init__()
        self.loaded = set()

    def __call__(self, message, context):
        if message.metadata.message_type == "train" and context.node_id not in self.loaded:
            self.loaded.add(context.node_id)
            client_app.forget_clients()
        return client_app.app(message, context)


def test_masked_rounds_on_traced_copies_give_the_same_adapter_bit_for_bit(
    world, untraced, tmp_path, monkeypatch
):
    job, folder, initial = world
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path))
    job = with_(job, rule="h_ties", weights="self")
    with with_keys(job) as keyed:
        marked = serve(InProcessGrid(SeparateMachines(), 5), keyed, folder, initial)
    assert np.array_equal(untraced, marked.adapter)
    kept = sorted(p for p in tmp_path.iterdir() if p.is_dir())
    assert [p.suffix for p in kept] == [f".{c.name}" for c in job.clients]
    assert len({folder_sha256(p) for p in kept}) == 5
    key, names = trace_key(folder), [c.name for c in job.clients]
    for place in kept:
        found = trace_rows(rows_of(place, job.marks), job.marks, key, names)
        assert found.accused == (place.suffix[1:],)


def test_a_killed_traced_federation_goes_on_with_the_copies_that_are_there(
    world, untraced, tmp_path, monkeypatch
):
    job, folder, initial = world
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    job = with_(job, rule="h_ties", weights="self")
    sent = []

    class Dies(ClientApp):
        """The real client app, interrupted when the second round asks for training."""

        def __init__(self):
            super().__init__()
            self.rounds = 0

        def __call__(self, message, context):
            kind = message.metadata.message_type
            if kind == "query.part":
                sent.append(context.node_id)
            if kind == "train" and self.rounds == 1:
                raise KeyboardInterrupt
            self.rounds += kind == "query.unmask" and context.node_id == 6
            return client_app.app(message, context)

    with with_keys(job) as keyed:
        with pytest.raises(KeyboardInterrupt):
            serve(InProcessGrid(Dies(), 5), keyed, folder, initial, run_folder=tmp_path / "run")
        assert len(set(sent)) == 5
        sent.clear()
        again = serve(InProcessGrid(Dies(), 5), keyed, folder, initial, run_folder=tmp_path / "run")
    assert again.round == 2
    assert sent == []
    assert np.array_equal(untraced, again.adapter)


def test_the_in_process_engine_sends_copies_too_and_leaves_none_behind(world, tmp_path, monkeypatch):
    job, folder, initial = world
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path))
    job = with_(job, rounds=1, scheme="unsafe_plaintext")
    job = job.changed(clients=job.clients[:2])
    federate(job, folder, initial, run_folder=tmp_path / "run")
    rows = [
        r for r in RunFolder(path=tmp_path / "run").read_jsonl("ledger.jsonl") if r["message"] == "Proxy"
    ]
    assert rows
    assert rows[0]["bytes"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_traced_job_without_its_key_sends_nothing(world, tmp_path, monkeypatch):
    job, folder, initial = world
    moved = shutil.copytree(folder, tmp_path / "proxy")
    forget_proxies()
    with pytest.raises(ConfigError, match=r"trace\.key: is missing"):
        federate(with_(job, rounds=1, scheme="unsafe_plaintext"), Path(moved), initial)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_clients_in_processes_of_their_own_get_copies_and_train_the_same_adapter(tmp_path):
    settings = tiny_settings(tmp_path, federate={"rounds": 1}, compress={"trace": True}, track=[])
    config = parse_config(settings)
    for engine in ("deployment", "in_process"):
        chosen = config.changed(federate=config.federate.changed(engine=engine))
        run(chosen, tmp_path / engine, in_cell=True)
    one, two = (
        load_file(tmp_path / e / "seed-0/adapter/adapter_model.safetensors")
        for e in ("deployment", "in_process")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    ledger = RunFolder(path=tmp_path / "deployment/seed-0/federation").read_jsonl("ledger.jsonl")
    (sent,) = (row for row in ledger if row["message"] == "Proxy")
    assert sent["bytes"] > 3 * (tmp_path / "deployment/seed-0/proxy/model.safetensors").stat().st_size
