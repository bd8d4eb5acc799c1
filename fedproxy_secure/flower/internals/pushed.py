"""Checks of what nodes push to a SuperLink: only answers of their own, of plain structure and bounded size.

Flower 1.41 keeps the parts of an answer that came too late or incomplete until the run ends. Here they are
deleted when their node needs the space.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection
from typing import Any

log = logging.getLogger(__name__)
DEEPEST = 8  # levels of a tree: message, records, arrays, pieces of arrays
MOST_OBJECTS = 10_000  # in a tree; Flower cuts arrays into pieces of 5 MiB
MOST_MESSAGE_BYTES = 2**16  # of a message without its parts
OBJECT_ID = re.compile(r"[0-9a-f]{64}")


def only_answers(push: Any) -> Any:
    """Wrap Flower's handler of pushed messages so that it takes only a node's own answers."""
    from fastapi import HTTPException

    def checked(request: Any, state: Any) -> Any:
        node = request.node.node_id
        sound = len(request.messages_list) == len(request.message_object_trees) == 1
        for tree in request.message_object_trees:
            sound &= is_plain_tree(tree, state.object_store)
        for message in request.messages_list:
            data = message.metadata
            sound &= data.src_node_id == node and data.dst_node_id == 1 and bool(data.reply_to_message_id)
            sound &= message.ByteSize() <= MOST_MESSAGE_BYTES
        if not sound:
            log.error("node %d pushed what is not an answer of its own; it is refused", node)
            raise HTTPException(status_code=403, detail="a node may push answers of its own alone")
        return push(request, state)

    return checked


def is_plain_tree(tree: Any, store: Any) -> bool:
    """Return whether an answer's tree of objects expands, in a store, to what was pushed and nothing else.

    If an object has different children in two places of the tree, or other children than in the store, the
    tree may expand without end, or attach itself below another node's message.
    """
    children_of: dict[str, tuple[str, ...]] = {}
    stack, count = [(tree, 1)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        children = tuple(child.object_id for child in node.children)
        stored = store.store.get(node.object_id)
        if depth > DEEPEST or count > MOST_OBJECTS or not OBJECT_ID.fullmatch(node.object_id):
            return False
        if children_of.setdefault(node.object_id, children) != children:
            return False
        if stored is not None and tuple(stored.child_object_ids) != children:
            return False
        stack += [(child, depth + 1) for child in node.children]
    return True


def of_bounded_size(push: Any, most_bytes: Callable[[], int], handed_out: Collection[str]) -> Any:
    """Wrap Flower's handler of a pushed part of an answer so that it stores a bounded sum for each node.

    A part that would exceed the bound is refused, unless enough parts of the node's earlier answers, which
    nobody will take any more, can be deleted. Parts that the server app has taken do not count.

    Args:
        push: Flower's handler.
        most_bytes: returns how many bytes may be stored for one node.
        handed_out: ids of answers that the server app is taking, or has taken.
    """
    from fastapi import HTTPException

    stored: dict[int, dict[str, int]] = {}
    lock = threading.Lock()

    def checked(request: Any, state: Any) -> Any:
        node, part, size = request.node.node_id, request.object_id, len(request.object_content)
        if part not in state.object_store.store:
            return push(request, state)  # no answer has announced it, so Flower does not store it
        with lock:
            parts = stored.setdefault(node, {})
            if _sum_with(parts, part, size) > most_bytes():
                _delete_untaken(parts, state, handed_out)
            if _sum_with(parts, part, size) > most_bytes():
                log.error("node %d pushed more than an answer may have; the rest is refused", node)
                raise HTTPException(status_code=413, detail="an answer has fewer bytes")
            parts[part] = size
        return push(request, state)

    return checked


def _sum_with(parts: dict[str, int], part: str, size: int) -> int:
    return sum(parts.values()) - parts.get(part, 0) + size


def _delete_untaken(parts: dict[str, int], state: Any, handed_out: Collection[str]) -> None:
    """Delete a node's answers that nobody awaits, and remove from `parts` what is not stored any more.

    When a request expires, Flower drops the message that answers it, but keeps the answer's parts.
    """
    objects = state.object_store
    with objects.lock_store:
        used = {*state.message_ins_store, *state.message_res_store, *handed_out}
        roots = [
            name for name, stored in objects.store.items() if stored.ref_count == 0 and name not in used
        ]
        for root in roots:
            if not parts.keys().isdisjoint(_all_below(root, objects.store)):
                objects.delete(root)
        for part in parts.keys() - objects.store.keys():
            del parts[part]


def _all_below(root: str, store: Any) -> set[str]:
    """Return the ids of an object and of all objects below it."""
    seen, stack = {root}, [root]
    while stack:
        stored = store.get(stack.pop())
        children = (
            [] if stored is None else [child for child in stored.child_object_ids if child not in seen]
        )
        seen.update(children)
        stack += children
    return seen
