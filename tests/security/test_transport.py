"""What a hostile SuperLink, or whoever holds its port, can make Flower's HTTP clients do: fail."""

import gzip
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore.inflatable.inflatable_utils import pull_objects

from fedproxy_secure.flower.internals.supernode import bounded
from fedproxy_secure.flower.internals.transport import (
    MOST_ANSWER_BYTES,
    MessageTooLong,
    ask_own_user_alone,
    hold_clients_to_plain_answers,
    make_plain,
)
from fedproxy_secure.flower.launch.same_user import is_served_by_this_user
from tests.support.connections import NOBODY


class Server(ThreadingHTTPServer):
    """Answers each request with `answer`, a function of the handler, and remembers the requests."""

    def __init__(self, answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen = answer, []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.server.answer(self)

    do_GET = do_POST  # noqa: N815 - http.server asks for this name

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(answer) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def plain(handler, body=b"", status=200, **headers):
    handler.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def address_of(server) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


@contextmanager
def fleet_client(server) -> Iterator[Any]:
    """Flower's own client of a node, made as a SuperNode of this project makes it."""
    from flwr.supernode.fleet_http_client import FleetHttpClient

    hold_clients_to_plain_answers()
    with FleetHttpClient.from_server_address(address_of(server), True, None, interceptors=[]) as client:
        yield client


def test_a_plain_answer_is_read():
    with serving(plain) as server, fleet_client(server) as client:
        assert list(client.PullMessages(PullMessagesRequest()).messages_list) == []
    ((path, headers, _),) = server.seen
    assert path.startswith("/v1/fleet/")
    assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_sends_a_node_nowhere(status):
    with serving(plain) as inside:
        elsewhere = f"http://{address_of(inside)}/admin"
        with (
            serving(lambda handler: plain(handler, status=status, location=elsewhere)) as server,
            fleet_client(server) as client,
            pytest.raises(httpx.RemoteProtocolError, match="redirect"),
        ):
            client.PullMessages(PullMessagesRequest())
        assert len(server.seen) == 1
        assert inside.seen == []


def test_flowers_client_as_it_is_would_follow_it():
    """If Flower's own stops following redirects, this project need not forbid it."""
    with serving(plain) as inside:
        answer = f"http://{address_of(inside)}/admin"
        with (
            serving(lambda handler: plain(handler, status=307, location=answer)) as server,
            httpx.Client(follow_redirects=True) as client,
        ):
            client.post(f"http://{address_of(server)}/", content=b"signed")
        assert inside.seen[0][2] == b"signed"


def test_a_compressed_answer_is_not_decoded():
    small = gzip.compress(bytes(2**27))
    assert len(small) < 2**18
    tracemalloc.start()
    try:
        with (
            serving(lambda handler: plain(handler, small, content_encoding="gzip")) as server,
            fleet_client(server) as client,
            pytest.raises(httpx.RemoteProtocolError, match="encoded: 'gzip'"),
        ):
            client.PullMessages(PullMessagesRequest())
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_an_answer_is_read_to_its_bound_and_no_further(announced):
    def answer(handler):
        handler.send_response(200)
        handler.send_header(*(("content-length", "4000") if announced else ("connection", "close")))
        handler.end_headers()
        handler.wfile.write(bytes(4000))

    for most, fails in ((4000, False), (3999, True)):
        with serving(answer) as server, httpx.Client() as client:
            make_plain(client, most_bytes=most)
            if fails:
                with pytest.raises(httpx.RemoteProtocolError, match="more than 3999 bytes"):
                    client.post(f"http://{address_of(server)}/")
            else:
                assert len(client.post(f"http://{address_of(server)}/").content) == 4000
    assert MOST_ANSWER_BYTES >= 2 * 5 * 2**20  # two of the pieces in which Flower sends arrays


def test_the_parts_of_a_message_are_read_to_their_bound_together_and_asked_for_no_more():
    part = bytes(1000)
    for most, fails in ((5000, False), (4999, True)):
        with serving(lambda handler: plain(handler, part)) as server, httpx.Client() as client:
            make_plain(client)

            def pull(_, client=client, server=server):
                return client.post(f"http://{address_of(server)}/").content

            if fails:
                with pytest.raises(MessageTooLong, match="more than 4999 bytes"):
                    bounded(pull_objects, most)(list("abcde"), pull_object_fn=pull)
                with pytest.raises(MessageTooLong):
                    bounded(pull_objects, most)(list("abcdefgh"), pull, max_concurrent_pulls=1)
                assert len(server.seen) == 5 + 5
            else:
                parts = bounded(pull_objects, most)(list("abcde"), pull_object_fn=pull)
                assert parts == dict.fromkeys("abcde", part)
                assert pull("another message's part"), "the budget ends with its message"


STARTED_NODE = """
import sys
import httpx
from flwr.supernode import start_client_internal as worker
from flwr.supernode.cli import flower_supernode
from fedproxy_secure.flower.internals import supernode, transport

vars(sys.modules["flwr.supernode.cli.flower_supernode"])["flower_supernode"] = lambda: None
supernode.MOST_MESSAGE_BYTES = 1999
supernode.start_supernode(lambda app: None, lambda app: app)
answer = lambda request: httpx.Response(200, stream=httpx.ByteStream(bytes(1000)))
client = httpx.Client(transport=httpx.MockTransport(answer))
transport.make_plain(client)
try:
    worker.pull_objects(["a", "b"], pull_object_fn=lambda part: client.get("http://owner/").content)
except transport.MessageTooLong as error:
    print(error)
"""


def test_a_node_that_is_started_holds_messages_to_the_bound():
    done = subprocess.run([sys.executable, "-c", STARTED_NODE], capture_output=True, text=True, check=True)
    assert done.stdout == "the message has more than 1999 bytes\n"


@pytest.mark.parametrize("headers", [{"location": "http://127.0.0.1:1/"}, {"content_encoding": "gzip"}, {}])
def test_no_cookie_comes_back_not_even_that_of_a_refused_answer(headers):
    status = 307 if "location" in headers else 200
    with (
        serving(lambda handler: plain(handler, b"", status, set_cookie="name=value", **headers)) as server,
        httpx.Client() as client,
    ):
        make_plain(client)
        for _ in range(2):
            with suppress(httpx.RemoteProtocolError):
                client.post(f"http://{address_of(server)}/")
    assert len(server.seen) == 2
    assert not any("cookie" in {name.lower() for name in sent} for _, sent, _ in server.seen)


def test_what_is_held_to_plain_answers_once_is_not_wrapped_again():
    from flwr.supercore.protobuf.client import ProtobufClient

    hold_clients_to_plain_answers()
    once = ProtobufClient.__init__
    hold_clients_to_plain_answers()
    assert ProtobufClient.__init__ is once


def test_a_worker_talks_to_a_server_of_its_own_user():
    with (
        serving(plain) as server,
        ask_own_user_alone(httpx.Client(timeout=5), is_served_by_this_user) as client,
    ):
        assert client.post(f"http://{address_of(server)}/", content=b"asked").status_code == 200
    assert server.seen[0][2] == b"asked"


SERVER_OF_ANOTHER = """
import os, socket, sys
os.setuid({nobody})
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    listener.settimeout(20)
    connection, _ = listener.accept()
    with connection:
        print(len(connection.recv(1000)), flush=True)
"""


def test_a_worker_says_nothing_to_a_server_of_another_user_that_has_taken_the_port():
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root can act as another user")
    program = SERVER_OF_ANOTHER.format(nobody=NOBODY)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        port = int(other.stdout.readline())
        with (
            ask_own_user_alone(httpx.Client(timeout=5), is_served_by_this_user) as client,
            pytest.raises(httpx.ConnectError, match="is not served by a process of this user"),
        ):
            client.post(f"http://127.0.0.1:{port}/", content=b"asked")
        assert other.stdout.readline().strip() == "0"
