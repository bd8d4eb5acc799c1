"""A client that answers what a test says, and rounds in which it takes part."""

import json

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedproxy_secure.config import ProtectConfig
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.proxy_intake import store as proxy_store

STEPS = ("query.setup", "train", "query.share", "query.mask", "query.confirm", "query.unmask")

HOSTILE = 4  # the node that is malicious: client c2


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
