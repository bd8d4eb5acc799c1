"""A SuperLink answers other machines as nodes alone, and a site's node runs no code that was sent."""

import asyncio
import hashlib
import json
import logging
import os
import subprocess
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.responses import PlainTextResponse

from fedproxy_secure.deploy.running import stop, the_only_one
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.flower.internals.messages import pack_app
from fedproxy_secure.flower.internals.superlink import (
    DEEPEST,
    MOST_OBJECTS,
    begins_anew,
    held,
    is_plain_tree,
    only_answers,
    only_whole_answers,
)
from fedproxy_secure.flower.internals.supernode import AppRefused, OfferedApp, checked_connection
from fedproxy_secure.flower.launch.app import FAB_ID, FAB_VERSION, app_files, app_sha256, sources_sha256
from fedproxy_secure.flower.launch.superlink import MOST_BODY_BYTES, OnlyNodes
from fedproxy_secure.flower.launch.supernode import SERVER_APP, check_app
from fedproxy_secure.runtime.only_one import FILE, running
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
    path, *, client=ELSEWHERE, server=HERE, kind="http", headers=None, body=(b"",), registered=True
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


class Metadata:
    def __init__(self, src, dst=1, reply="asked"):
        self.src_node_id, self.dst_node_id, self.reply_to_message_id = src, dst, reply


class Pushed:
    """A request of node 7 that pushes messages."""

    def __init__(self, *metadata, trees=None):
        self.node = type("Node", (), {"node_id": 7})
        self.messages_list = [type("Message", (), {"metadata": one}) for one in metadata]
        self.message_object_trees = [Tree("a")] * (len(metadata) if trees is None else trees)


class Tree:
    def __init__(self, object_id, *children):
        self.object_id, self.children = object_id, children


class Store:
    """What the checks ask of the SuperLink's state: the objects that it has."""

    def __init__(self, **children_of):
        self.object_store = self
        self.store = {
            name: type("Entry", (), {"child_object_ids": list(children)})
            for name, children in children_of.items()
        }


def test_a_node_pushes_answers_of_its_own():
    assert only_answers(lambda request, state: "taken")(Pushed(Metadata(7)), Store()) == "taken"


@pytest.mark.parametrize(
    "request_of_seven",
    [
        Pushed(Metadata(8)),
        Pushed(Metadata(1)),
        Pushed(Metadata(7, reply="")),
        Pushed(Metadata(7, dst=8)),
        Pushed(Metadata(7), Metadata(8)),
        Pushed(Metadata(7), trees=0),
        Pushed(),
    ],
)
def test_what_is_not_a_nodes_own_answer_is_refused(request_of_seven):
    from fastapi import HTTPException

    with pytest.raises(HTTPException):
        only_answers(lambda request, state: "taken")(request_of_seven, Store())


def test_a_tree_as_flower_makes_them_is_taken():
    piece = Tree("piece")
    tree = Tree("message", Tree("record", Tree("array", piece, Tree("other")), Tree("twin", piece)))
    assert is_plain_tree(tree, Store(piece=[], record=["array", "twin"]))


def deep(levels):
    return Tree(str(levels)) if levels == 1 else Tree(str(levels), deep(levels - 1))


def bomb(levels):
    """Each object lists its child twice, once with what is below it and once without."""
    return Tree("0") if levels == 0 else Tree(str(levels), bomb(levels - 1), Tree(str(levels - 1)))


@pytest.mark.parametrize(
    ("tree", "known"),
    [
        (deep(DEEPEST + 1), {}),
        (bomb(4), {}),
        (Tree("message", *[Tree(str(i)) for i in range(MOST_OBJECTS)]), {}),
        (Tree("message", Tree("record")), {"record": ["of another node"]}),
        (Tree("message", Tree("record", Tree("mine"))), {"record": []}),
    ],
)
def test_a_tree_that_expands_to_something_else_is_refused(tree, known):
    assert not is_plain_tree(tree, Store(**known))


