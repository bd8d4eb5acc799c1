"""A client that answers garbage ends its own part of a round; garbage from a server is one line."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedproxy_secure import wire
from fedproxy_secure.errors import (
    RoundAborted,
)
from fedproxy_secure.flower import client_app
from tests.support.hostile_clients import OTHERS, STEPS, Hostile, in_the_clear, participants, served
from tests.support.malformed import ANSI, PETABYTES, PICKLED, put_together

GARBAGE = {
    "nothing": RecordDict(),
    "other records": RecordDict({"protocol": ConfigRecord({"a": 1}), "setup": ConfigRecord()}),
    "35 PiB": put_together(
        {"vectors": ("array", {"update": ("float32", (10**16,), "numpy.ndarray", PETABYTES)})}
    ),
    "pickled": put_together(
        {
            "vectors": ("array", {"update": ("float32", (8,), "numpy.ndarray", PICKLED)}),
            "protocol": ("config", {"client": [ANSI] * 3}),
        }
    ),
    "a failure that is none": RecordDict({"failure": ConfigRecord({"kind": 3})}),
}


@pytest.mark.parametrize(("step", "garbage"), list(zip(STEPS, [*GARBAGE, "35 PiB"], strict=True)))
def test_garbage_at_any_step_of_masking_leaves_out_its_client_alone(world, tmp_path, step, garbage):
    app = Hostile(lambda kind, true: GARBAGE[garbage] if kind == step else true)
    state, _ = served(world, world[0], app, tmp_path)
    assert state.round == 1
    everyone = [c.name for c in world[0].clients]
    assert participants(tmp_path) == (everyone if step in STEPS[4:] else OTHERS)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_the_clear_leaves_out_its_client_alone(world, tmp_path, garbage):
    app = Hostile(lambda kind, true: GARBAGE[garbage] if kind == "train" else true)
    state, seen = served(world, in_the_clear(world[0]), app, tmp_path)
    assert state.round == 1
    assert seen == participants(tmp_path) == OTHERS


def test_an_update_so_long_that_sums_overflow_leaves_out_its_client_alone(world, tmp_path, caplog):
    def enormous(kind, true):
        if kind != "train":
            return true
        d = len(world[2].adapter)
        return wire.encode_update(
            replace(wire.decode_update(true, d=d), update=np.full(d, 1e20, np.float32))
        )

    state, seen = served(world, in_the_clear(world[0]), Hostile(enormous), tmp_path)
    assert seen == participants(tmp_path) == OTHERS
    assert np.isfinite(state.adapter).all()
    assert "long; must be <= 1e+06" in caplog.text


def test_losses_so_high_that_their_mean_is_infinite_leave_out_their_clients_alone(world, tmp_path):
    def enormous(kind, true):
        if kind != "train":
            return true
        return wire.encode_update(replace(wire.decode_update(true, d=len(world[2].adapter)), loss=1e308))

    state, seen = served(world, in_the_clear(world[0]), Hostile(enormous, nodes=(3, 4)), tmp_path)
    assert seen == participants(tmp_path)
    assert len(seen) == 3
    assert state.round == 1


def test_garbage_is_noted_in_a_transcript_and_ends_nothing_there(world, tmp_path):
    job = in_the_clear(world[0])
    job = job.changed(audit=job.audit.model_copy(update={"record": True, "folder": str(tmp_path / "t")}))
    app = Hostile(lambda kind, true: GARBAGE["pickled"] if kind == "train" else true)
    _, seen = served(world, job, app)
    assert seen == OTHERS
    kinds = [
        json.loads(line)["kind"] for line in (tmp_path / "t" / "events.jsonl").read_text().splitlines()
    ]
    assert kinds.count("train.reply") == 5


@pytest.mark.parametrize(
    ("scheme", "step"),
    [*(("masking", step) for step in STEPS), *(("unsafe_plaintext", step) for step in STEPS[:2])],
)
def test_a_client_answers_whatever_a_server_sends_in_one_line(world, scheme, step):
    """Garbage before each true message of a step: one line each time, and the client is still there.

    The first garbage consumes the step of masking; each client gets another one first.
    """
    said, first = [], {}

    class Beset(ClientApp):
        def __call__(self, message, context):
            kind = message.metadata.message_type
            turn = context.node_id % len(GARBAGE)
            names = [*list(GARBAGE)[turn:], *list(GARBAGE)[:turn]] if kind == step else []
            for name in names:
                asked = Message(GARBAGE[name], message.metadata.dst_node_id, kind)
                before = dict(context.state.items())
                reply = client_app.app(asked, context)
                for key, record in before.items():  # a step that was asked for is consumed elsewhere
                    context.state[key] = record
                said.append(wire.decode_failure(reply.content))
                if name == names[0]:
                    first[name] = said[-1]
            return client_app.app(message, context)

    job = world[0] if scheme == "masking" else in_the_clear(world[0])
    with suppress(RoundAborted):
        served(world, job, Beset())
    assert len(said) == len(GARBAGE) * len(job.clients)
    assert all(failure is not None for failure in said)
    assert {name: kind for name, (kind, _) in first.items()} == dict.fromkeys(GARBAGE, "DataError")
    assert {kind for kind, _ in said} <= {"DataError", "ProtocolAborted"}
    assert all(line.isprintable() and len(line) < 400 for _, line in said)
