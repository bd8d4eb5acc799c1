"""An active adversary that changes messages on their way, as far as its threat model lets it."""

from contextlib import suppress

from fedproxy_secure import wire
from fedproxy_secure.errors import DataError
from fedproxy_secure.flower.client_app import app
from fedproxy_secure.flower.engines import with_keys, with_transcript
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.proxy_intake import store as proxy_store


class TamperingGrid(GridAround):
    """`change` gets type, client and content of each message, and returns the new content.

    An adversary at the server changes what the server sends, one in the network also what clients send.
    """

    def __init__(self, grid, adversary, change):
        assert adversary.active
        assert adversary.server or adversary.network
        super().__init__(grid)
        self._change, self._both_ways = change, adversary.network
        self._names = {}

    def push_messages(self, messages):
        passed = []
        for message in messages:
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            message.content = self._change(kind, self._name(node), message.content)
            passed.append(message)
        return super().push_messages(passed)

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            assert not reply.has_error()
            node, kind = reply.metadata.src_node_id, reply.metadata.message_type
            with suppress(DataError):
                self._names[node] = wire.decode_ready(reply.content).client
            if self._both_ways:
                reply.content = self._change(f"{kind}.reply", self._name(node), reply.content)
            yield reply

    def _name(self, node):
        return self._names.get(node, f"node {node}")


def federate_tampered(job, folder, initial, run_folder, adversary, change):
    """Run a job in this process, beside an adversary."""
    grid = TamperingGrid(InProcessGrid(app, len(job.clients)), adversary, change)
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        ready = with_transcript(keyed, run_folder)
        return serve(grid, ready, folder, initial, run_folder=run_folder, one_machine=True)
