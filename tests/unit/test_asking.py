"""While no answer comes a SuperLink is asked for one at a time, in turn, and none is missed."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.flower import asking
from fedproxy_secure.flower.asking import Asker
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.recording import WatchedGrid

NODES = range(2, 7)


class Slow(GridAround):
    """Hands on no answer before so many looks, and those of the nodes in `silent` never."""

    def __init__(self, looks, silent=()):
        def echo(message, context):
            return Message(RecordDict({"it": ConfigRecord({"node": context.node_id})}), reply_to=message)

        super().__init__(InProcessGrid(echo, len(NODES)))
        self.left, self.silent, self.looked, self.node = looks, silent, [], {}

    def push_messages(self, messages):
        messages = list(messages)
        sent = list(super().push_messages(messages))
        self.node.update(zip(sent, (m.metadata.dst_node_id for m in messages), strict=True))
        return sent

    def pull_messages(self, message_ids):
        (one,) = message_ids
        self.looked.append(self.node[one])
        self.left -= 1
        return super().pull_messages([one]) if self.left < 0 and self.node[one] not in self.silent else []


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(asking, "SOON_S", 0.001)
    monkeypatch.setattr(asking, "POLL_S", 0.001)


def ask(grid, timeout_s=60.0):
    asker = Asker(grid, timeout_s=timeout_s)
    contents = dict.fromkeys(NODES, RecordDict())
    asked = asker.ask("query.any", contents, "round 0", lambda content: content["it"]["node"])
    return list(asked), asker


def test_one_answer_at_a_time_is_looked_for_in_turn_and_all_of_them_once_one_has_come():
    grid = Slow(looks=5 + 20)
    answers, asker = ask(grid)
    assert sorted(answers) == [(node, node) for node in NODES]
    assert asker.left_out == {}
    assert grid.looked[:5] == list(NODES), "at first there may be all"
    turns = grid.looked[5:25]
    assert {node: turns.count(node) for node in NODES} == dict.fromkeys(NODES, 4)
    assert len(grid.looked) == 25 + 5


def test_a_node_that_never_answers_costs_no_other_its_answer():
    answers, asker = ask(Slow(looks=0, silent={4}), timeout_s=0.2)
    assert sorted(answers) == [(node, node) for node in NODES if node != 4]
    assert asker.left_out == {"node 4": "did not answer query.any in 0 s"}


def test_when_time_is_over_all_answers_are_looked_for_once_more(monkeypatch):
    class Clock:
        """Time is over after the 20th look, when all answers come."""

        def monotonic(self):
            if len(grid.looked) >= 20:
                grid.left = 0
                return 100.0
            return 0.0

        def sleep(self, seconds):
            pass

    grid = Slow(looks=10**9)
    monkeypatch.setattr(asking, "time", Clock())
    answers, asker = ask(grid, timeout_s=50.0)
    assert sorted(answers) == [(node, node) for node in NODES]
    assert asker.left_out == {}


class Full:
    """A recorder whose disk is full when the second answer comes."""

    def __init__(self):
        self.answers = 0

    def note(self, kind, **values):
        self.answers += kind.endswith(".reply")
        if self.answers == 2:
            raise RunFolderError("transcript: cannot be written: No space left on device")


def test_a_full_disk_of_the_owners_ends_the_run_and_is_no_clients_fault(caplog):
    with pytest.raises(RunFolderError, match="No space left on device"):
        ask(WatchedGrid(Slow(looks=0), Full()))
    assert "is left out" not in caplog.text
