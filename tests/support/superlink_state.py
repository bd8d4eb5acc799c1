"""A SuperLink's state with Flower's own store of objects, and ids in Flower's form."""

from __future__ import annotations

import hashlib
from typing import Any


def named(name: str) -> str:
    """The id of an object, in the form of Flower's."""
    return hashlib.sha256(name.encode()).hexdigest()


class State:
    """A SuperLink's state with Flower's own store of objects."""

    def __init__(self):
        from flwr.supercore.object_store import ObjectStoreFactory

        store: Any = ObjectStoreFactory().store()
        self.message_ins_id_to_message_res_id: dict[str, str] = {}
        store.verify = False  # contents here are zeros, which their ids do not say
        self.object_store = store
        self.message_ins_store: dict[str, Any] = {}
        self.message_res_store: dict[str, Any] = {}

    def announce(self, root, *parts):
        """Store an answer's message, and announce its parts, as pushing it does."""
        from flwr.proto.message_pb2 import ObjectTree

        children = [ObjectTree(object_id=named(part)) for part in parts]
        self.message_res_store[named(root)] = "a message"
        self.object_store.preregister(1, ObjectTree(object_id=named(root), children=children))
