"""A SuperLink that also checks who sends each message, holds requests, and hands out lost messages again.

Flower 1.41 knows which node signed a request, but takes a pushed message as it is. The message may name
another sender, and one that answers no request is handed to the server app beside the answer that the app
asks for. Flower also hands on an answer whose parts are still being uploaded; the server app then waits for
them inside Flower, for up to two hours, and receives no other answer.

Nodes poll for messages, and every request costs two processes some milliseconds. Here a node's request is
held until there is a whole message for the node, for a second at most, and then answered with what there
is. That makes fewer requests, and delivers messages sooner.

Flower counts a message as delivered once it was handed to a node, whatever happened to the node. Here it is
handed out once more if the node asks again without having confirmed it, because its connection was cut. If
a node is restarted, the messages that it had taken and not answered are lost, and the server app learns
that at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from fedproxy_secure.flower.internals.log_lines import log_printable_lines_alone
from fedproxy_secure.flower.internals.pushed import of_bounded_size, only_answers

log = logging.getLogger(__name__)
HELD_S, LOOK_S = 1.0, 0.02  # how long a node's request for a message is held; pause between checks
MOST_HELD = 24  # nodes whose requests are held at once; each occupies one of the 40 threads that answer


def start_superlink(middleware: Any | None, most_answer_bytes: Callable[[], int] | None) -> None:
    """Run `flower-superlink` with this process' arguments and the changes of this module.

    Args:
        middleware: an ASGI middleware in front of everything that it serves, or None.
        most_answer_bytes: returns how many bytes of answers may be stored for one node; None for no limit.
    """
    from flwr.superlink import extensions
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.superlink.servicer.runtime import runtime_handlers
    from starlette.middleware import Middleware

    log_printable_lines_alone()
    if middleware is not None:
        vars(extensions)["get_middleware"] = lambda: (Middleware(middleware),)
    vars(fleet_handlers)["push_messages"] = only_answers(fleet_handlers.push_messages)
    handed_out: set[str] = set()
    if most_answer_bytes is not None:
        push = of_bounded_size(fleet_handlers.push_object, most_answer_bytes, handed_out)
        vars(fleet_handlers)["push_object"] = push
    vars(fleet_handlers)["pull_messages"] = held(fleet_handlers.pull_messages)
    vars(fleet_handlers)["activate_node"] = begins_anew(fleet_handlers.activate_node)
    vars(runtime_handlers)["pull_messages"] = only_whole_answers(runtime_handlers.pull_messages, handed_out)
    program = import_module("flwr.superlink.cli.flower_superlink")
    vars(program)["get_uvicorn_log_config"] = without_strangers_lines(program.get_uvicorn_log_config)
    # uvicorn logs the path of each request to open a WebSocket, whatever the answer; Flower uses none
    vars(program)["uvicorn"] = SimpleNamespace(run=partial(program.uvicorn.run, ws="none"))
    program.flower_superlink()


def without_strangers_lines(configured: Any) -> Any:
    """Wrap Flower's log settings to leave out the lines with which any client could fill the disk.

    These are the access log, and uvicorn's lines below the level of an error, about malformed requests.
    """

    def quiet(*arguments: Any) -> Any:
        config = configured(*arguments)
        loggers = config.setdefault("loggers", {})
        loggers["uvicorn.access"] = {"handlers": [], "propagate": False}
        loggers["uvicorn.error"] = {**loggers.get("uvicorn.error", {}), "level": "ERROR"}
        return config

    return quiet


def held(pull: Any, *, held_s: float = HELD_S, most: int = MOST_HELD) -> Any:
    """Wrap Flower's handler of a node's request for a message so that it waits until there is one.

    It waits until all parts of a message for the node are there, for `held_s` seconds at most. At most one
    request of a node, and those of `most` nodes, are held at once; any other is answered immediately.
    """
    holding: set[int] = set()
    handed_out_again: set[str] = set()
    lock = threading.Lock()

    def waiting(request: Any, state: Any, store: Any) -> Any:
        node = request.node.node_id
        with lock:
            _hand_out_again(node, state, handed_out_again)
            holds = node not in holding and len(holding) < most
            if holds:
                holding.add(node)
        try:
            deadline = time.monotonic() + held_s
            while holds and not _has_message(node, state) and time.monotonic() < deadline:
                time.sleep(LOOK_S)
        finally:
            if holds:
                with lock:
                    holding.discard(node)
        return pull(request, state, store)

    return waiting


def _hand_out_again(node: int, state: Any, handed_out_again: set[str]) -> None:
    """Mark as undelivered the messages that a node has taken and not confirmed, as it asks for another.

    A node takes one message after another, and confirms each before it works on it. A message whose app the
    node refuses is never confirmed, so `handed_out_again` keeps the messages that had their second chance.
    """
    messages = state.message_ins_store
    handed_out_again.intersection_update(messages)
    for message_id, message in list(messages.items()):
        data = message.metadata
        unconfirmed = message_id in state.object_store.store  # confirming a message deletes it there
        answered = message_id in state.message_ins_id_to_message_res_id
        lost = data.dst_node_id == node and data.delivered_at and unconfirmed and not answered
        if lost and message_id not in handed_out_again:
            handed_out_again.add(message_id)
            data.delivered_at = ""


def _has_message(node: int, state: Any) -> bool:
    """Return whether a whole message waits for a node."""
    return any(
        message.metadata.dst_node_id == node
        and message.metadata.delivered_at == ""
        and message_id in state.object_store.store  # Flower stores a message before it knows of its parts
        and not _lacks_parts(message_id, state)
        for message_id, message in list(state.message_ins_store.items())
    )


def begins_anew(activate: Any) -> Any:
    """Wrap Flower's handler of a starting node so that it drops what the node had taken and not answered.

    Such messages are lost with the process that took them. When the server app asks for an answer to one of
    them, it is told that the message does not exist.
    """

    def checked(request: Any, state: Any) -> Any:
        answer = activate(request=request, state=state)
        unanswered = {
            message_id
            for message_id, message in list(state.message_ins_store.items())
            if message.metadata.dst_node_id == answer.node_id
            and message.metadata.delivered_at
            and message_id not in state.message_ins_id_to_message_res_id
        }
        state.delete_messages(message_ins_ids=unanswered)
        return answer

    return checked


def only_whole_answers(pull: Any, handed_out: set[str]) -> Any:
    """Wrap Flower's pull handler so that it skips answers whose upload has not finished.

    `handed_out`: gets the ids of the answers that the server app is handed, until it has confirmed them.
    """

    def checked(request: Any, state: Any, task: Any) -> Any:
        requested = list(request.message_ids)
        del request.message_ids[:]
        request.message_ids.extend(name for name in requested if not _is_on_its_way(name, state))
        answer = pull(request, state, task)
        confirmed = {name for name in handed_out.copy() if name not in state.object_store.store}
        handed_out.difference_update(confirmed)
        handed_out.update(tree.object_id for tree in answer.message_object_trees)
        return answer

    return checked


def _is_on_its_way(message_id: str, state: Any) -> bool:
    """Return whether a request has an answer with parts that are still missing."""
    reply = state.message_ins_id_to_message_res_id.get(message_id)
    return reply is not None and _lacks_parts(reply, state)


def _lacks_parts(message_id: str, state: Any) -> bool:
    """Return whether parts of a message are still missing.

    This is called for every awaited message, many times a second, so each part is looked at once at most,
    and none after the first that is missing.
    """
    parts, seen = state.object_store.store, {message_id}
    stack = [message_id]
    while stack:
        part = parts.get(stack.pop())
        if part is None:
            return False  # it is deleted, and Flower's own handler reports that
        if not part.is_available:
            return True
        children = [child for child in dict.fromkeys(part.child_object_ids) if child not in seen]
        seen.update(children)
        stack += children
    return False


def is_registered(state: Any, public_key: bytes) -> bool:
    """Return whether a node with this key (PEM) is registered in a SuperLink's state."""
    return state.get_node_id_by_public_key(public_key) is not None


def is_signed(public_key: bytes, timestamp: str, signature: bytes) -> bool:
    """Return whether a timestamp is recent, by Flower's measure, and signed with a key (PEM)."""
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

    try:
        age_s = (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return False
        return bool(verify_signature(bytes_to_public_key(public_key), timestamp.encode("ascii"), signature))
    except (ValueError, TypeError, UnicodeError):
        return False
