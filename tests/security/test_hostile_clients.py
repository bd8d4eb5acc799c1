"""One client that answers anything it likes ends its own part of a round, and nobody else's."""

import json
import logging
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedproxy_secure import wire
from fedproxy_secure.config import ProtectConfig, parse_config
from fedproxy_secure.errors import (
    ConfigError,
    DataError,
    PrivacyError,
    RoundAborted,
    TrainingError,
)
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.proxy_intake import store as proxy_store
from tests.support.malformed import ANSI, PETABYTES, PICKLED, put_together
from tests.support.tiny import tiny_settings

STEPS = ("query.setup", "train", "query.share", "query.mask", "query.confirm", "query.unmask")
HOSTILE = 4  # the node that is malicious: client c2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A job of five clients and one round, the model's folder and the initial state."""
    folder = tmp_path_factory.mktemp("hostile")
    raw = tiny_settings(folder, clients=5, federate={"rounds": 1}, fusion={"rule": "fedavg"})
    job = FederationJob.from_config(parse_config(raw), seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


def in_the_clear(job, **federate):
    return job.changed(
        protect=ProtectConfig(scheme="unsafe_plaintext"),
        federate=job.federate.model_copy(update=federate),
    )


class Hostile(ClientApp):
    """The real client app, but for one node's answers: `answer` gets kind and true content."""

    def __init__(self, answer, nodes=(HOSTILE,)):
        super().__init__()
        self.answer, self.nodes = answer, nodes

    def __call__(self, message, context):
        reply = client_app.app(message, context)
        if context.node_id not in self.nodes:
            return reply
        made = self.answer(message.metadata.message_type, reply.content)
        return Message(made, reply_to=message)


def served(world, job, app, tmp_path=None, grid=InProcessGrid, **more):
    """The last state, and who took part."""
    _, folder, initial = world
    seen = []
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        made = grid(app, len(job.clients))
        state = serve(made, keyed, folder, initial, run_folder=tmp_path, on_client=seen.append, **more)
    return state, sorted(seen)


def participants(folder):
    (line,) = (folder / "rounds.jsonl").read_text().splitlines()
    return json.loads(line)["participants"]


OTHERS = ["c0", "c1", "c3", "c4"]
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


# what a client says went wrong


def fails(kind, line, at="train"):
    return Hostile(lambda step, true: wire.encode_failure(kind, line) if step == at else true)


@pytest.mark.parametrize("scheme", ["masking", "unsafe_plaintext"])
@pytest.mark.parametrize("step", STEPS[:2])
def test_a_client_that_fails_on_its_own_does_not_end_the_others_round(
    world, tmp_path, caplog, scheme, step
):
    job = world[0] if scheme == "masking" else in_the_clear(world[0])
    with caplog.at_level(logging.WARNING):
        served(world, job, fails("PrivacyError", ANSI + "x" * 10_000, step), tmp_path)
    assert participants(tmp_path) == OTHERS
    (line,) = [r.getMessage() for r in caplog.records if "all is well" in r.getMessage()]
    assert line.isprintable()
    assert len(line) < 500
    assert f"node {HOSTILE}" in line


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("PrivacyError", PrivacyError),
        ("KeyboardInterrupt", TrainingError),
        ("RoundAborted", TrainingError),
        ("annotations", TrainingError),
    ],
)
def test_where_too_few_are_left_the_first_clients_own_line_is_raised_as_one_of_a_few(world, kind, raised):
    job = in_the_clear(world[0], min_clients=5)
    with pytest.raises(raised, match=rf"^c2 \(node {HOSTILE}\) says: \?\[2J") as caught:
        served(world, job, fails(kind, ANSI))
    assert type(caught.value) is raised
    assert str(caught.value).isprintable()


def test_an_error_of_every_client_surfaces_as_itself(world):
    everyone = tuple(range(2, 7))
    refusing = Hostile(
        lambda step, true: (
            wire.encode_failure("PrivacyError", "epsilon would be 9") if step == "train" else true
        ),
        everyone,
    )
    for job in (world[0], in_the_clear(world[0])):
        with pytest.raises(PrivacyError, match=r"c0 .* says: epsilon would be 9"):
            served(world, job, refusing)


def test_where_one_machine_plays_everybody_the_first_error_ends_the_run(world):
    with pytest.raises(DataError, match=r"node 4 says: no records"):
        served(
            world, in_the_clear(world[0]), fails("DataError", "no records", "query.setup"), one_machine=True
        )


def test_a_client_that_leaves_the_protocol_has_dropped_out_whoever_plays_it(world, tmp_path):
    app = fails("ProtocolAborted", "not mine", "query.mask")
    served(world, world[0], app, tmp_path, one_machine=True)
    assert participants(tmp_path) == OTHERS


