"""Under differential privacy a repeated request costs nothing, and a failure in training tells nothing."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedproxy_secure import wire
from fedproxy_secure.dp.ledger import all_events
from fedproxy_secure.errors import TrainingError
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.store import journal_file
from fedproxy_secure.monitor.event_log import VARIABLE, EventLog
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ROUNDS
from fedproxy_secure.secagg.control import SEGMENTS
from tests.support.masked_clients import sent_again
from tests.support.masked_rounds import Wrapped, kept_in, serve_with, with_


def test_a_private_round_asked_for_again_sends_the_same_noisy_words(world, tmp_path):
    """With the same noise and other rounding, the difference of two sums would be free of noise."""
    job, folder, initial = world
    private = {"unit": "client", "target_delta": 1e-3, "clip_norm": 0.05, "ledger": str(tmp_path)}
    job = with_(job, rounds=1, bits=24).changed(privacy=job.privacy.model_copy(update=private))
    words = []
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        identity, _ = attempt.own_keys(keyed, job.clients[0].name)

        def watch(message, context):
            if (message.metadata.message_type, context.node_id) == ("train", 2):
                sealed = kept_in(journal_file(tmp_path, job.clients[0].name))["words"]
                words.append(attempt.unseal(identity, sealed, "words"))

        grid = InProcessGrid(Wrapped(sees=watch), 5)
        for _ in range(2):
            serve(grid, keyed, folder, initial)
    d, control = len(initial.adapter), 4 * sum(s.length for s in SEGMENTS)
    assert words[0][: 4 * d] == words[1][: 4 * d]
    assert len(words[0]) == 4 * d + control


def failing(client):
    """The client, with a learning rate at which no training ends well."""
    return replace(client, local=client.local.model_copy(update={"learning_rate": 1e39}))


def served_privately(world, tmp_path, players):
    job = world[0]
    private = {"unit": "client", "target_delta": 1e-3, "clip_norm": 0.05, "ledger": str(tmp_path / "paid")}
    job = with_(job, rounds=2, bits=24).changed(privacy=job.privacy.model_copy(update=private))
    app = client_app.client_app(play=lambda client: failing(client) if client.name in players else client)
    return serve_with(world, job, app, run_folder=tmp_path / "run")


@pytest.mark.parametrize("threshold", [5, 3])
def test_client_level_noise_is_for_the_planned_threshold_alone(world, tmp_path, threshold):
    """Else a server has all others draw new noise by another threshold, while one repeats its own."""
    job, folder, initial = world
    private = {"unit": "client", "target_delta": 1e-3, "clip_norm": 0.05, "ledger": str(tmp_path / "paid")}
    job = with_(job, rounds=2, bits=24).changed(privacy=job.privacy.model_copy(update=private))
    asked = {}

    def watch(message, context):
        if message.metadata.message_type == "train" and context.node_id == 2:
            asked.update(content=message.content, context=context)

    with with_keys(job) as keyed:
        with proxy_store.offered_on_this_host(folder):
            serve(InProcessGrid(Wrapped(sees=watch), 5), keyed, folder, initial)
        before = all_events(tmp_path / "paid")
        terms = dict(asked["content"].config_records["terms"])
        asked["content"]["terms"] = ConfigRecord(
            terms | {"threshold": threshold, "attempt": terms["attempt"] + 1}
        )
        reply = sent_again(world, "train", asked["content"], asked["context"])
        assert f"threshold={threshold}: must be 4" in wire.decode_failure(reply)[1]
        assert all_events(tmp_path / "paid") == before


def test_training_that_fails_under_client_level_privacy_sends_noise_and_is_paid(
    world, tmp_path, caplog, monkeypatch
):
    """That it failed would be a bit about the client's records, without noise and outside epsilon."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "events.jsonl"))
    names = [c.name for c in world[0].clients]
    state = served_privately(world, tmp_path, names[:4])
    assert state.round == 2
    assert np.isfinite(state.adapter).all()
    assert {len(spent) for spent in all_events(tmp_path / "paid").values()} == {2}
    # the client's own side sees it, and so does whoever runs all of them on one machine
    errors = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert sum("zeros count" in message for message in errors) == 4 * 2
    events = EventLog.from_environment().read().events
    failures = [(e.party, e.round, e.reason) for e in events if e.kind == "training"]
    assert failures == [("site", r, "TrainingError") for r in (0, 1) for _ in range(4)]
    assert "round 1: training failed at 4 of 5 clients, which sent zeros instead" in caplog.text
    lines = RunFolder(path=tmp_path / "run").read_jsonl(ROUNDS)
    assert not any("failed" in key for line in lines for key in line)  # what may be published


def test_on_one_machine_a_round_in_which_all_training_fails_ends_the_run(world, tmp_path):
    """A sum of noise alone would pass for a trained model. A run that goes on ends with the same line."""
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"round 0: training failed at all 5 .* c0: RuntimeError$"):
            served_privately(world, tmp_path, [c.name for c in world[0].clients])
