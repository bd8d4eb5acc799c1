"""Ids and senders of messages, and the bytes of an app, as Flower makes them."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import uuid4

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity


def act_as_server() -> None:
    """Mark new messages of this process as the server's: node 1 of run 1."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def give_id(message: Message) -> str:
    """Give a message a new id, as a SuperLink does when it is pushed, and return the id."""
    message.metadata.__dict__["_message_id"] = str(uuid4())
    return message.metadata.message_id


def pack_app(files: Mapping[str, bytes]) -> bytes:
    """Return an app's files packed as by `flwr run`: the same files give the same bytes."""
    from flwr.cli.build import build_fab_from_files

    return build_fab_from_files(files)[0]