def test_too_few_without_an_error_of_their_own_are_a_round_aborted(world):
    app = Hostile(lambda kind, true: RecordDict() if kind == "query.setup" else true, (2, 3))
    with pytest.raises(
        RoundAborted, match=r"3 clients set up: must be >= 4 \(the threshold of a secure sum\)"
    ):
        served(world, world[0], app)
    job = in_the_clear(world[0], min_clients=4)
    with pytest.raises(RoundAborted, match=r"3 clients set up: must be >= 4 \(federate.min_clients\)"):
        served(world, job, app)


# names


def named(name):
    return wire.encode_ready(wire.Ready(ready=True, client=name))


def test_an_update_in_another_clients_name_is_not_taken_for_that_clients(world, tmp_path):
    """Whichever of the two comes last, c1 has the update that its own node sent."""

    def lie(kind, true):
        if kind != "train":
            return true
        metrics = ConfigRecord({**true["metrics"], "client": "c1"})
        vectors = true["vectors"]
        return RecordDict({"vectors": vectors, "metrics": metrics})

    honest, _ = served(
        world, in_the_clear(world[0]), Hostile(lambda kind, true: RecordDict() if kind == "train" else true)
    )
    lied, seen = served(world, in_the_clear(world[0]), Hostile(lie), tmp_path)
    assert seen == participants(tmp_path) == OTHERS
    assert lied.adapter.tobytes() == honest.adapter.tobytes()


@pytest.mark.parametrize("scheme", ["masking", "unsafe_plaintext"])
def test_a_name_that_two_nodes_claim_belongs_to_neither(world, caplog, scheme):
    job = world[0] if scheme == "masking" else in_the_clear(world[0])
    app = Hostile(lambda kind, true: named("c1") if kind == "query.setup" else true)
    if scheme == "masking":  # three of five are left, and a sum needs four
        with pytest.raises(RoundAborted, match="3 clients set up"):
            served(world, job, app)
    else:
        _, seen = served(world, job, app)
        assert seen == ["c0", "c3", "c4"]
    assert "nodes [3, 4] are left out: all of them claim the name c1" in caplog.text


def test_a_node_that_is_no_client_of_the_job_is_not_asked(world, caplog):
    app = Hostile(lambda kind, true: named("stranger") if kind == "query.setup" else true)
    _, seen = served(world, in_the_clear(world[0]), app)
    assert seen == OTHERS
    assert "node 4 is left out: no client is called 'stranger'" in caplog.text


def test_a_node_cannot_change_its_name_while_the_proxy_is_on_its_way(world):
    answers = {
        wire.SETUP: wire.encode_ready(wire.Ready(ready=False, client="c2")),
        wire.PART: wire.encode_ready(wire.Ready(ready=True, client="c9")),
    }
    asked = []

    def turncoat(kind, true):
        asked.append(kind)
        return answers.get(kind, true)

    _, seen = served(world, in_the_clear(world[0]), Hostile(turncoat))
    assert asked[:2] == [wire.SETUP, wire.PART]
    assert seen == OTHERS


def test_a_client_that_the_roster_does_not_have_is_a_wrong_setting(world):
    job = world[0]
    with with_keys(job) as keyed:
        stranger = keyed.clients[0].model_copy(update={"name": "c9"})
        more = keyed.changed(clients=(*keyed.clients, stranger))
        with pytest.raises(ConfigError, match="client c9: is not in the roster"):
            served(world, more, client_app.app)


# what Flower hands on


class Forging(InProcessGrid):
    """Node 4 uploads a message that says it comes from node 3 and answers the request to node 3."""

    def __init__(self, app, nodes):
        super().__init__(app, nodes)
        self.sent = {}

    def push_messages(self, messages):
        messages = list(messages)
        pushed = list(super().push_messages(messages))
        self.sent.update({m.metadata.dst_node_id: m.metadata.message_id for m in messages})
        return pushed

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            if reply.metadata.src_node_id == HOSTILE:
                reply.metadata.__dict__.update(_src_node_id=3, _reply_to_message_id=self.sent[3])
            yield reply


@pytest.mark.parametrize("scheme", ["masking", "unsafe_plaintext"])
def test_whose_answer_it_is_follows_from_the_request_not_from_what_the_answer_says(world, tmp_path, scheme):
    job = world[0] if scheme == "masking" else in_the_clear(world[0])
    served(world, job, client_app.app, tmp_path, grid=Forging)
    assert participants(tmp_path) == [c.name for c in world[0].clients]


class Broken(InProcessGrid):
    """What node 4 uploads is no message: putting it together raises, in whatever call it is among."""

    error: Exception = ValueError("Expecting value: line 1 column 1 (char 0)")

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(list(message_ids)))
        for reply in replies:
            if (reply.metadata.src_node_id, reply.metadata.message_type) == (HOSTILE, "train"):
                raise self.error
        return replies


