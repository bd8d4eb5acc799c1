"""A SuperLink answers other machines as nodes alone, and reads no body of who is none."""

import asyncio
import logging
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.responses import PlainTextResponse

from fedproxy_secure.flower.internals.log_lines import PrintableLine
from fedproxy_secure.flower.internals.superlink import without_strangers_lines
from fedproxy_secure.flower.launch import same_user
from fedproxy_secure.flower.launch.same_user import OnlyThisUser, guarded_where_possible
from fedproxy_secure.flower.launch.superlink import (
    ANSWERS_VARIABLE,
    SLACK_BYTES,
    OnlyNodes,
    most_answer_bytes,
)
from tests.support.connections import another_users_connection, connected

ELSEWHERE, HERE = ("192.0.2.7", 5000), ("192.0.2.1", 9092)


async def everything(scope, receive, send):
    """Answer 200 to whatever comes, having read its body, as an app that must be protected."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            await PlainTextResponse("cut", status_code=400)(scope, receive, send)
            return
        if not message.get("more_body"):
            break
    await PlainTextResponse("done")(scope, receive, send)


NODE = ec.generate_private_key(ec.SECP384R1())


def signed_headers(node=NODE, age_s=0):
    """The headers by which Flower's nodes prove who they are."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

    timestamp = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    signature = sign_message(node, timestamp.encode())
    return [
        (b"flwr-public-key", b64encode(public_key_to_bytes(node.public_key()))),
        (b"flwr-signature", b64encode(signature)),
        (b"flwr-timestamp", timestamp.encode()),
    ]


class SuperLinkApp:
    """What the middleware asks of Flower's app: whether a key is registered."""

    def __init__(self, registered):
        self.state = self.linkstate_factory = self
        self.registered = registered

    def __call__(self):
        return self

    def get_node_id_by_public_key(self, key):
        return 7 if self.registered else None


def status_of(
    path,
    *,
    client=ELSEWHERE,
    server=HERE,
    kind="http",
    headers=None,
    body=(b"",),
    registered=True,
    door=OnlyNodes,
):
    headers = signed_headers() if headers is None else headers
    sent = []
    parts = [
        {"type": "http.request", "body": b, "more_body": i < len(body) - 1} for i, b in enumerate(body)
    ]

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "client": client, "headers": list(headers), "method": "POST"}
    scope |= {"app": SuperLinkApp(registered), "server": server}
    asyncio.run(door(everything)(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/",
        "//v1/fleet/pull-messages",
        "/v1/fleet",
        "/v1/Fleet/pull-messages",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/x/../../control/start-run",
    ],
)
def test_another_machine_reaches_nothing_but_what_nodes_need(path):
    assert status_of(path) == 404


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health"])
def test_another_machine_reaches_what_nodes_need(path):
    assert status_of(path) == 200


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/"])
def test_the_owners_own_processes_reach_everything(path):
    with connected() as (client, server):
        assert status_of(path, client=client, server=server) == 200


@pytest.mark.parametrize(
    "client", [None, ("not an address", 1), ("::ffff:192.0.2.7", 1), ("10.0.0.1", 1), ("127.0.0.1", 1)]
)
def test_whoever_cannot_be_told_to_be_the_owner_is_another_machine(client):
    with connected() as (_, server):
        assert status_of("/v1/control/start-run", client=client, server=server) == 404
    assert status_of("/v1/control/start-run", client=client, server=None) == 404


def test_another_user_of_this_machine_registers_no_node_starts_no_run_and_needs_a_nodes_key():
    with another_users_connection() as (client, server):
        for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"):
            assert status_of(path, client=client, server=server) == 404
        assert status_of("/v1/fleet/pull-messages", client=client, server=server) == 200
        assert (
            status_of("/v1/fleet/pull-messages", client=client, server=server, headers=(), body=()) == 401
        )


def test_the_owners_own_processes_need_a_nodes_key_where_nodes_do():
    with connected() as (client, server):
        assert (
            status_of("/v1/fleet/pull-messages", client=client, server=server, headers=(), body=()) == 401
        )


def changed(name, value):
    return [(key, value if key == name else old) for key, old in signed_headers()]


UNPROVEN = {  # made when the test runs: some are a question of seconds
    "none": lambda: (),
    "no time": lambda: signed_headers()[:2],
    "another signature": lambda: changed(b"flwr-signature", b64encode(b"another")),
    "another time": lambda: changed(
        b"flwr-timestamp", (datetime.now(UTC) + timedelta(seconds=1)).isoformat().encode()
    ),
    "old": lambda: signed_headers(age_s=400),
    "of the future": lambda: signed_headers(age_s=-60),
    "no base64": lambda: changed(b"flwr-public-key", b"not base64"),
    "no key": lambda: changed(b"flwr-public-key", b64encode(b"not a key")),
    "no ASCII": lambda: changed(b"flwr-timestamp", "\u00e9".encode()),
}


