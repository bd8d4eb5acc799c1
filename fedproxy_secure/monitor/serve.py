"""Serve a party's standing over HTTP: `/` the page, `/metrics`, `/healthz`; read-only, for this machine.

Guarantees: GET alone, and nothing that is sent here is stored or changes anything. It listens on loopback
unless the caller says `unsafe_host`, and then too answers with what `state` lists alone. On loopback a
request must name this machine in its `Host` header: a page of another site that has its name point here
(DNS rebinding) reads nothing. An error is one line without paths. At most `MOST_AT_ONCE` connections are
open, and a request must be there within `REQUEST_S`, so that whoever opens many cannot use up what else
this process needs. Not guaranteed: TLS or a password, nor an answer while others keep all connections busy.
Other users of this machine can read it unless the caller says who may (`may_read`); for other machines put
a proxy with TLS and a password before it.
"""

from __future__ import annotations

import errno
import io
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.monitor.metrics import CONTENT_TYPE, metrics
from fedproxy_secure.monitor.page import REFRESH_S, SECURITY_POLICY, page
from fedproxy_secure.monitor.state import FederationStatus

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
KEPT_S = 1.0  # a standing is read at most once in this time, however many ask
REQUEST_S = 10.0  # a client that takes longer for its whole request is left
MOST_AT_ONCE = 16  # connections; one more is closed
HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
Read = Callable[[], FederationStatus]
Address = tuple[str, int]
MayRead = Callable[[Address, Address], bool]  # by the two ends of a connection, the client's first


def serve(
    read: Read,
    *,
    port: int,
    host: str = LOOPBACK,
    unsafe_host: str | None = None,
    may_read: MayRead | None = None,
) -> None:
    """Serve until the process is interrupted; see `served`."""
    with _listening(read, port=port, host=host, unsafe_host=unsafe_host, may_read=may_read) as server:
        server.serve_forever()


@contextmanager
def served(
    read: Read,
    *,
    port: int = 0,
    host: str = LOOPBACK,
    unsafe_host: str | None = None,
    may_read: MayRead | None = None,
) -> Iterator[str]:
    """Serve from a thread while the block runs, and yield the page's URL.

    Args:
        read: returns the standing as it is now; called from another thread, one call at a time.
        port: where to listen; 0 for any that is free.
        host: an address of loopback.
        unsafe_host: an address that other machines reach, in place of `host`; then any `Host` is answered.
        may_read: whether who opened a connection may read; None: whoever reaches it.

    Raises `ConfigError` for another host, or a port that is in use or not allowed.
    """
    with _listening(read, port=port, host=host, unsafe_host=unsafe_host, may_read=may_read) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="status", daemon=True)
        thread.start()
        try:
            shown = f"[{server.host}]" if ":" in server.host else server.host
            yield f"http://{shown}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def _listening(
    read: Read, *, port: int, host: str, unsafe_host: str | None, may_read: MayRead | None
) -> _Server:
    if not _is_loopback(host):
        raise ConfigError(
            f"host={host}: must be a loopback address; `unsafe_host` exposes the page to other machines"
        )
    if not 0 <= port < 2**16:
        raise ConfigError(f"port={port}: must be from 0 (any) to {2**16 - 1}")
    chosen = host if unsafe_host is None else unsafe_host
    try:
        return _Server(read, chosen, port, any_name=unsafe_host is not None, may_read=may_read)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port={port}: is in use on {chosen}; choose another") from error
        raise ConfigError(f"port={port}: cannot be listened at on {chosen}: {error.strerror}") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections of one burst that wait to be accepted; more are tried again late
    allow_reuse_address = True  # a port that was just closed; one that listens is refused all the same

    def __init__(
        self, read: Read, host: str, port: int, *, any_name: bool, may_read: MayRead | None
    ) -> None:
        self.host, self.any_name, self.may_read = host, any_name, may_read
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._read, self._lock = read, threading.Lock()
        self._kept: tuple[float, FederationStatus] | None = None
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who this is, as `HTTPServer` does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or close a connection for which there is no place."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def standing(self) -> FederationStatus:
        with self._lock:
            now = time.monotonic()
            if self._kept is None or now - self._kept[0] > KEPT_S:
                self._kept = (now, self._read())
            return self._kept[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request was cut off", exc_info=True)


class _InTime(io.RawIOBase):
    """What a connection sends, until a deadline for all of it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._until = connection, time.monotonic() + REQUEST_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes. Raises `TimeoutError` at the deadline."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self._connection.settimeout(REQUEST_S)  # for the answer
        return count


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "fedproxy-secure", ""
    timeout = REQUEST_S

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_InTime(self.connection))

    def do_GET(self) -> None:
        may_read = self.server.may_read
        if may_read is not None and not may_read(self.client_address, self.connection.getsockname()):
            self._text(HTTPStatus.FORBIDDEN, "this page is for the user who runs the node")
            return
        if not self.server.any_name and not _names_this_machine(self.headers.get("Host", "")):
            self._text(
                HTTPStatus.MISDIRECTED_REQUEST, "Host: must name this machine, as 127.0.0.1 or localhost"
            )
            return
        asked = urlsplit(self.path)
        answers = {"/": self._page, "/metrics": self._metrics, "/healthz": self._health}
        answer = answers.get(asked.path)
        if answer is None:
            self._text(HTTPStatus.NOT_FOUND, "not found; the paths are /, /metrics and /healthz")
            return
        try:
            standing = self.server.standing()
            answer(standing, asked.query)
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("%s: cannot be answered", asked.path)
            line = f"{type(error).__name__}; the log of this process says more"
            self._text(HTTPStatus.SERVICE_UNAVAILABLE, line)

    def _page(self, standing: FederationStatus, query: str) -> None:
        refreshing = query != "still"
        headers = {"Refresh": str(REFRESH_S)} if refreshing else {}
        self._send(HTTPStatus.OK, HTML, page(standing, refreshing=refreshing).encode(), headers)

    def _metrics(self, standing: FederationStatus, query: str) -> None:
        try:
            self._send(HTTPStatus.OK, CONTENT_TYPE, metrics(standing), {})
        except ConfigError as error:  # names the extra
            self._text(HTTPStatus.NOT_IMPLEMENTED, str(error))

    def _health(self, standing: FederationStatus, query: str) -> None:
        status = HTTPStatus.OK if standing.healthy else HTTPStatus.SERVICE_UNAVAILABLE
        self._text(status, f"{standing.phase}: {standing.why}")

    def _text(self, status: HTTPStatus, line: str) -> None:
        self._send(status, TEXT, f"{line}\n".encode(), {})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"{SECURITY_POLICY}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":  # which is refused, and its answer may have no body
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no GET, or no HTTP, in one line that quotes nothing of it."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(status, TEXT, f"{status.phrase}\n".encode(), {"Allow": "GET", "Connection": "close"})

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("status page: " + format, *args)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _names_this_machine(host: str) -> bool:
    """Return whether a `Host` header names loopback, with any port."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and "@" not in host and _is_loopback(name)
