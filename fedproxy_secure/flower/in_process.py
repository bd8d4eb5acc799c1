"""The in-process engine: a Flower grid that calls the client app in this process, one node at a time.

Deterministic and ready at once: no server, no ports, no worker processes. The same server app and
client app run here as in a deployment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

log = logging.getLogger(__name__)
ONE_MACHINE = "one-machine"  # of a node's settings: this machine plays server and clients
CLIENT_APP_FAILED = 1000  # the reply's error code when the client app raised


class InProcessGrid(Grid):
    """`nodes` clients, numbered from 2 (the server is 1), with `partition-id` 0 .. nodes - 1."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        # Flower stamps every message with the identity of the task it runs in; here it is always 1
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
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
        """There is one run only; nothing to choose."""

    @property
    def run(self) -> Any:
        """No run is registered anywhere."""
        raise AttributeError("an in-process grid has no run record")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are asked for."""
        pushed = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._waiting[message.metadata.message_id] = message
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Let each node answer its message; a generator, so that progress shows client by client."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                yield self._answer(message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push and pull in one call; nothing here can time out."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._app(message, context)
        except Exception as error:  # as a SuperNode does: the client fails, the run goes on
            log.exception("client app of node %d failed", message.metadata.dst_node_id)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(code=CLIENT_APP_FAILED, reason=reason), reply_to=message)
