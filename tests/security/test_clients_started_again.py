"""A node that is started again forgets the job; it is set up again, and answers nothing twice for that."""

import pytest
from flwr.app import Message, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.errors import RoundAborted
from tests.support.masked_rounds import STEPS, Wrapped, masked_world, serve_with, with_

NODE = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return masked_world(tmp_path_factory)


class Forgetful(Wrapped):
    """The real client app; `forgets(kind)` says whether the node starts again before it answers."""

    def __init__(self, forgets):
        super().__init__()
        self.forgets, self.seen = forgets, []

    def __call__(self, message, context):
        kind = message.metadata.message_type
        if context.node_id == NODE:
            self.seen.append(kind)
            if self.forgets(kind):
                context.state = RecordDict()
        return super().__call__(message, context)


def once_at(step):
    left = [step]

    def forgets(kind):
        if kind in left:
            left.remove(kind)
            return True
        return False

    return forgets


@pytest.fixture(scope="module")
def undisturbed(world) -> bytes:
    """The adapter that nodes make which nobody starts again."""
    return serve_with(world, with_(world[0], "h_ties")).adapter.tobytes()


@pytest.mark.parametrize("step", STEPS)
def test_the_result_is_that_of_nodes_that_were_never_started_again(world, undisturbed, step):
    job = with_(world[0], "h_ties")
    forgetful = Forgetful(once_at(step))
    state = serve_with(world, job, forgetful)
    assert state.adapter.tobytes() == undisturbed
    assert forgetful.seen.count("query.setup") == 2
    assert forgetful.seen.count(step) == job.federate.rounds + 1


def test_a_node_that_forgets_again_and_again_is_set_up_once_for_each_request_and_left_out(world):
    job = with_(world[0], rounds=1)
    forgetful = Forgetful(lambda kind: kind in STEPS)
    whole = Wrapped(fails=lambda kind, node: kind in STEPS and node == NODE)
    assert (
        serve_with(world, job, forgetful).adapter.tobytes()
        == serve_with(world, job, whole).adapter.tobytes()
    )
    assert forgetful.seen == ["query.setup", "train", "query.setup", "train"]


def test_a_node_that_comes_back_as_another_client_is_left_out(world):
    class Other(Forgetful):
        def __call__(self, message, context):
            reply = super().__call__(message, context)
            if context.node_id == NODE and self.seen.count("query.setup") == 2:
                return Message(wire.encode_ready(wire.Ready(ready=True, client="c0")), reply_to=message)
            return reply

    other = Other(once_at("train"))
    serve_with(world, with_(world[0], rounds=1), other)
    assert other.seen == ["query.setup", "train", "query.setup"]


def test_too_many_that_forget_for_good_end_the_round(world):
    job = with_(world[0], rounds=1)

    class All(Wrapped):
        def __call__(self, message, context):
            if message.metadata.message_type == "query.mask":
                context.state = RecordDict()
            return super().__call__(message, context)

    with pytest.raises(RoundAborted):
        serve_with(world, job, All(fails=lambda kind, node: kind == "query.mask" and node < 4))
