"""At set-up a client refuses what its policy does not say, and is told nothing that is not its own."""

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.federate.client_policy import policy_for
from fedproxy_secure.flower import client_app
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.proxy_intake.files import folder_sha256
from fedproxy_secure.secagg.provision import provision
from tests.support.masked_rounds import with_
from tests.support.parts import packed, parts


def setup_reply(job, node_config):
    """What a client says to a job, as a node of its own."""
    context = Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})
    job = job.changed(proxy_sha256="0" * 64)
    ask = {"job": ConfigRecord({"json": job.to_json(), "sha256": "0" * 64})}
    return client_app.app(Message(RecordDict(ask), 2, "query.setup"), context).content


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            {"protect": {"scheme": "unsafe_plaintext"}},
            "protect.scheme='unsafe_plaintext' asked by the server: must be",
        ),
        (
            {"protect": {"granularity": "coordinate"}},
            "protect.granularity='coordinate' asked by the server",
        ),
        ({"protect": {"bits": 16}}, "protect.bits=16 asked by the server: must be 32"),
        ({"local": {"learning_rate": 1e9}}, "local.learning_rate=1000000000.0 asked by the server"),
        ({"federate": {"rounds": 1000}}, "federate.rounds=1000 asked by the server: must be 2"),
        ({"federate": {"participation": 0.6}}, "federate.participation=0.6 asked by the server"),
        ({"privacy": {"unit": "record"}}, "privacy.unit='record' asked by the server: must be 'none'"),
        ({"adapter": {"rank": 4}}, "adapter.rank=4 asked by the server: must be 2"),
        ({"max_tokens": 63}, "max_tokens=63 asked by the server: must be 64"),
        ({"seed": 1}, "seed=1 asked by the server: must be one of [0]"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_client_refuses_a_server_that_asks_for_what_its_policy_does_not_say(world, tmp_path, asked, line):
    own = tmp_path / "client.policy.yaml"
    job = with_(world[0], keys=str(tmp_path / "keys"))
    provision([c.name for c in job.clients], tmp_path / "keys")
    policy_for(job, 0, seeds=(0,)).write(own)
    changed = {
        k: getattr(job, k).model_copy(update=v) if isinstance(v, dict) else v for k, v in asked.items()
    }
    reply = setup_reply(job.changed(**changed), {"policy": str(own)})
    kind, said = wire.decode_failure(reply)
    assert kind == "ConfigError"
    assert line in said
    assert wire.decode_failure(setup_reply(job, {"policy": str(own)})) is None


def test_a_node_without_a_policy_answers_nothing(world):
    """Else the server would say which files are read, and that nothing is protected."""
    for scheme in ("masking", "unsafe_plaintext"):
        kind, said = wire.decode_failure(setup_reply(with_(world[0], scheme=scheme), {"partition-id": 0}))
        assert kind == "ConfigError"
        assert said.startswith("node-config: must name this client's policy")


@pytest.mark.parametrize(("value", "needs_none"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_a_node_needs_no_policy_where_the_environment_says_that_one_machine_plays_all(
    world, tmp_path, monkeypatch, value, needs_none
):
    monkeypatch.setenv(attempt.ONE_MACHINE_VARIABLE, value)
    job = with_(world[0], keys=str(tmp_path / "keys"))
    provision([c.name for c in job.clients], tmp_path / "keys")
    refused = wire.decode_failure(setup_reply(job, {"partition-id": 0}))
    assert (refused is None) == needs_none, refused


def test_a_server_on_another_machine_is_not_told_what_records_say(world, tmp_path):
    job = with_(world[0], keys=str(tmp_path / "keys"))
    provision([c.name for c in job.clients], tmp_path / "keys")
    records = tmp_path / "secret.train.jsonl"
    for name in ("train", "test"):
        records.with_name(f"secret.{name}.jsonl").write_text('{"text": "HIV positive", "label": 7}\n')
    client = job.clients[0].model_copy(update={"source": str(tmp_path / "secret.{split}.jsonl")})
    own = tmp_path / "client.policy.yaml"
    policy_for(job.changed(clients=(client,)), 0, seeds=(0,)).write(own)
    kind, said = wire.decode_failure(setup_reply(job, {"policy": str(own)}))
    assert kind == "DataError"
    assert said == "this client's records or messages cannot be used; its own log has the reason"


@pytest.mark.parametrize(
    "folder", ["St Mary (2)", "St Mary, Boston", "Ward: Oncology/clinic", 'it\'s "ward" 7']
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_server_on_another_machine_is_not_told_where_a_clients_files_lie(
    world, tmp_path, monkeypatch, folder, relative
):
    monkeypatch.chdir(tmp_path)
    place = Path(folder) if relative else tmp_path / folder
    job = with_(world[0], keys=str(place / "keys"))
    provision([c.name for c in job.clients], place / "keys")
    own = place / "client.policy.yaml"
    policy_for(job, 0, seeds=(0,)).write(own)
    (place / "keys" / f"{job.clients[0].name}.key").chmod(0o644)
    said = [wire.decode_failure(setup_reply(job, {"policy": str(own)}))]
    own.unlink()
    said.append(wire.decode_failure(setup_reply(job, {"policy": str(own)})))
    assert said == [
        ("ConfigError", "[redacted]: has mode 644; must be 600, readable by its owner alone"),
        ("ConfigError", "[redacted]: cannot be read: No such file or directory"),
    ]


def test_a_line_that_may_name_a_place_the_client_does_not_know_is_not_sent(world, tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise ConfigError("wards/St Mary, Boston: is gone")

    monkeypatch.setattr(client_app, "_checked", refuses)
    kind, said = wire.decode_failure(setup_reply(world[0], {"policy": str(tmp_path / "p.yaml")}))
    assert (kind, said) == ("ConfigError", client_app.HIDDEN)


def test_a_refused_setup_leaves_nothing_to_train_with(world):
    job, folder, _ = world
    with proxy_store.offered_on_this_host(folder):
        context = Context(
            run_id=1,
            node_id=2,
            node_config={"partition-id": 0, "one-machine": True},
            state=RecordDict(),
            run_config={},
        )
        asked = with_(job).changed(proxy_sha256="1" * 64)
        ask = {"job": ConfigRecord({"json": asked.to_json(), "sha256": "0" * 64})}
        reply = client_app.app(Message(RecordDict(ask), 2, "query.setup"), context).content
        assert "which the job names" in wire.decode_failure(reply)[1]
        assert not context.state.config_records


def test_a_node_whose_policy_refuses_the_job_keeps_none_of_its_files(tmp_path, world, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    job, folder, _ = world
    sha256 = folder_sha256(folder)
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    setup = wire.encode_setup(with_(job).changed(proxy_sha256=sha256))
    reply = client_app.app(Message(setup, 2, wire.SETUP), context).content
    assert wire.decode_failure(reply)[0] == "ConfigError"
    first = wire.encode_part(parts(packed(folder), sha256)[0])
    reply = client_app.app(Message(first, 2, wire.PART), context).content
    assert wire.decode_failure(reply)[0] == "NotSetUp"
    assert not (tmp_path / "cache").exists()
