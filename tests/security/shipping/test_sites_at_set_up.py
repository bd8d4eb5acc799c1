"""At set-up a bad or absent site delays nobody, and learns nothing that is not its own."""

import itertools
import time
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import shipping
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.nodes import Registered
from fedproxy_secure.flower.server_app import serve
from tests.support.shipping import NODE, Cut, OwnCaches, shipped


@pytest.fixture(scope="module")
def registered(job):
    names = {node: client.name for node, client in enumerate(job.clients, start=2)}
    return Registered(names=names, wait_s=60.0, have_policies=False)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "away"])
def test_a_registered_site_that_goes_away_during_set_up_is_asked_again(
    world, job, registered, expected, tmp_path, monkeypatch, silent
):
    monkeypatch.setattr(shipping, "SILENT_S", 0.3)
    monkeypatch.setattr(shipping, "EACH_SILENT_S", 0.0)
    app = OwnCaches(tmp_path)

    def around(grid):
        return Cut(grid, lost={1}, away=4, silent=silent, requests=True, kind=wire.SETUP)

    state = shipped(world, job, app, around, registered=registered)
    assert state.adapter.tobytes() == expected
    assert app.count(wire.SETUP) == 2 - 1  # the first one never reached it
    assert app.count("train") == 1


def test_a_registered_site_that_stays_away_during_set_up_holds_nobody_up(
    world, job, registered, tmp_path, caplog
):
    app = OwnCaches(tmp_path)

    def around(grid):
        return Cut(grid, lost={1}, away=10**9, requests=True, kind=wire.SETUP)

    shipped(world, job, app, around, registered=replace(registered, wait_s=0.3))
    assert app.count("train") == 0
    assert app.count("train", 2) == 1
    assert "c2 (node 4) is left out: is not connected" in caplog.text


def test_a_site_whose_set_up_takes_longer_than_a_request_is_waited_for_is_set_up_in_the_end(
    world, job, registered, tmp_path, monkeypatch
):
    monkeypatch.setattr(shipping, "SILENT_S", 0.05)
    monkeypatch.setattr(shipping, "EACH_SILENT_S", 0.0)

    class Slow(Cut):
        """Hands an answer to a set-up on after a tenth of a second."""

        def pull_messages(self, message_ids):
            (sent,) = message_ids
            message = self.pushed[sent]
            mine = (message.metadata.message_type, message.metadata.dst_node_id) == (wire.SETUP, NODE)
            if mine and time.time() - message.metadata.created_at < 0.1:
                return []
            return super().pull_messages([sent])

    app = OwnCaches(tmp_path)
    shipped(world, job, app, lambda grid: Slow(grid, lost=()), registered=registered)
    assert app.count("train") == 1


def test_a_site_that_never_answers_its_set_up_is_left_out_with_that_reason(
    world, job, registered, tmp_path
):
    few = job.changed(federate=job.federate.model_copy(update={"timeout_s": 0.3, "min_clients": 5}))

    class Deaf(Cut):
        def pull_messages(self, message_ids):
            (sent,) = message_ids
            mine = self.pushed[sent].metadata.dst_node_id == NODE
            return [] if mine else super().pull_messages([sent])

    with pytest.raises(RoundAborted, match=r"c2 \(did not answer its set-up in 0.3 s"):
        shipped(world, few, OwnCaches(tmp_path), lambda grid: Deaf(grid, lost=()), registered=registered)


def test_a_registered_node_whose_client_is_not_in_the_job_gets_nothing(world, job, registered, tmp_path):
    fewer = job.changed(clients=job.clients[:2] + job.clients[3:])
    app = OwnCaches(tmp_path)
    _, folder, initial = world
    names = {**registered.names, NODE: "was_taken_out"}
    registered = Registered(names=names, wait_s=0.0, have_policies=False)
    serve(InProcessGrid(app, len(job.clients)), fewer, folder, initial, registered=registered)
    assert NODE not in {node for _, node in app.seen}


