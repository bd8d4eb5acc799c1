"""A protection from outside with two steps: what a client keeps between them is used once."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.server import advance
from fedproxy_secure.protect import kept
from fedproxy_secure.protect.base import Protection, RoundResult
from fedproxy_secure.protect.gathering import gather
from fedproxy_secure.protect.one_message import train
from fedproxy_secure.wire import records
from tests.support.tiny import tiny_settings


class LateUpdates(Protection):
    """Clients keep their updates, and send them when they are asked to."""

    name, title, needs_keys = "unsafe_late", "late updates", True

    def __init__(self):
        self.answers, self.refused = [], []

    def sees(self, protect, fusion):
        return "unsafe_late: the server sees every update, later."

    def upload_bytes(self, job, sizes):
        return 4 * sum(sizes)

    def train(self, asked):
        kept.keep(
            asked, f"round {wire.decode_broadcast(asked.content).round}", train(asked).update.tobytes()
        )
        assert not asked.context.state.config_records.get("update"), "nothing is in Flower's state"
        return RecordDict({"done": ConfigRecord({"steps": 1})})

    def answer(self, asked):
        if not asked.step.startswith("round "):
            return super().answer(asked)
        return RecordDict({"update": ConfigRecord({"raw": kept.take(asked, asked.step)})})

    def read(self, reply, round):
        fields = records.record(reply, "update", ConfigRecord, "update", keys={"raw"})
        raw = records.raw_bytes(fields, "raw", length=round.state.adapter.nbytes)
        return np.frombuffer(raw, np.float32)

    def run_round(self, round):
        step = f"round {round.state.round}"
        names = gather(round, lambda name, _: name, message="Done", reveals="nothing", payload_bytes=1)
        asked = {name: wire.with_step(RecordDict(), step) for name in names}
        first = {name: self.read(reply, round) for name, reply in round.ask(wire.OTHER, asked, step)}
        self.answers.append(set(first))
        self.refused.append([name for name, _ in round.ask(wire.OTHER, asked, step)])
        updates = {name: first[name] for name in sorted(first)}
        mean = np.mean(list(updates.values()), axis=0)
        new = advance(round.state, mean, round.job.fusion, conflict=None)
        return RoundResult(state=new, metrics={}, clients=list(updates), updates=updates)


@pytest.fixture
def scheme() -> Iterator[LateUpdates]:
    late = LateUpdates()
    with PROTECTIONS.added(late.name, late):
        yield late


def test_each_kept_update_is_sent_once_and_the_second_request_gets_no_answer(scheme, tmp_path):
    settings = {"protect": {"scheme": scheme.name}, "fusion": {"rule": "fedavg"}}
    report = run(parse_config(tiny_settings(tmp_path, **settings)), tmp_path / "run", in_cell=True)
    assert all(len(names) == 3 for names in scheme.answers)
    assert scheme.refused == [[]] * len(scheme.answers)
    assert report.configurations[0].unsafe == ("unsafe_late: the server learns single clients' updates.",)


def test_it_ends_as_updates_in_the_clear_do(scheme, tmp_path):
    states = []
    for name in (scheme.name, "unsafe_plaintext"):
        settings = {"protect": {"scheme": name}, "fusion": {"rule": "fedavg"}}
        folder = tmp_path / name
        run(parse_config(tiny_settings(folder, **settings)), folder / "run", in_cell=True)
        (state,) = (folder / "run").rglob("state.safetensors")
        states.append(state.read_bytes())
    assert states[0] == states[1]