def test_an_answer_is_handed_on_once_all_of_it_is_there():
    """With the SuperLink's own store: Flower alone would hand on the announced answer and wait."""
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.object_store import ObjectStoreFactory

    store: Any = ObjectStoreFactory().store()
    store.preregister(1, ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64)]))
    state = type(
        "State", (), {"object_store": store, "message_ins_id_to_message_res_id": {"asked": "a" * 64}}
    )

    class Asked:
        def __init__(self, *ids):
            self.message_ids = list(ids)

    def seen(*ids):
        return only_whole_answers(lambda request, state, task: request.message_ids)(
            Asked(*ids), state, None
        )

    assert seen("asked", "other") == ["other"]
    store.store["a" * 64].is_available = True
    assert seen("asked", "other") == ["other"]
    store.store["b" * 64].is_available = True
    assert seen("asked", "other") == ["asked", "other"]
    del store.store["b" * 64]
    assert seen("asked", "other") == ["asked", "other"], "Flower says itself that a part is gone"


def test_each_part_of_an_awaited_answer_is_looked_at_once_and_none_after_one_that_is_missing():
    """Twenty layers in which each object is listed twice: a walk of the tree would take a million looks."""
    layers = [Part(str(level), [str(level + 1)] * 2 if level < 20 else []) for level in range(21)]
    parts = Counted({part.name: part for part in layers})
    store = type("Store", (), {"store": parts})
    state = type("State", (), {"object_store": store, "message_ins_id_to_message_res_id": {"asked": "0"}})
    request = type("Asked", (), {"message_ids": ["asked"]})
    hand_on = only_whole_answers(lambda request, state, task: list(request.message_ids))
    assert hand_on(request, state, None) == ["asked"]
    assert parts.looks == 21
    layers[0].is_available = False
    assert hand_on(request, state, None) == []
    assert parts.looks == 22


class Links:
    """A SuperLink's messages for nodes, and their parts."""

    def __init__(self):
        self.message_ins_store, self.object_store = {}, type("Store", (), {"store": {}})()
        self.message_ins_id_to_message_res_id, self.deleted = {}, set()

    def delete_messages(self, message_ins_ids):
        self.deleted |= message_ins_ids

    def add(self, name, node, *, whole=True, delivered_at=""):
        data = type("Metadata", (), {"dst_node_id": node, "delivered_at": delivered_at})
        self.message_ins_store[name] = type("Message", (), {"metadata": data})
        self.object_store.store[name] = Part(name, [])
        self.object_store.store[name].is_available = whole


class Looked(dict):
    """Messages; `at` is set when somebody looks them through."""

    def __init__(self):
        super().__init__()
        self.at = threading.Event()

    def items(self):
        self.at.set()
        return super().items()


def pulled_after_s(links, held_s=0.5, node=7, hold=held):
    began = time.monotonic()
    assert hold(lambda *_: "pulled", held_s=held_s)(asked_by(node), links, None) == "pulled"
    return time.monotonic() - began


def asked_by(node):
    return type("Pull", (), {"node": type("Node", (), {"node_id": node})})


def test_a_request_for_messages_is_held_until_a_whole_one_is_there():
    links = Links()
    links.add("of another", node=8)
    links.add("old", node=7, delivered_at="2026-01-01")
    links.add("mine", node=7, whole=False)
    del links.object_store.store["old"]  # it was confirmed
    assert pulled_after_s(links) >= 0.5, "there is none"
    later = threading.Timer(0.1, setattr, (links.object_store.store["mine"], "is_available", True))
    later.start()
    assert 0.1 <= pulled_after_s(links, held_s=60) < 30
    assert pulled_after_s(links, held_s=60) < 30


@pytest.mark.parametrize(("node", "most"), [(8, 1), (7, 24)], ids=["too many nodes", "the same node"])
def test_a_request_beyond_those_that_may_be_held_is_answered_at_once(node, most):
    links, pull = Links(), held(lambda *_: "pulled", held_s=60, most=most)
    links.message_ins_store = looked = Looked()
    first = threading.Thread(target=pull, args=(asked_by(7), links, None))
    first.start()
    assert looked.at.wait(30)
    assert pull(asked_by(node), links, None) == "pulled"
    assert first.is_alive()
    links.add("mine", node=7)
    first.join(30)
    assert not first.is_alive()