def test_a_registered_site_that_says_it_is_another_one_gets_nothing(
    world, job, registered, tmp_path, caplog
):
    def instead(kind, node):
        return ready(client="c0") if (kind, node) == (wire.SETUP, NODE) else None

    app = OwnCaches(tmp_path, instead)
    shipped(world, job, app, registered=registered)
    assert app.count(wire.PART) == app.count("train") == 0
    assert "c2 (node 4) is left out: says that it is 'c0'" in caplog.text


def ready(**fields):
    return wire.encode_ready(wire.Ready(**{"ready": False, "client": "c2", **fields}))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ready(has=0), "it says that it has 0 bytes"),
        (ready(has=2**60), "more than it was sent"),
        (ready(client="c0"), "says that it is 'c0'"),
        (wire.encode_failure("NotSetUp", "x"), "it was started again"),
        (wire.encode_failure("DataError", "its disk is full"), "its disk is full"),
        pytest.param(
            RecordDict({"setup": ConfigRecord({"ready": 7})}), "setup reply", marks=pytest.mark.slow
        ),
        pytest.param(RecordDict(), "setup reply", marks=pytest.mark.slow),
    ],
    ids=["no progress", "too much", "another name", "forgets", "fails", "nonsense", "nothing"],
)
def test_a_client_that_takes_nothing_is_left_out_with_the_reason_and_holds_up_nobody(
    world, job, tmp_path, caplog, answer, says
):
    app = OwnCaches(tmp_path, lambda kind, node: answer if (kind, node) == (wire.PART, NODE) else None)
    state = shipped(world, job, app)
    assert state.round == 1
    assert ("train", NODE) not in app.seen
    assert app.seen.count(("train", 2)) == 1
    assert any(says in line and "is left out" in line for line in caplog.messages), caplog.messages


def test_a_client_that_claims_ever_more_is_left_out(world, job, tmp_path, caplog):
    claimed = itertools.count(1)
    app = OwnCaches(
        tmp_path,
        lambda kind, node: ready(has=next(claimed)) if (kind, node) == (wire.PART, NODE) else None,
    )
    shipped(world, job, app)
    assert app.count(wire.PART) <= shipping.MOST_IDLE + 1
    assert "no more in 50 requests" in caplog.text


def test_a_site_that_stays_away_is_waited_for_until_the_timeout_and_then_named(world, job, tmp_path):
    few = job.changed(federate=job.federate.model_copy(update={"timeout_s": 0.3, "min_clients": 5}))
    app = OwnCaches(tmp_path)
    with pytest.raises(RoundAborted, match=r"node 4 \(took 10,000 of .* before it timed out"):
        shipped(world, few, app, lambda grid: Cut(grid, lost={2}, away=10**9))


def test_sites_are_not_told_where_the_owners_records_keys_and_ledgers_lie(world, job):
    """They have their own; what is sent is what the parties agree on, and names."""
    places = job.changed(
        clients=tuple(c.model_copy(update={"source": "/home/owner/secret/x"}) for c in job.clients),
        data_root="/home/owner/secret",
        protect=job.protect.model_copy(update={"keys": "/home/owner/secret/keys"}),
        privacy=job.privacy.model_copy(update={"ledger": "/home/owner/secret/paid"}),
        audit=job.audit.model_copy(update={"folder": "/home/owner/secret/transcript"}),
    )
    sent = []

    class Hears(GridAround):
        """Keeps the jobs that are sent."""

        def push_messages(self, messages):
            messages = list(messages)
            sent.extend(m.content.config_records["job"]["json"] for m in messages)
            raise RoundAborted("enough")

    names = {node: client.name for node, client in enumerate(job.clients, start=2)}
    grid = Hears(InProcessGrid(OwnCaches(world[1]), len(job.clients)))
    with pytest.raises(RoundAborted, match="enough"):
        serve(grid, places, world[1], world[2], registered=Registered(names=names, wait_s=0.0))
    assert sent
    for text in sent:
        assert "secret" not in text
        told = FederationJob.from_json(text)
        proxy = {name: getattr(told, name) for name in ("proxy_sha256", "proxy_loaded_sha256")}
        assert told.agreed_sha256() == places.changed(**proxy).agreed_sha256()
        assert [c.name for c in told.clients] == [c.name for c in places.clients]
