"""A server that sends two messages at once reads no vector; from clients that forget, it reads all."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from fedproxy_secure.config import ProtectConfig, parse_config
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.selftest.hostile import SnapshotGrid, TwoInboxes
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import writing
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.proxy_intake import store as proxy_store
from tests.support.tiny import tiny_settings

# forked from a process with threads of its own: only the client app runs in the child
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A job of five clients and one round with the default protection, its proxy, the initial state."""
    folder = tmp_path_factory.mktemp("parallel")
    config = parse_config(tiny_settings(folder, clients=5, federate={"rounds": 1}))
    job = FederationJob.from_config(config, seed=0)
    job = job.changed(fusion=job.fusion.model_copy(update={"rule": "fedavg"}), protect=ProtectConfig())
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


class Forgetful(Journal):
    """Known-bad: it grants every step, as a session in Flower's state did to messages at once."""

    def take(self, step):
        with writing(self.file) as database:
            kept = dict(database.execute("SELECT name, value FROM kept").fetchall())
            first = {n.removeprefix(f"{step} "): v for n, v in kept.items() if n.startswith(f"{step} ")}
            if not first:
                first = {n: v for n, v in kept.items() if " " not in n}
                rows = [(f"{step} {n}", v) for n, v in first.items()]
                database.executemany("INSERT INTO kept VALUES (?, ?)", rows)
            return first

    def put(self, context, kept):
        with writing(self.file) as database:
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", kept.items())

    def release(self, context, **survivors):
        pass


class ProcessGrid(SnapshotGrid):
    """Each message is answered in a process of its own, all that were pushed together at once."""

    def __init__(self, app, nodes):
        super().__init__(app, nodes)
        self.answered_by = {}  # processes, by node and kind of message

    def pull_messages(self, message_ids):
        waiting = [self._waiting.pop(i) for i in message_ids if i in self._waiting]
        jobs = []
        for message in waiting:
            receiver, sender = FORK.Pipe(duplex=False)
            worker = FORK.Process(target=self._play, args=(message, sender))
            worker.start()
            jobs.append((worker, receiver, message))
        for worker, receiver, message in jobs:
            node = message.metadata.dst_node_id
            if not receiver.poll(60):  # forked with a lock held: rare, and no matter of what is tested
                worker.kill()
                yield self._answer(message)
                continue
            reply, state, process = pickle.loads(receiver.recv_bytes())
            worker.join()
            self.answered_by.setdefault((node, message.metadata.message_type), set()).add(process)
            self._contexts[node].state = state
            yield reply

    def _play(self, message, sender):
        reply = self._answer(message)
        state = self._contexts[message.metadata.dst_node_id].state
        sender.send_bytes(pickle.dumps((reply, state, os.getpid())))


def attacked(world, inside):
    """Play the attack on client c2 on this grid.

    Returns the attack afterwards, the victim's true update and how the round ended.
    """
    job, folder, initial = world
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        sizes = initial.sizes.tolist()
        grid = TwoInboxes(inside, job=keyed, sizes=sizes, victim="c2")
        victim = build_client(with_proxy(job, folder), 2, folder)
        truth = victim.train(round=0, start=initial.adapter).update
        try:
            serve(grid, keyed, folder, initial)
            ended = "normally"
        except RoundAborted as error:
            ended = str(error)
    return grid, truth, ended


@pytest.mark.parametrize("grid_kind", [SnapshotGrid, ProcessGrid], ids=["snapshots", "processes"])
def test_two_inboxes_at_once_read_nothing_of_the_victim(world, grid_kind):
    inside = grid_kind(client_app.app, 5)
    grid, _, _ = attacked(world, inside)
    assert grid.answered_twice() == []
    if grid_kind is ProcessGrid:
        asked = {node: len(by) for (node, kind), by in inside.answered_by.items() if kind == "query.mask"}
        assert 2 in asked.values(), "no client answered its two inboxes in two processes"
    with pytest.raises(ProtocolAborted, match=r"0 clients answered twice: mask: (was|asked)"):
        grid.victims_update()


def test_from_clients_whose_journal_forgets_the_same_attack_reads_every_number(world):
    with attempt.unsafe_journals(Forgetful):
        grid, truth, ended = attacked(world, SnapshotGrid(client_app.app, 5))
    assert ended == "normally"
    np.testing.assert_allclose(grid.victims_update(), truth, atol=1e-6)
