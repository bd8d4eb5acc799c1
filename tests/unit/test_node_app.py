"""A site's node runs no code that was sent, and knows its own by a hash of its sources."""

import hashlib
import logging
from contextlib import contextmanager

import pytest

from fedproxy_secure.flower.internals.messages import pack_app
from fedproxy_secure.flower.internals.supernode import AppRefused, OfferedApp, checked_connection
from fedproxy_secure.flower.launch.app import FAB_ID, FAB_VERSION, app_files, app_sha256, sources_sha256
from fedproxy_secure.flower.launch.supernode import SERVER_APP, check_app


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
