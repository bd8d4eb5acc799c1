"""Connections over loopback as a server sees them: of this user, and of another one of this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

Ends = tuple[tuple[str, int], tuple[str, int]]
NOBODY = 65534


@contextmanager
def connected() -> Iterator[Ends]:
    """Yield the ends, client and server, of an open connection that this process has made."""
    with (
        _listening() as listener,
        socket.create_connection(listener.getsockname()),
        _accepted(listener) as ends,
    ):
        yield ends


@contextmanager
def another_users_connection() -> Iterator[Ends]:
    """Yield the ends of a connection that was opened as another user; only root can do that."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root can act as another user")
    with _listening() as listener:
        os.seteuid(NOBODY)
        try:
            opened = socket.socket()  # its user is the one who makes it, whoever connects it
        finally:
            os.seteuid(0)
        with opened:
            opened.connect(listener.getsockname())
            with _accepted(listener) as ends:
                yield ends


@contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        yield listener


@contextmanager
def _accepted(listener: socket.socket) -> Iterator[Ends]:
    server, client = listener.accept()
    with server:
        yield client, server.getsockname()
