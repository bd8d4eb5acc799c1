"""Whether the other end of a connection on this machine belongs to this process' own user, and a guard.

A port of loopback is open to every user of a machine, and TCP does not say who is at the other end. Linux
does: it is asked about exactly one connection, named by both of its ends (netlink, `inet_diag`). The list
in `/proc/net/tcp` has the same facts, but not of one moment: while others connect, it shows some lines
twice and some not at all.

Guarantees: `is_of_this_user` is true only of an IPv4 connection over loopback with exactly these two ends
that is open, is held by a process, and was made by this user. A connection that is closed, unknown or of
another form does not count as this user's. `OnlyThisUser` passes on no request of anybody else, and reads
no body of one. Not guaranteed: protection against the administrator, against a program of this user that
relays others' requests (a proxy), or against users of a container that numbers its users itself and shares
this network.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedproxy_secure.errors import ConfigError

log = logging.getLogger(__name__)
Address = tuple[str, int]

SOCK_DIAG = 4  # the netlink protocol
_BY_FAMILY = 20  # the type of the request, and of its answer
_REQUEST = 1
_ANY = 0xFFFFFFFF
_ESTABLISHED = 1
_HEADER, _ASKED = struct.Struct("=IHHII"), struct.Struct("=BBBBI")
_ENDS = struct.Struct("!HH16s16s")
_REST = struct.Struct("=III")  # interface and cookie, any
_STATE, _USER = struct.Struct("=BBBB"), struct.Struct("=IIIII")
_WAIT_S = 5.0
_ACCEPTED_S, _LOOK_S = 30.0, 0.01  # how long a server may take to accept a connection; pause between checks
SAYS_WHERE_FROM = {b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via"}


def check_users_are_known(protocol: int = SOCK_DIAG) -> None:
    """Raise `ConfigError` if the system does not tell whose a connection is: any user could start runs.

    `protocol`: the netlink protocol by which the system is asked.
    """
    if not are_users_known(protocol):
        raise ConfigError(
            f"{sys.platform}: does not show which user opened a connection, so other users of this machine "
            "could start runs; run the owner's side on Linux with inet_diag"
        )


def are_users_known(protocol: int = SOCK_DIAG) -> bool:
    """Return whether the system tells whose a connection is; some sandboxes and Linux kernels do not."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as connection,
    ):
        return is_of_this_user(connection.getsockname(), listener.getsockname(), protocol=protocol)


def is_of_this_user(client: Address, server: Address, *, protocol: int = SOCK_DIAG) -> bool:
    """Return whether the end `client` of a connection to `server` was opened by this process' user.

    Args:
        client: address and port of the other end, as the server sees them.
        server: address and port of this end.
        protocol: the netlink protocol by which the system is asked.
    """
    try:
        return _user_of(client, server, protocol) == os.geteuid()
    except (OSError, ValueError, struct.error, AttributeError):  # no netlink outside Linux
        return False


def _user_of(client: Address, server: Address, protocol: int = SOCK_DIAG) -> int | None:
    """Return the id of the user who holds the end `client` of an open connection over IPv4 loopback.

    Returns None if no process holds it. Raises `OSError`, `ValueError`, `struct.error` or `AttributeError`
    where the system does not say.
    """
    if not ipaddress.IPv4Address(client[0]).is_loopback:
        return None
    ends = _ends(client, server)
    return owner_in(_ask(ends, protocol), ends)


def is_served_by_this_user(other: Address, own: Address) -> bool:
    """Return whether the end `other` of a connection, the server's, is held by this process' user.

    Until the server accepts a connection, nobody holds its end. It has as long for that as Flower's clients
    wait for an answer, because the machine may be busy with training.

    Args:
        other: address and port of the server's end.
        own: address and port of this process' end.
    """
    deadline = time.monotonic() + _ACCEPTED_S
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, struct.error, AttributeError):
            if (owner := _user_of(other, own)) is not None:
                return owner == os.geteuid()
        time.sleep(_LOOK_S)
    return False


class OnlyThisUser:
    """ASGI middleware that serves processes of this user on this machine, and answers others with 404.

    A request that says where it comes from (`X-Forwarded-For` and the like) does not count as this user's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, or refuse it without reading its body."""
        if scope["type"] == "lifespan" or is_asked_by_this_user(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("not found", status_code=404)(scope, receive, send)
        else:
            await send({"type": "websocket.close"})


def guarded_where_possible(app: Any) -> Any:
    """Return an ASGI app behind `OnlyThisUser`, or unchanged where the system does not tell users apart."""
    return OnlyThisUser(app) if users_are_known_or_warned_of() else app


def users_are_known_or_warned_of() -> bool:
    """Return whether the system tells whose a connection is; log a warning if it does not."""
    known = are_users_known()
    if not known:
        log.warning("this system does not tell whose a connection is: other users of it are not kept out")
    return known


def is_asked_by_this_user(scope: Scope) -> bool:
    """Return whether a request comes from a process of this user, on this machine."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None or any(name in SAYS_WHERE_FROM for name, _ in scope["headers"]):
        return False
    return is_of_this_user((client[0], client[1]), (server[0], server[1]))


def owner_in(answer: bytes, ends: bytes) -> int | None:
    """Return the id of the user who holds the open connection with these ends, from the system's answer.

    Returns None if the answer describes no such connection: if there is none, the system may describe the
    socket that listens at its end, and a closed connection has no inode any more and reads as root's.

    Raises `struct.error` for an answer that is too short.
    """
    _, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _BY_FAMILY:
        return None
    at = _HEADER.size
    family, state, *_ = _STATE.unpack_from(answer, at)
    at += _STATE.size
    answered_ends = answer[at : at + _ENDS.size]
    *_, owner, inode = _USER.unpack_from(answer, at + _ENDS.size + _REST.size)
    is_open = (family, state, answered_ends) == (socket.AF_INET, _ESTABLISHED, ends) and inode != 0
    return int(owner) if is_open else None


def _ends(client: Address, server: Address) -> bytes:
    """Return both ends in netlink's form. Raises `ValueError` or `struct.error` if they are not IPv4."""
    packed = [ipaddress.IPv4Address(end[0]).packed.ljust(16, b"\0") for end in (client, server)]
    return _ENDS.pack(client[1], server[1], *packed)


def _ask(ends: bytes, protocol: int) -> bytes:
    """Return the system's answer on the connection with these ends. Raises `OSError` if it gives none."""
    body = _ASKED.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ANY) + ends + _REST.pack(0, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as system:
        system.settimeout(_WAIT_S)
        system.send(header + body)
        return system.recv(2**16)
