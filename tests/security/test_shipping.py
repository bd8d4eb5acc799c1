"""Clients receive the proxy in parts: a lost connection costs one part, a bad client delays nobody."""

import itertools
import os
import shutil
import time
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import DataError, RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import shipping
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.nodes import Registered
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.flower.waiting import WaitNotes
from fedproxy_secure.proxy_intake.parts import Offer
from fedproxy_secure.runtime.artifacts import RunFolder
from tests.support.masked_rounds import Wrapped, masked_world, serve_with, with_

NODE = 4
PART = 10_000  # of some 85,000 bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return masked_world(tmp_path_factory)


@pytest.fixture(scope="module")
def job(world):
    return with_(world[0], scheme="unsafe_plaintext", rounds=1)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(shipping, "PART_BYTES", PART)
    monkeypatch.setattr(shipping, "AFTER_LOSS_S", 0.0)
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def expected(world, job):
    """The adapter of clients that have the proxy anyway."""
    return serve_with(world, job).adapter.tobytes()


class OwnCaches(Wrapped):
    """The real client app, each node of which keeps proxies in a folder of its own.

    `instead(kind, node)` returns what a node answers in its place, None where it is as it should be.
    """

    def __init__(self, folder, instead=lambda kind, node: None):
        super().__init__()
        self.folder, self.instead, self.seen = folder, instead, []

    def __call__(self, message, context):
        kind, node = message.metadata.message_type, context.node_id
        os.environ["FEDPROXY_CACHE"] = str(self.folder / str(node))
        self.seen.append((kind, node))
        other = self.instead(kind, node)
        return super().__call__(message, context) if other is None else Message(other, reply_to=message)

    def count(self, kind, node=NODE):
        return self.seen.count((kind, node))


class Cut(GridAround):
    """Loses a node's answers to these of its parts, after which the node is away for some looks.

    With `requests` the node does not even get those parts. `kind`: another type of message than parts.
    """

    def __init__(self, grid, lost, *, away=0, silent=False, requests=False, kind=wire.PART):
        super().__init__(grid)
        self.lost, self.away, self.silent, self.requests = lost, away, silent, requests
        self.kind = kind
        self.left, self.parts, self.asked_while_away, self.pushed = 0, 0, 0, {}

    def get_node_ids(self):
        self.left = max(0, self.left - 1)
        return [node for node in super().get_node_ids() if node != NODE or not self.left]

    def push_messages(self, messages):
        messages = list(messages)
        if self.left and any(m.metadata.dst_node_id == NODE for m in messages):
            self.asked_while_away += 1
        sent = list(super().push_messages(messages))
        self.pushed.update(zip(sent, messages, strict=True))
        return sent

    def pull_messages(self, message_ids):
        for sent in message_ids:
            message = self.pushed[sent]
            mine = (message.metadata.message_type, message.metadata.dst_node_id) == (self.kind, NODE)
            self.parts += mine
            lost = mine and self.parts in self.lost
            replies = [] if lost and self.requests else list(super().pull_messages([sent]))
            if lost:
                self.left = self.away
                replies = [Message(Error(code=5, reason="Node Unavailable"), reply_to=message)]
            yield from [] if lost and self.silent else replies


def shipped(world, job, app, around=lambda grid: grid, **more):
    _, folder, initial = world
    return serve(around(InProcessGrid(app, len(job.clients))), job, folder, initial, **more)


