"""A SuperLink answers other machines as nodes alone, and a site's node runs no code that was sent."""

import asyncio
import hashlib
import logging

import pytest
from starlette.responses import PlainTextResponse

from fedproxy_secure.deploy.running import running, stop, the_only_one
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.flower.internals import AppRefused, OfferedApp, checked_connection, pack_app
from fedproxy_secure.flower.launch.app import FAB_ID, FAB_VERSION, app_files, app_sha256
from fedproxy_secure.flower.launch.superlink import MOST_BODY_BYTES, OnlyNodes
from fedproxy_secure.flower.launch.supernode import SERVER_APP, check_app

ELSEWHERE = ("192.0.2.7", 5000)


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


def status_of(path, *, client=ELSEWHERE, kind="http", headers=(), body=(b"",)):
    sent = []
    parts = [
        {"type": "http.request", "body": b, "more_body": i < len(body) - 1} for i, b in enumerate(body)
    ]

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "client": client, "headers": list(headers), "method": "POST"}
    asyncio.run(OnlyNodes(everything)(scope, receive, send))
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


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("::1", 1)])
def test_this_machine_reaches_everything(client):
    assert status_of("/v1/control/start-run", client=client) == 200


@pytest.mark.parametrize("client", [None, ("not an address", 1), ("::ffff:192.0.2.7", 1), ("10.0.0.1", 1)])
def test_whoever_cannot_be_told_to_be_local_is_another_machine(client):
    assert status_of("/v1/control/start-run", client=client) == 404


def test_a_body_that_announces_too_much_is_not_read():
    headers = [(b"content-length", str(MOST_BODY_BYTES + 1).encode())]
    assert status_of("/v1/fleet/push-object", headers=headers) == 413


def test_a_body_that_announces_nothing_is_cut_when_it_is_too_much():
    piece = bytes(MOST_BODY_BYTES // 2)
    assert status_of("/v1/fleet/push-object", body=(piece, piece)) == 200
    assert status_of("/v1/fleet/push-object", body=(piece, piece, b"1")) == 400


def offered(**changes):
    app = {"fab_id": FAB_ID, "version": FAB_VERSION, "sha256": app_sha256(), "kind": SERVER_APP}
    return OfferedApp(**{**app, "content": None, **changes})


def test_the_installations_own_app_is_taken():
    check_app(offered())
    check_app(offered(content=pack_app(app_files())))


@pytest.mark.parametrize(
    "changes",
    [
        {"fab_id": "fedproxy-secure/other"},
        {"version": "1.0.0/../../../tmp"},
        {"sha256": "0" * 64},
        {"kind": "flwr-agentapp"},
        {"content": b"other bytes"},
        {"content": pack_app(app_files(server="somebody.else"))},
    ],
)
def test_any_other_app_is_refused_with_one_line(caplog, changes):
    with caplog.at_level(logging.ERROR), pytest.raises(AppRefused):
        check_app(offered(**changes))
    assert len(caplog.records) == 1


def test_all_installations_of_a_version_pack_the_same_app():
    packed = pack_app(app_files())
    assert packed == pack_app(dict(reversed(app_files().items())))
    assert hashlib.sha256(packed).hexdigest() == app_sha256()


class Run:
    def __init__(self, fab_hash):
        self.fab_id, self.fab_version, self.fab_hash = FAB_ID, FAB_VERSION, fab_hash
        self.primary_task_type = SERVER_APP


def test_flower_drops_the_message_of_an_app_that_is_refused():
    """The check stands in Flower's own connection, and what it raises is what Flower takes for "go on"."""
    from contextlib import contextmanager

    from flwr.supercore.fab import Fab
    from flwr.supercore.run import RunNotRunningException

    packed = pack_app(app_files())
    fabs = {1: Fab(app_sha256(), packed, {}), 2: Fab(app_sha256(), b"other", {}), 3: Fab("0", packed, {})}

    @contextmanager
    def connect():
        yield 7, "receive", "send", lambda run: Run(app_sha256()), lambda _hash, run: fabs[run], "rest"

    with checked_connection(connect, check_app)() as (_, _, _, get_run, get_fab, rest):
        assert rest == "rest"
        for run in fabs:
            get_run(run)
        assert get_fab("", 1).content == packed
        for run in (2, 3):
            with pytest.raises(RunNotRunningException):
                get_fab("", run)


def test_a_folder_runs_one_process_which_is_found_while_it_runs(tmp_path):
    assert running(tmp_path) is None
    with the_only_one(tmp_path, "a node"):
        assert running(tmp_path) is not None
        with (
            pytest.raises(RunFolderError, match="a node runs here already"),
            the_only_one(tmp_path, "a node"),
        ):
            pass
    assert running(tmp_path) is None
    assert stop(tmp_path) is False
