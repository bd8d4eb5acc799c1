"""A proxy on its way in parts: a lost connection costs one part, and who starts again goes on."""

import shutil

import pytest
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import DataError
from fedproxy_secure.flower import shipping
from fedproxy_secure.flower.waiting import WaitNotes
from fedproxy_secure.proxy_intake.parts import Offer
from fedproxy_secure.runtime.artifacts import RunFolder
from tests.support.shipping import NODE, PART, Cut, OwnCaches, shipped


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
