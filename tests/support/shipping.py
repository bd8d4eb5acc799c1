"""Clients on machines of their own, and lines between them that are cut."""

import os

from flwr.app import Error, Message

from fedproxy_secure import wire
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from tests.support.masked_rounds import Wrapped

NODE = 4

PART = 10_000  # of some 85,000 bytes


class OwnCaches(Wrapped):
    """The real client app, each node of which keeps proxies in a folder of its own.

    `instead(kind, node)` returns what a node answers in its place, None where it is as it should be.
    """

    def __init__(self, folder, instead=lambda kind, node: None):
        super().__init__()
        self.folder, self.instead, self.seen = folder, instead, []

    def __call__(self, message, context):
        kind, node = message.metadata.message_type, context.node_id
        os.environ["FEDPROXY_CACHE"] = str(self.folder / str(node))
        self.seen.append((kind, node))
        other = self.instead(kind, node)
        return super().__call__(message, context) if other is None else Message(other, reply_to=message)

    def count(self, kind, node=NODE):
        return self.seen.count((kind, node))


class Cut(GridAround):
    """Loses a node's answers to these of its parts, after which the node is away for some looks.

    With `requests` the node does not even get those parts. `kind`: another type of message than parts.
    """

    def __init__(self, grid, lost, *, away=0, silent=False, requests=False, kind=wire.PART):
        super().__init__(grid)
        self.lost, self.away, self.silent, self.requests = lost, away, silent, requests
        self.kind = kind
        self.left, self.parts, self.asked_while_away, self.pushed = 0, 0, 0, {}

    def get_node_ids(self):
        self.left = max(0, self.left - 1)
        return [node for node in super().get_node_ids() if node != NODE or not self.left]

    def push_messages(self, messages):
        messages = list(messages)
        if self.left and any(m.metadata.dst_node_id == NODE for m in messages):
            self.asked_while_away += 1
        sent = list(super().push_messages(messages))
        self.pushed.update(zip(sent, messages, strict=True))
        return sent

    def pull_messages(self, message_ids):
        for sent in message_ids:
            message = self.pushed[sent]
            mine = (message.metadata.message_type, message.metadata.dst_node_id) == (self.kind, NODE)
            self.parts += mine
            lost = mine and self.parts in self.lost
            replies = [] if lost and self.requests else list(super().pull_messages([sent]))
            if lost:
                self.left = self.away
                replies = [Message(Error(code=5, reason="Node Unavailable"), reply_to=message)]
            yield from [] if lost and self.silent else replies


def shipped(world, job, app, around=lambda grid: grid, **more):
    _, folder, initial = world
    return serve(around(InProcessGrid(app, len(job.clients))), job, folder, initial, **more)
