"""What a SuperLink takes of its nodes: answers of their own, of a plain structure and a bounded size."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)
DEEPEST = 8  # message, records, arrays, pieces of arrays
MOST_OBJECTS = 10_000  # pieces are of 5 MiB


def only_answers(push: Any) -> Any:
    """Return Flower's handler of pushed messages that takes a node's own answers alone."""
    from fastapi import HTTPException

    def checked(request: Any, state: Any) -> Any:
        node = request.node.node_id
        sound = len(request.messages_list) == len(request.message_object_trees) == 1
        for tree in request.message_object_trees:
            sound &= is_plain_tree(tree, state.object_store)
        for message in request.messages_list:
            data = message.metadata
            sound &= data.src_node_id == node and data.dst_node_id == 1 and bool(data.reply_to_message_id)
        if not sound:
            log.error("node %d pushed what is not an answer of its own; it is refused", node)
            raise HTTPException(status_code=403, detail="a node may push answers of its own alone")
        return push(request, state)

    return checked


def is_plain_tree(tree: Any, store: Any) -> bool:
    """Return whether a store can take an answer's tree of objects and expand it to what was pushed.

    A tree in which an object has different children in two places, or other children than the store has for
    it, may expand without end, or hang itself below another node's message.
    """
    children_of: dict[str, tuple[str, ...]] = {}
    stack, count = [(tree, 1)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        children = tuple(child.object_id for child in node.children)
        known = store.store.get(node.object_id)
        if depth > DEEPEST or count > MOST_OBJECTS:
            return False
        if children_of.setdefault(node.object_id, children) != children:
            return False
        if known is not None and tuple(known.child_object_ids) != children:
            return False
        stack += [(child, depth + 1) for child in node.children]
    return True


def of_bounded_size(push: Any, most_bytes: Callable[[], int]) -> Any:
    """Return Flower's handler of a pushed part of an answer that stores a bounded sum for each node.

    A part that would make it more is refused. What the server app has taken no longer counts.

    Args:
        push: Flower's handler.
        most_bytes: returns how many bytes may be stored for one node.
    """
    from fastapi import HTTPException

    stored: dict[int, dict[str, int]] = {}
    lock = threading.Lock()

    def checked(request: Any, state: Any) -> Any:
        node, size = request.node.node_id, len(request.object_content)
        with lock:
            parts = stored.setdefault(node, {})
            parts[request.object_id] = size
            if sum(parts.values()) > most_bytes():
                there = {request.object_id, *state.object_store.store}
                stored[node] = parts = {part: n for part, n in parts.items() if part in there}
            if sum(parts.values()) > most_bytes():
                del parts[request.object_id]
                log.error("node %d pushed more than an answer may have; the rest is refused", node)
                raise HTTPException(status_code=413, detail="an answer has fewer bytes")
        return push(request, state)

    return checked
