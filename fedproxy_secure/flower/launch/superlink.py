"""A SuperLink that gives other machines access to nothing but what nodes need.

    python -m fedproxy_secure.flower.launch.superlink ...    # arguments of `flower-superlink`

Flower 1.41 serves three interfaces on one port: for nodes (`/v1/fleet/`), for whoever submits runs and
registers nodes (`/v1/control/`), and for the processes that it starts (`/v1/runtime/`). Its free edition
asks for no account at the second, and a submitted run brings code that the SuperLink's machine runs. A
SuperLink that is open to a network, or to other users of its machine, is therefore open to anybody's code.
Here a request below `/v1/fleet/` is answered if a registered node has signed it, and `/health` is answered
to everybody. Any other request is answered if it comes from this machine and from the user who runs the
SuperLink (`same_user`), and otherwise gets `404`.

Of requests to the nodes' interface, a body is read only if the headers are signed with the key of a
registered node. What such a node may push, how much of it is stored, and what is handed on, is checked
further in (`flower.internals`).

Guarantees: no request from another machine, or of another user of this one, reaches another interface than
the nodes' and `/health`; there, no body without a registered node's signature is read, and none with more
bytes than a node's answers may have (`most_answer_bytes`). A request that says where it comes from
(`X-Forwarded-For` and the like) never counts as one of this machine. Not guaranteed: protection against
this machine's administrator, or against a proxy of the same user that hides where requests come from.
"""

from __future__ import annotations

import binascii
import os
from base64 import b64decode
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedproxy_secure.flower.internals.superlink import is_registered, is_signed, start_superlink
from fedproxy_secure.flower.launch.parent import end_with_parent
from fedproxy_secure.flower.launch.same_user import is_asked_by_this_user

FOR_NODES = "/v1/fleet/"
HEALTH = "/health"
SLACK_BYTES = 2**26  # allowed beside what the protection says that a client sends
ANSWERS_VARIABLE = "FEDPROXY_MOST_ANSWER_BYTES"  # names the file that says how much a node may answer


class OnlyNodes:
    """ASGI middleware that lets nodes reach `/v1/fleet/`, anybody `/health`, and its own user the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, or answer it with 401, 404 or 413."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or not is_for_nodes(scope["path"]):
            if is_asked_by_this_user(scope):
                await self._app(scope, receive, send)
            else:
                await PlainTextResponse("not found", status_code=404)(scope, receive, send)
        elif scope["path"] == HEALTH:
            await self._app(scope, _empty, send)
        elif not is_from_a_node(scope):
            await PlainTextResponse("not a registered node", status_code=401)(scope, receive, send)
        elif _announced_bytes(scope) > (most := most_answer_bytes()):
            await PlainTextResponse("too large", status_code=413)(scope, receive, send)
        else:
            await self._app(scope, _bounded(receive, most), send)


def is_for_nodes(path: str) -> bool:
    """Return whether a path is one that other machines may ask for."""
    return path == HEALTH or (path.startswith(FOR_NODES) and ".." not in path.split("/"))


def is_from_a_node(scope: Scope) -> bool:
    """Return whether a request's headers have a recent time, signed with the key of a registered node.

    Whether the request is that node's own is checked by Flower.
    """
    headers = dict(scope["headers"])
    try:
        key = b64decode(headers[b"flwr-public-key"], validate=True)
        signature = b64decode(headers[b"flwr-signature"], validate=True)
        timestamp = headers[b"flwr-timestamp"].decode("ascii")
    except (KeyError, UnicodeError, binascii.Error):
        return False
    state = scope["app"].state.linkstate_factory.state()
    return is_registered(state, key) and is_signed(key, timestamp, signature)


async def _empty() -> Message:
    """Return the end of an empty body, whatever the request's sender has sent."""
    return {"type": "http.request", "body": b"", "more_body": False}


def _announced_bytes(scope: Scope) -> int:
    """Return the length that the header announces; 0 if there is none, or one that is not a number."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _bounded(receive: Receive, most: int) -> Receive:
    """Wrap `receive` to end a request, as if its sender had disconnected, once its body is too long."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > most else message

    return bounded


def most_answer_bytes() -> int:
    """Return how many bytes of answers may be stored for one node, as the owner's process has written.

    Until that process has submitted a run, nodes have nothing long to answer, and `SLACK_BYTES` is enough.
    """
    try:
        return int(Path(os.environ[ANSWERS_VARIABLE]).read_text(encoding="ascii"))
    except (KeyError, OSError, ValueError):
        return SLACK_BYTES


def main() -> None:
    """Start Flower's SuperLink with `OnlyNodes` in front of all that it serves."""
    end_with_parent()
    start_superlink(OnlyNodes, most_answer_bytes)


if __name__ == "__main__":
    main()
