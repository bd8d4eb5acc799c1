"""Every use that this project makes of Flower beyond Flower's public interface.

Flower gives a message its id when it is pushed, and takes the sender of a new message from the task that
is running. The in-process grid (`in_process`) has to do both itself. `HOLDS_FOR` lists the versions of
Flower that this was tried with; `tests/unit/test_flower_internals.py` tries the installed version.
"""

from __future__ import annotations

from uuid import uuid4

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

HOLDS_FOR = ("1.41.0",)


def act_as_server() -> None:
    """Mark new messages of this process as the server's: node 1 of run 1."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def give_id(message: Message) -> str:
    """Give a message a new id, as a SuperLink does when it is pushed, and return the id."""
    message.metadata.__dict__["_message_id"] = str(uuid4())
    return message.metadata.message_id