def test_a_message_that_a_node_took_and_did_not_confirm_is_handed_out_once_more():
    """The node's line was cut while the answer to its request was on the way."""
    links, pull = Links(), held(lambda *_: "pulled", held_s=0)
    links.add("lost", node=7, delivered_at="2026-01-01")
    links.add("of another", node=8, delivered_at="2026-01-01")
    links.add("confirmed", node=7, delivered_at="2026-01-01")
    links.add("answered", node=7, delivered_at="2026-01-01")
    del links.object_store.store["confirmed"]
    links.message_ins_id_to_message_res_id["answered"] = "answer"

    def delivered():
        return {name for name, one in links.message_ins_store.items() if one.metadata.delivered_at}

    pull(asked_by(7), links, None)
    assert delivered() == {"of another", "confirmed", "answered"}
    links.message_ins_store["lost"].metadata.delivered_at = "2026-01-02"
    pull(asked_by(7), links, None)
    assert "lost" in delivered(), "an app that a node refuses is never confirmed"


def test_what_a_node_had_taken_when_it_was_started_again_is_lost_at_once():
    links = Links()
    links.add("taken", node=7, delivered_at="2026-01-01")
    links.add("answered", node=7, delivered_at="2026-01-01")
    links.add("waits", node=7)
    links.add("of another", node=8, delivered_at="2026-01-01")
    links.message_ins_id_to_message_res_id["answered"] = "answer"
    answer = type("Activated", (), {"node_id": 7})
    assert begins_anew(lambda request, state: answer)(request=None, state=links) is answer
    assert links.deleted == {"taken"}


class Part:
    def __init__(self, name, children):
        self.name, self.child_object_ids, self.is_available = name, children, True


class Counted(dict):
    """What a SuperLink's store has by name, with a count of how often somebody looked."""

    looks = 0

    def get(self, name, default=None):
        self.looks += 1
        return super().get(name, default)


def test_a_body_that_announces_too_much_is_not_read():
    headers = [*signed_headers(), (b"content-length", str(MOST_BODY_BYTES + 1).encode())]
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


def test_a_checkout_and_a_wheel_of_one_commit_have_the_same_hash_of_their_sources(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        (place / "sub").mkdir(parents=True)
        (place / "a.py").write_bytes(b"a = 1\nb = 2\n")
        (place / "sub" / "__init__.py").write_bytes(b"")
    (there / "a.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    (there / "__pycache__").mkdir()
    (there / "__pycache__" / "a.py").write_bytes(b"left over")
    (there / ".#a.py").write_bytes(b"of an editor")
    (there / "configs.yaml").write_bytes(b"a: 1\n")
    assert sources_sha256(here) == sources_sha256(there)


@pytest.mark.parametrize(("name", "content"), [("a.py", b"a = 2\n"), ("b.py", b"a = 1\n")])
def test_another_line_or_another_name_is_another_hash_of_the_sources(tmp_path, name, content):
    here, there = tmp_path / "here", tmp_path / "there"
    for place, file, text in ((here, "a.py", b"a = 1\n"), (there, name, content)):
        place.mkdir()
        (place / file).write_bytes(text)
    assert sources_sha256(here) != sources_sha256(there)
    assert len(sources_sha256()) == 64


class Run:
    def __init__(self, fab_hash):
        self.fab_id, self.fab_version, self.fab_hash = FAB_ID, FAB_VERSION, fab_hash
        self.primary_task_type = SERVER_APP


def test_flower_drops_the_message_of_an_app_that_is_refused():
    """The check stands in Flower's own connection, and what it raises is what Flower takes for "go on"."""
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


@contextmanager
def held_by_another_user(folder):
    """Name a process that this one may not end as the holder of a folder, while the block lasts."""
    if os.geteuid() != 0:
        (folder / FILE).write_text(json.dumps({"pid": 1}))
        yield
        return
    folder.chmod(0o755)
    with subprocess.Popen(["sleep", "60"], user=1) as other:
        (folder / FILE).write_text(json.dumps({"pid": other.pid}))
        assert running(folder) == other.pid  # loads what only root may read
        os.seteuid(2)  # root may end any process
        try:
            yield
        finally:
            os.seteuid(0)
            other.kill()


def test_a_process_of_another_user_is_not_stopped_and_that_is_one_line():
    with TemporaryDirectory() as place:
        folder = Path(place)
        with the_only_one(folder, "a node"), held_by_another_user(folder):
            assert running(folder) is not None
            with pytest.raises(RunFolderError, match=r"is another user's; stop it as that user$"):
                stop(folder)
