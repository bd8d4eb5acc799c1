"""Events of a real federation: what server and clients note of rounds that end, fail and are private."""

import json

import pytest
from flwr.clientapp import ClientApp

from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.monitor.event_log import VARIABLE, EventLog
from fedproxy_secure.monitor.metrics import metrics
from fedproxy_secure.monitor.noting import ledger_bytes
from fedproxy_secure.monitor.owner import owner_standing
from fedproxy_secure.monitor.page import page
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import JOB
from tests.support.tiny import tiny_settings

ROUNDS = 2
MASKING_STEPS = ["train", "query.share", "query.mask", "query.confirm", "query.unmask"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A masked job of three clients and two rounds, the model's folder and the initial state."""
    folder = tmp_path_factory.mktemp("world")
    raw = tiny_settings(folder, federate={"rounds": ROUNDS}, fusion={"rule": "fedavg"})
    job = FederationJob.from_config(parse_config(raw), seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


@pytest.fixture
def log(tmp_path, monkeypatch):
    file = tmp_path / "log" / "events.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    return EventLog(file=file)


def run(world, folder, **changes):
    job, proxy, initial = world
    folder.mkdir(exist_ok=True)
    federate(job.changed(**changes), proxy, initial, run_folder=folder)
    return RunFolder(path=folder)


@pytest.fixture(scope="module")
def ended(world, tmp_path_factory):
    """The run folder and the log of a federation that ran to its end."""
    place = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(place / "events.jsonl"))
        return run(world, place / "run"), EventLog(file=place / "events.jsonl")


def test_an_owner_notes_start_set_up_and_every_round_with_its_bytes(world, ended):
    folder, log = ended
    events = [e for e in log.read().events if e.party == "owner"]
    assert [(e.kind, e.round, e.clients, e.outcome) for e in events] == [
        ("start", None, None, "done"),
        ("setup", None, 3, "done"),
        ("round", 0, 3, "done"),
        ("round", 1, 3, "done"),
    ]
    received, sent = ledger_bytes(folder.read_jsonl("ledger.jsonl"))
    assert sum(e.bytes_in for e in events) == received > 0
    assert sum(e.bytes_out for e in events[2:]) == sent > 0
    seconds = [line["seconds"] for line in folder.read_jsonl("rounds.jsonl")]
    assert [e.seconds for e in events[2:]] == pytest.approx(seconds, rel=0.5, abs=2)

    folder.write_text(JOB, world[0].to_json())
    at = owner_standing(folder.path, events=log)
    assert (at.phase, at.rounds_done, at.cohort, at.clients, at.connected) == ("finished", 2, 3, 3, 3)
    assert (at.bytes_received, at.bytes_sent) == (received, sent)


def test_each_client_notes_every_message_of_masking_with_its_round(world, ended):
    _, log = ended
    events = [e for e in log.read().events if e.party == "site"]
    assert {e.outcome for e in events} == {"done"}
    assert sum(e.message == "query.setup" for e in events) == 3
    for number in range(ROUNDS):
        of_round = [e.message for e in events if e.round == number]
        assert sorted(of_round) == sorted(MASKING_STEPS * 3)
    trained = [e for e in events if e.message == "train"]
    assert all(e.bytes_in > 0 and e.bytes_out > 0 and e.seconds > 0 for e in events)
    adapter_bytes = world[2].adapter.nbytes
    assert all(e.bytes_in >= adapter_bytes for e in trained)


class Failing(ClientApp):
    """The real client app, whose node 2 gets no power for training."""

    def __call__(self, message, context):
        if message.metadata.message_type == "train" and context.node_id == 2:
            raise RuntimeError("no power for SECRET-RECORD")
        return client_app.app(message, context)


def test_an_aborted_round_is_noted_by_its_class_and_the_run_by_its_standing(world, tmp_path, log):
    job, proxy, initial = world
    job = job.changed(
        protect=job.protect.model_copy(update={"scheme": "unsafe_plaintext"}),
        federate=job.federate.model_copy(update={"min_clients": 3}),
    )
    with proxy_store.offered_on_this_host(proxy), pytest.raises(RoundAborted):
        serve(InProcessGrid(Failing(), 3), job, proxy, initial, run_folder=tmp_path)
    last = log.read().events[-1]
    assert (last.kind, last.round, last.outcome, last.reason) == ("round", 0, "aborted", "RoundAborted")
    (tmp_path / JOB).write_text(job.to_json())
    at = owner_standing(tmp_path, events=log)
    assert (at.phase, at.healthy, at.aborts) == ("stopped", False, {"RoundAborted": 1})
    assert "SECRET-RECORD" not in log.file.read_text() + page(at)


def test_a_clients_failure_is_noted_by_its_class_and_quotes_nothing(world, tmp_path, log):
    job, proxy, initial = world
    lost = job.clients[0].model_copy(update={"source": "{data}/SECRET-RECORD.{split}.jsonl"})
    job = job.changed(clients=(lost, *job.clients[1:]))
    with pytest.raises(Exception, match="SECRET-RECORD"):  # told to the operator of the one machine
        federate(job, proxy, initial, run_folder=tmp_path)
    aborted = [e for e in log.read().events if e.outcome == "aborted"]
    assert [(e.party, e.kind, e.message, e.reason) for e in aborted] == [
        ("site", "message", "query.setup", "DataError"),
        ("owner", "setup", None, "DataError"),
    ]
    assert "SECRET-RECORD" not in log.file.read_text()


@pytest.mark.parametrize(
    "unit", ["none", "client", pytest.param("record", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_no_loss_norm_name_or_path_is_in_events_page_or_metrics(world, tmp_path, log, unit):
    job = world[0]
    privacy = {"unit": unit, "target_epsilon": 8.0, "target_delta": 1e-3, "clip_norm": 0.05}
    folder = run(world, tmp_path / "run", privacy=job.privacy.model_copy(update=privacy))
    lines = folder.read_jsonl("rounds.jsonl")
    assert ("loss" in lines[0]) == (unit == "none")
    folder.write_text(JOB, job.to_json())
    at = owner_standing(folder.path, events=log)
    events = log.file.read_text()
    shown = page(at) + metrics(at).decode() + events
    floats = {json.dumps(v) for line in lines for v in line.values() if isinstance(v, float)}
    untimed = {f for f in floats if f not in {json.dumps(line["seconds"]) for line in lines} and len(f) > 6}
    assert untimed
    for number in untimed:
        assert number not in shown
        assert number[:10] not in shown  # no rounding of it either
    assert str(tmp_path) not in shown
    for client in job.clients:
        assert client.name not in events
        assert client.source not in shown
    assert "train 0 1" not in shown  # a record's text
    assert "epsilon" not in shown.lower()