def part_count(world):
    return -(-Offer.of(world[1]).size // PART)


def test_every_client_gets_the_proxy_and_the_result_is_that_of_clients_that_had_it(
    world, job, expected, tmp_path
):
    app = OwnCaches(tmp_path)
    assert shipped(world, job, app).adapter.tobytes() == expected
    assert app.count(wire.PART) == part_count(world)
    again = OwnCaches(tmp_path)
    assert shipped(world, job, again).adapter.tobytes() == expected
    assert again.count(wire.PART) == 0  # what came is kept


@pytest.mark.parametrize("requests", [True, False], ids=["requests are lost", "answers are lost"])
def test_a_cut_line_costs_the_parts_that_were_on_their_way(world, job, expected, tmp_path, requests):
    app, grids = OwnCaches(tmp_path), []

    def around(grid):
        grids.append(Cut(grid, lost={2, 3, 5}, away=4, requests=requests))
        return grids[0]

    assert shipped(world, job, app, around).adapter.tobytes() == expected
    assert grids[0].asked_while_away == 0
    assert grids[0].parts == part_count(world) + (3 if requests else 0)  # what came is not sent again
    assert app.count(wire.PART) == part_count(world)
    assert app.count(wire.SETUP) == 1 + 3  # where it stands is asked after each loss


def test_a_request_that_nobody_answers_is_asked_again(world, job, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "SILENT_S", 0.3)
    monkeypatch.setattr(shipping, "EACH_SILENT_S", 0.0)
    app = OwnCaches(tmp_path)
    state = shipped(world, job, app, lambda grid: Cut(grid, lost={2}, silent=True))
    assert state.adapter.tobytes() == expected


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
        """Hands an answer to a set-up on after half a second."""

        def pull_messages(self, message_ids):
            (sent,) = message_ids
            message = self.pushed[sent]
            mine = (message.metadata.message_type, message.metadata.dst_node_id) == (wire.SETUP, NODE)
            if mine and time.time() - message.metadata.created_at < 0.5:
                return []
            return super().pull_messages([sent])

    app = OwnCaches(tmp_path)
    shipped(world, job, app, lambda grid: Slow(grid, lost=()), registered=registered)
    assert app.count("train") == 1


def test_a_site_that_never_answers_its_set_up_is_left_out_with_that_reason(
    world, job, registered, tmp_path
):
    few = job.changed(federate=job.federate.model_copy(update={"timeout_s": 1.0, "min_clients": 5}))

    class Deaf(Cut):
        def pull_messages(self, message_ids):
            (sent,) = message_ids
            mine = self.pushed[sent].metadata.dst_node_id == NODE
            return [] if mine else super().pull_messages([sent])

    with pytest.raises(RoundAborted, match=r"c2 \(did not answer its set-up in 1 s"):
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


def test_what_was_sent_of_a_proxy_is_in_the_ledger_whenever_it_was_sent(world, job, tmp_path):
    """Also where set-up is aborted, and where a site comes when rounds have passed."""
    asked = job.changed(federate=job.federate.model_copy(update={"rounds": 2, "min_clients": 4}))
    folder = tmp_path / "run"

    def rows():
        lines = RunFolder(path=folder).read_jsonl("ledger.jsonl")
        return [
            (line["round"], line["count"], line["bytes"], line.get("aborted", False))
            for line in lines
            if line["message"] == "Proxy"
        ]

    def fails(*nodes):
        failure = wire.encode_failure("DataError", "its disk is full")
        return lambda kind, node: failure if kind == wire.PART and node in nodes else None

    with pytest.raises(DataError, match="its disk is full"):
        shipped(world, asked, OwnCaches(tmp_path, fails(2, 3)), run_folder=folder)
    size = Offer.of(world[1]).size
    assert rows() == [(0, 5, 3 * size + 2 * PART, True)]
    one = asked.changed(federate=asked.federate.model_copy(update={"rounds": 1}))
    shipped(world, one, OwnCaches(tmp_path, fails(3)), run_folder=folder)
    shipped(world, asked, OwnCaches(tmp_path), run_folder=folder)
    assert rows()[1:] == [(0, 5, size + PART, False), (1, 1, size, False)]


def test_a_node_that_is_started_again_goes_on_where_it_was(world, job, expected, tmp_path):
    class StartedAgain(OwnCaches):
        def __call__(self, message, context):
            if message.metadata.message_type == wire.PART and self.count(wire.PART, context.node_id) == 2:
                context.state = RecordDict()
            return super().__call__(message, context)

    app = StartedAgain(tmp_path)
    assert shipped(world, job, app).adapter.tobytes() == expected
    assert app.count(wire.PART) == part_count(world) + 1


def test_a_site_whose_disk_was_emptied_begins_anew_a_few_times_and_not_for_ever(
    world, job, expected, tmp_path, caplog
):
    class Emptied(OwnCaches):
        def __init__(self, folder, times):
            super().__init__(folder)
            self.times = times

        def __call__(self, message, context):
            mine = (message.metadata.message_type, context.node_id) == (wire.PART, NODE)
            if mine and self.times and self.count(wire.PART) % 4 == 3:
                self.times -= 1
                shutil.rmtree(self.folder / str(NODE))
            return super().__call__(message, context)

    assert shipped(world, job, Emptied(tmp_path / "few", 3)).adapter.tobytes() == expected
    shipped(world, job, Emptied(tmp_path / "ever", 10**9))
    assert "and lost what it had received 4 times" in caplog.text


def test_a_server_that_is_started_again_goes_on_where_its_clients_are(world, job, expected, tmp_path):
    class Killed(OwnCaches):
        def __call__(self, message, context):
            if self.count(wire.PART, 2) == 3:
                raise KeyboardInterrupt
            return super().__call__(message, context)

    first = Killed(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        shipped(world, job, first)
    second, run = OwnCaches(tmp_path), tmp_path / "run"
    assert shipped(world, job, second, run_folder=run).adapter.tobytes() == expected
    assert first.count(wire.PART, 2) + second.count(wire.PART, 2) == part_count(world)
    lines = RunFolder(path=run).read_jsonl("ledger.jsonl")
    (sent,) = (line["bytes"] for line in lines if line["message"] == "Proxy")
    came_before = PART * sum(kind == wire.PART for kind, _ in first.seen)
    assert sent == 5 * Offer.of(world[1]).size - came_before


def test_the_owner_sees_how_far_the_proxy_has_come(world, job, tmp_path, monkeypatch):
    seen = []

    class Notes(WaitNotes):
        def note(self, what, names, *, began, timeout_s):
            seen.append((what, tuple(names)))

    monkeypatch.setattr("fedproxy_secure.flower.server_app.WaitNotes", Notes)
    monkeypatch.setattr(shipping, "PART_BYTES", 40_000)
    shipped(world, job, OwnCaches(tmp_path))
    clients = tuple(client.name for client in job.clients)
    assert ("setup, 0.2 of 0.4 MB of the proxy have arrived", clients) in seen


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
    few = job.changed(federate=job.federate.model_copy(update={"timeout_s": 1.0, "min_clients": 5}))
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
