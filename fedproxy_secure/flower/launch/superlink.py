"""A SuperLink of which other machines reach nothing but what nodes need.

    python -m fedproxy_secure.flower.launch.superlink ...    # arguments of `flower-superlink`

Flower 1.41 serves three interfaces on one port: for nodes (`/v1/fleet/`), for whoever submits runs and
registers nodes (`/v1/control/`), and for the processes that it starts (`/v1/runtime/`). Its free edition
asks for no account at the second, and a submitted run brings code that the SuperLink's machine runs. A
SuperLink that is open to a network is therefore open to anybody's code. Here a request from another machine
gets an answer below `/v1/fleet/` alone, where a node must sign it, and `404` everywhere else.

Guarantees: no request from an address outside loopback reaches another interface than the nodes', and none
with a body of more than `MOST_BODY_BYTES` is read further. Not guaranteed: anything against users of this
machine; and a proxy on this machine that passes requests on makes all of them local.
"""

from __future__ import annotations

import ipaddress

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedproxy_secure.flower.internals import start_superlink
from fedproxy_secure.flower.launch.parent import end_with_parent

FOR_NODES = "/v1/fleet/"
HEALTH = "/health"
MOST_BODY_BYTES = 2**26  # Flower sends arrays in pieces of 5 MiB


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
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


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
