"""The in-process engine: a Flower grid that calls the client app in this process, one node at a time.

Deterministic and ready at once: no server, no ports, no worker processes. The same server app and
client app run here as in a deployment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedproxy_secure.flower.internals.messages import act_as_server, give_id
from fedproxy_secure.protect.secure_sum.attempt import ONE_MACHINE

log = logging.getLogger(__name__)

CLIENT_APP_FAILED = 1000  # error code of the reply when the client app raised


class InProcessGrid(Grid):
    """A Flower grid whose nodes are clients in this process.

    The ids of its `nodes` nodes begin at 2 (the server is 1); `partition-id` goes from 0 to `nodes - 1`.
    """

    def __init__(self, app: ClientApp, nodes: int) -> None:
        act_as_server()
        self._app = app
        self._contexts = {
            index + 2: Context(
                run_id=1,
                node_id=index + 2,
                node_config={"partition-id": index, "num-partitions": nodes, ONE_MACHINE: True},
                state=RecordDict(),
                run_config={},
            )
            for index in range(nodes)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Do nothing: an in-process grid has only one run."""

    @property
    def run(self) -> Any:
        """The record of the run, which an in-process grid lacks; raises `AttributeError`."""
        raise AttributeError("an in-process grid has no run record")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, which are always connected."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled, and return their ids."""
        message_ids = []
        for message in messages:
            message_id = give_id(message)
            self._waiting[message_id] = message
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield each node's answer when the node gives it, so that progress shows client by client."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                yield self._answer(message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages and yield their replies, in one call; nothing here can time out."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._app(message, context)
        except Exception as error:  # as with a SuperNode, the client fails and the run goes on
            log.exception("client app of node %d failed", message.metadata.dst_node_id)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(code=CLIENT_APP_FAILED, reason=reason), reply_to=message)