@pytest.mark.parametrize("headers", UNPROVEN.values(), ids=UNPROVEN)
def test_no_body_is_read_of_who_does_not_prove_to_be_a_registered_node(headers):
    assert status_of("/v1/fleet/pull-messages", headers=headers(), body=()) == 401


def test_no_body_is_read_of_a_node_that_is_not_registered():
    assert status_of("/v1/fleet/pull-messages", registered=False, body=()) == 401


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"])
def test_a_request_that_says_where_it_comes_from_is_not_of_this_machine(name):
    with connected() as (client, server):
        headers = [(name, b"127.0.0.1")]
        assert status_of("/v1/control/start-run", client=client, server=server, headers=headers) == 404


def test_a_body_that_announces_too_much_is_not_read():
    headers = [*signed_headers(), (b"content-length", str(SLACK_BYTES + 1).encode())]
    assert status_of("/v1/fleet/push-object", headers=headers) == 413


def test_a_body_that_announces_nothing_is_cut_when_it_is_too_much():
    piece = bytes(SLACK_BYTES // 2)
    assert status_of("/v1/fleet/push-object", body=(piece, piece)) == 200
    assert status_of("/v1/fleet/push-object", body=(piece, piece, b"1")) == 400


@pytest.mark.parametrize(
    "path", ["/health", "/v1/runtime/acquire-task", "/v1/fleet/pull-messages", "/docs"]
)
def test_a_sites_supernode_and_an_engines_superlink_answer_processes_of_their_user_alone(path):
    for door in (OnlyThisUser, guarded_where_possible):
        with connected() as (client, server):
            assert status_of(path, client=client, server=server, door=door, headers=[]) == 200
        with another_users_connection() as (client, server):
            assert status_of(path, client=client, server=server, door=door, headers=[]) == 404
        assert status_of(path, door=door, headers=[]) == 404


def test_no_body_of_another_user_is_read():
    async def run():
        async def receive():
            raise AssertionError("the body is read")

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/", "client": ELSEWHERE, "server": HERE, "headers": []}
        await OnlyThisUser(everything)(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(run()) == 404


def test_a_stranger_gets_no_line_into_the_superlinks_log():
    from flwr.supercore.http_logging import get_uvicorn_log_config

    loggers = without_strangers_lines(get_uvicorn_log_config)(logging.INFO)["loggers"]
    assert loggers["uvicorn.access"] == {"handlers": [], "propagate": False}
    assert loggers["uvicorn.error"]["level"] == "ERROR"  # a malformed request is a warning


def test_another_partys_text_cannot_forge_a_line_of_flowers_log():
    record = logging.LogRecord(
        "flwr", logging.INFO, "", 0, "type %s", ("a\x1b[31m\n12:00 all is well",), None
    )
    assert PrintableLine().filter(record)
    assert record.getMessage() == "type a?[31m?12:00 all is well"


def test_how_much_a_node_may_answer_is_what_the_owner_wrote_or_little(tmp_path, monkeypatch):
    monkeypatch.delenv(ANSWERS_VARIABLE, raising=False)
    assert most_answer_bytes() == SLACK_BYTES
    monkeypatch.setenv(ANSWERS_VARIABLE, str(tmp_path / "bytes"))
    assert most_answer_bytes() == SLACK_BYTES
    (tmp_path / "bytes").write_text("123")
    assert most_answer_bytes() == 123


def test_a_record_whose_arguments_do_not_fit_stops_nobody_and_an_exceptions_text_is_one_line():
    record = logging.LogRecord("flwr", logging.INFO, "", 0, "bad %d", ("x",), None)
    assert PrintableLine().filter(record)
    assert record.getMessage() == "bad %d ('x',)"
    error = ValueError("a\n12:00 forged")
    record = logging.LogRecord("flwr", logging.INFO, "", 0, "failed", (), (ValueError, error, None))
    assert PrintableLine().filter(record)
    assert logging.Formatter().format(record) == "failed (ValueError: a?12:00 forged)"


def test_where_users_cannot_be_told_apart_a_warning_says_so(monkeypatch, caplog):
    monkeypatch.setattr(same_user, "SOCK_DIAG", 99)  # a netlink protocol that there is not
    monkeypatch.setattr(same_user.are_users_known, "__defaults__", (99,))
    assert guarded_where_possible(everything) is everything
    assert "other users of it are not kept out" in caplog.text
