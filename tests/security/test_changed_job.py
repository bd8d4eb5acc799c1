"""A job that arrives between two steps of an attempt ends it: what was agreed on is one thing throughout.

Otherwise survivors of one run would be written down under another run, and a second attempt could be
unmasked for others: the difference of the two sums is one client's update.
"""

import json

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.config import ProtectConfig, parse_config
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.journal.rounds import Attempt, Journal
from fedproxy_secure.journal.store import create_journal
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake import store as proxy_store
from tests.support.tiny import tiny_settings

STEPS = ("query.share", "query.mask", "query.confirm", "query.unmask")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A job of five clients and one round with the default protection, its proxy, the initial state."""
    folder = tmp_path_factory.mktemp("changed")
    config = parse_config(tiny_settings(folder, clients=5, federate={"rounds": 1}))
    job = FederationJob.from_config(config, seed=0)
    job = job.changed(fusion=job.fusion.model_copy(update={"rule": "fedavg"}), protect=ProtectConfig())
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


class OtherJobBefore(InProcessGrid):
    """A server that sets clients up for another seed before one step, and for the first one before others.

    It does not ask node `lost` for its vector.
    """

    def __init__(self, step):
        super().__init__(client_app.app, 5)
        self.step, self.lost, self.job = step, None, None

    def push_messages(self, messages):
        kept = []
        for message in messages:
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if kind == "query.setup":
                self.job = dict(message.content.config_records["job"])
            if kind in STEPS:
                other = json.loads(self.job["json"]) | {"seed": int(kind == self.step)}
                asked = RecordDict({"job": ConfigRecord(self.job | {"json": json.dumps(other)})})
                reply = client_app.app(Message(asked, node, "query.setup"), self._contexts[node])
                assert wire.decode_failure(reply.content) is None
            if (kind, node) != ("query.mask", self.lost):
                kept.append(message)
        return super().push_messages(kept)


@pytest.mark.parametrize("step", STEPS)
def test_a_job_that_arrives_between_two_steps_ends_the_attempt(world, step, caplog):
    job, folder, initial = world
    with (
        proxy_store.offered_on_this_host(folder),
        with_keys(job) as keyed,
        pytest.raises(RoundAborted, match=f"{step.removeprefix('query.')}: 0 of 5 clients"),
    ):
        serve(OtherJobBefore(step), keyed, folder, initial)
    assert "settings: were changed within an attempt" in caplog.text


def test_survivors_stay_pinned_whatever_job_comes_before_the_unmasking(world, caplog):
    """Two sums, with the last client and without it, from one round."""
    job, folder, initial = world
    unmasked, said = [], []
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        grid = OtherJobBefore("query.unmask")
        for grid.step, grid.lost in (("", None), ("query.unmask", None), ("", 6)):
            try:
                unmasked.append(serve(grid, keyed, folder, initial))
            except RoundAborted as error:
                said.append(str(error))
    assert len(unmasked) == 1
    assert len(said) == 2
    assert "survivors: must be those that round 0 was unmasked for before" in caplog.text, said


def test_survivors_are_not_written_down_for_a_run_that_never_began(tmp_path):
    create_journal(tmp_path, "a")
    journal = Journal(folder=tmp_path, client="a")
    journal.begin(
        Attempt(
            run="run",
            round=0,
            attempt=1,
            context=b"first",
            clip=0.5,
            broadcast_sha256=b"b" * 32,
            cohort=("a", "b", "c"),
        )
    )
    with pytest.raises(ProtocolAborted, match="round 0: was never begun in this run"):
        journal.release(
            b"first", run="other", round=0, survivors=("a", "b", "c"), refuse_differencing=False
        )