@pytest.mark.parametrize("error", [ValueError("bad"), RecursionError()])
def test_an_upload_that_flower_cannot_put_together_leaves_out_its_client_alone(
    world, tmp_path, error, caplog
):
    class This(Broken):
        pass

    This.error = error
    with caplog.at_level("DEBUG", logger="fedproxy_secure.flower.asking"):
        served(world, world[0], client_app.app, tmp_path, grid=This)
    assert participants(tmp_path) == OTHERS
    (line,) = [
        r.getMessage() for r in caplog.records if f" raises {type(error).__name__}:" in r.getMessage()
    ]
    assert "in pull_messages" in line
    assert "bad" not in line, "what the client wrote"


class Empty(InProcessGrid):
    """Node 4's answers are Flower's own errors, with a reason that it wrote."""

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            if (reply.metadata.src_node_id, reply.metadata.message_type) == (HOSTILE, "train"):
                reply.__dict__.update(_content=None, _error=Error(code=1, reason=ANSI))
            yield reply


def test_flowers_own_errors_are_logged_in_printable_form(world, tmp_path, caplog):
    served(world, in_the_clear(world[0]), client_app.app, tmp_path, grid=Empty)
    assert participants(tmp_path) == OTHERS
    (line,) = [r.getMessage() for r in caplog.records if "all is well" in r.getMessage()]
    assert line.isprintable()


class Refusing(InProcessGrid):
    """A grid that does not send to node 4."""

    def push_messages(self, messages):
        pushed = list(super().push_messages(messages))
        return [sent if self._waiting[sent].metadata.dst_node_id != HOSTILE else None for sent in pushed]


def test_a_request_that_could_not_be_sent_counts_as_not_answered(world, tmp_path, caplog):
    served(world, world[0], client_app.app, tmp_path, grid=Refusing)
    assert participants(tmp_path) == OTHERS
    assert "setup: 1 requests could not be sent" in caplog.text


# the cohort


def cohorts_asked(world, silent):
    """The cohort that the terms name, where some nodes never get ready."""
    named_in_terms = []

    class Watching(Hostile):
        def __call__(self, message, context):
            if message.metadata.message_type == "train":
                named_in_terms.append(wire.decode_terms(message.content).cohort)
            return super().__call__(message, context)

    app = Watching(lambda kind, true: RecordDict() if kind == "query.setup" else true, silent)
    job = world[0]
    job = job.changed(federate=job.federate.model_copy(update={"participation": 0.8, "min_clients": 2}))
    with suppress(RoundAborted):
        served(world, job, app)
    (cohort,) = set(named_in_terms)
    return cohort


def test_who_takes_part_in_a_round_does_not_depend_on_who_is_there(world):
    everyone = cohorts_asked(world, ())
    assert len(everyone) == 4
    for silent in (2, 5):
        assert cohorts_asked(world, (silent,)) == everyone


def test_who_is_not_there_is_not_asked_in_the_clear_and_the_round_goes_on(world, tmp_path):
    app = Hostile(lambda kind, true: RecordDict() if kind == "query.setup" else true)
    _, seen = served(world, in_the_clear(world[0]), app, tmp_path)
    assert seen == participants(tmp_path) == OTHERS


def test_a_masked_answer_in_another_clients_name_is_refused_before_it_is_taken(world, tmp_path):
    def lie(kind, true):
        if kind != "query.share":
            return true
        return RecordDict({"protocol": ConfigRecord({**true["protocol"], "client": "c1"})})

    served(world, world[0], Hostile(lie), tmp_path)
    assert participants(tmp_path) == OTHERS


def test_an_honest_run_cuts_no_step_and_says_so(world, tmp_path):
    served(world, world[0], client_app.app, tmp_path)
    (line,) = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line)["step_cut"] == 0.0


def test_a_secure_sum_of_too_few_clients_may_pass_by_itself(world):
    app = Hostile(lambda kind, true: RecordDict() if kind == "query.mask" else true, (2, 3))
    with pytest.raises(RoundAborted, match="mask: 3 of 5 clients; must be >= 4") as aborted:
        served(world, world[0], app)
    assert aborted.value.passing


# the other direction


@pytest.mark.parametrize("scheme", ["masking", "unsafe_plaintext"])
def test_a_client_answers_whatever_a_server_sends_in_one_line(world, scheme):
    """Garbage before each true message: one line each time, and the client is still there."""
    said = []

    class Beset(ClientApp):
        def __call__(self, message, context):
            kind = message.metadata.message_type
            for garbage in GARBAGE.values():
                asked = Message(garbage, message.metadata.dst_node_id, kind)
                before = dict(context.state.items())
                reply = client_app.app(asked, context)
                for name, record in before.items():  # a step that was asked for is consumed elsewhere
                    context.state[name] = record
                said.append((kind, wire.decode_failure(reply.content)))
            return client_app.app(message, context)

    job = world[0] if scheme == "masking" else in_the_clear(world[0])
    with suppress(RoundAborted):
        served(world, job, Beset())
    assert {kind for kind, _ in said} >= set(STEPS[:2])
    assert all(failure is not None for _, failure in said)
    assert {failure[0] for _, failure in said} <= {"DataError", "ProtocolAborted"}
    assert all(failure[1].isprintable() and len(failure[1]) < 400 for _, failure in said)
