"""Flower's HTTP clients, restricted to plain answers of bounded size from the address they were given.

Flower 1.41 lets its clients follow redirects, decode compressed answers, and read answers of any length. A
SuperLink could then have a site's node send requests to any address in the site's network, in clear text
too, and fill its memory with a few kilobytes. No answer of Flower's own is a redirect or compressed.

Guarantees of a client made after `hold_clients_to_plain_answers`: no request goes to another address than
its own. No byte of an answer with a content encoding is decoded, and no more than `MOST_ANSWER_BYTES` of an
answer are taken. An answer that breaks these rules counts as a failed connection, and Flower tries again.
No cookie is kept. A message comes in as many answers as it has parts; the answers that are read inside
`counted_by`, in all threads together, have no more bytes than its budget.
Guarantee of `ask_own_user_alone`: no byte is sent unless the process at the other end is this user's, where
the system tells (`flower.launch.same_user`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, cast

import httpcore
import httpx

from fedproxy_secure.runtime.quoting import quoted

MOST_ANSWER_BYTES = 2**30  # Flower sends arrays in pieces of 5 MiB, and bytes, such as a sum of CKKS, whole
Ends = tuple[str, int]


class MessageTooLong(Exception):
    """The answers counted by one `ByteBudget` have more bytes than it allows. Flower does not try again."""


class ByteBudget:
    """How many bytes several answers may have in total, counted by threads that read side by side."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._taken, self._lock = most_bytes, 0, threading.Lock()

    def take(self, count: int) -> None:
        """Count `count` bytes more; raise `MessageTooLong` beyond the budget."""
        with self._lock:
            self._taken += count
            if self._taken > self._most_bytes:
                raise MessageTooLong(f"the message has more than {self._most_bytes} bytes")


_budget: ContextVar[ByteBudget | None] = ContextVar(
    "the budget of the answers that are being read", default=None
)


@contextmanager
def counted_by(budget: ByteBudget) -> Iterator[None]:
    """Count every answer that a plain client reads in this thread until the end of the `with` block."""
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


def hold_clients_to_plain_answers() -> None:
    """Restrict every HTTP client of Flower's that this process makes from now on to plain answers."""
    from flwr.supercore.protobuf.client import ProtobufClient

    if not hasattr(ProtobufClient.__init__, "__wrapped__"):
        client_class: Any = ProtobufClient
        client_class.__init__ = _plain(ProtobufClient.__init__)


def _plain(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def plain(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        make_plain(self._client)

    return plain


def make_plain(client: httpx.Client, *, most_bytes: int = MOST_ANSWER_BYTES) -> None:
    """Make a client refuse redirects, encoded answers, and answers of more than `most_bytes`."""

    def check(response: httpx.Response) -> None:
        """Raise `httpx.RemoteProtocolError` before any of the answer's body is read."""
        client.cookies.clear()  # first: a refused answer may bring some, too
        if response.has_redirect_location:
            raise httpx.RemoteProtocolError("the answer is a redirect; none is followed")
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise httpx.RemoteProtocolError(f"the answer is encoded: {quoted(encoding)}; none is decoded")
        response.stream = _Bounded(cast("httpx.SyncByteStream", response.stream), most_bytes)

    client.follow_redirects = False
    client.headers["accept-encoding"] = "identity"
    client.event_hooks = {"response": [check]}


class _Bounded(httpx.SyncByteStream):
    """The body of an answer; reading it raises `httpx.RemoteProtocolError` once it is too long."""

    def __init__(self, stream: httpx.SyncByteStream, most_bytes: int) -> None:
        self._stream, self._most_bytes = stream, most_bytes

    def __iter__(self) -> Iterator[bytes]:
        received, budget = 0, _budget.get()
        for part in self._stream:
            if budget is not None:
                budget.take(len(part))
            received += len(part)
            if received > self._most_bytes:
                raise httpx.RemoteProtocolError(f"the answer has more than {self._most_bytes} bytes")
            yield part

    def close(self) -> None:
        self._stream.close()


def ask_own_user_alone(client: httpx.Client, is_own_users: Callable[[Ends, Ends], bool]) -> httpx.Client:
    """Return a client like `client` whose connections are closed unless this user's process answers.

    Args:
        client: one of Flower's, to a port of loopback; it is closed.
        is_own_users: called with both ends of a connection, the other one first; returns whether the other
            end is this user's.
    """
    checked = httpx.Client(
        transport=_OwnUsersTransport(is_own_users), timeout=client.timeout, trust_env=False
    )
    client.close()
    make_plain(checked)
    return checked


class _OwnUsersTransport(httpx.HTTPTransport):
    def __init__(self, is_own_users: Callable[[Ends, Ends], bool]) -> None:
        super().__init__(trust_env=False)
        self._pool = httpcore.ConnectionPool(network_backend=_CheckedBackend(is_own_users))


class _CheckedBackend(httpcore.SyncBackend):
    """Connects as httpcore does, but closes a connection whose other end is another user's."""

    def __init__(self, is_own_users: Callable[[Ends, Ends], bool]) -> None:
        super().__init__()
        self._is_own_users = is_own_users

    def connect_tcp(self, *arguments: Any, **named: Any) -> httpcore.NetworkStream:
        stream = super().connect_tcp(*arguments, **named)
        remote, local = stream.get_extra_info("server_addr"), stream.get_extra_info("client_addr")
        if not self._is_own_users(remote, local):
            stream.close()
            raise httpcore.ConnectError(f"{remote[0]}:{remote[1]}: is not served by a process of this user")
        return stream
