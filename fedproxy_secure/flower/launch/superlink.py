"""A SuperLink of which other machines reach nothing but what nodes need.

    python -m fedproxy_secure.flower.launch.superlink ...    # arguments of `flower-superlink`

Flower 1.41 serves three interfaces on one port: for nodes (`/v1/fleet/`), for whoever submits runs and
registers nodes (`/v1/control/`), and for the processes that it starts (`/v1/runtime/`). Its free edition
asks for no account at the second, and a submitted run brings code that the SuperLink's machine runs. A
SuperLink that is open to a network is therefore open to anybody's code. Here a request from another machine
gets an answer below `/v1/fleet/` alone, where a node must sign it, and `404` everywhere else.

A body is read only if the request's headers are signed with the key of a registered node. What such a node
may push, and what is handed on of it, is checked further in (`flower.internals.superlink`).

Guarantees: no request from an address outside loopback reaches another interface than the nodes', no body
of one without a registered node's signature is read, and none with more than `MOST_BODY_BYTES`. A request
that says where it comes from (`X-Forwarded-For` and the like) is never one of this machine. Not guaranteed:
anything against users of this machine, or a proxy on it that hides where requests come from.
"""

from __future__ import annotations

import binascii
import ipaddress
from base64 import b64decode

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedproxy_secure.flower.internals.superlink import is_registered, is_signed, start_superlink
from fedproxy_secure.flower.launch.parent import end_with_parent

FOR_NODES = "/v1/fleet/"
HEALTH = "/health"
MOST_BODY_BYTES = 2**26  # Flower sends arrays in pieces of 5 MiB
SAYS_WHERE_FROM = {b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"}


class OnlyNodes:
    """ASGI middleware that answers other machines below `/v1/fleet/` and `/health` alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 404 or 413."""
        if scope["type"] == "lifespan" or is_local(scope):
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or not is_for_nodes(scope["path"]):
            await PlainTextResponse("not found", status_code=404)(scope, receive, send)
        elif scope["path"] == HEALTH:
            await self._app(scope, _empty, send)
        elif not is_from_a_node(scope):
            await PlainTextResponse("not a registered node", status_code=401)(scope, receive, send)
        elif _announced_bytes(scope) > MOST_BODY_BYTES:
            await PlainTextResponse("too large", status_code=413)(scope, receive, send)
        else:
            await self._app(scope, _bounded(receive), send)


def is_for_nodes(path: str) -> bool:
    """Return whether a path is one that other machines may ask for."""
    return path == HEALTH or (path.startswith(FOR_NODES) and ".." not in path.split("/"))


def is_local(scope: Scope) -> bool:
    """Return whether a request comes from this machine; without a known address it does not."""
    client = scope.get("client")
    if any(name in SAYS_WHERE_FROM for name, _ in scope["headers"]):
        return False
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


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
    """Return the end of a request's body: there is none, whatever its sender has sent."""
    return {"type": "http.request", "body": b"", "more_body": False}


def _announced_bytes(scope: Scope) -> int:
    """Return the length that the header announces; 0 if there is none, or one that is not a number."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


def _bounded(receive: Receive) -> Receive:
    """Return `receive` that ends the request as if the sender had gone, once it was sent too much."""
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > MOST_BODY_BYTES else message

    return bounded


def main() -> None:
    """Start Flower's SuperLink with `OnlyNodes` in front of all that it serves."""
    end_with_parent()
    start_superlink(OnlyNodes)


if __name__ == "__main__":
    main()
