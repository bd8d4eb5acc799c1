"""A node's answers count for one client only, whatever name they give."""

import pytest
from flwr.app import ConfigRecord, Error, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import (
    ConfigError,
    RoundAborted,
)
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from tests.support.hostile_clients import HOSTILE, OTHERS, Hostile, in_the_clear, participants, served
from tests.support.malformed import ANSI

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


def test_a_masked_answer_in_another_clients_name_is_refused_before_it_is_taken(world, tmp_path):
    def lie(kind, true):
        if kind != "query.share":
            return true
        return RecordDict({"protocol": ConfigRecord({**true["protocol"], "client": "c1"})})

    served(world, world[0], Hostile(lie), tmp_path)
    assert participants(tmp_path) == OTHERS
