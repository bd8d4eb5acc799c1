"""The chain of an audit log, whose every line is on the disk, and its keys."""

import errno
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedproxy_secure.audit.chain import START, make_entry
from fedproxy_secure.audit.examine import examine
from fedproxy_secure.audit.keys import make_key, own_key_file, parse_public, run_key
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from tests.support.run_logs import events

KEY = Secret(bytes(range(32)))


@pytest.fixture
def log(tmp_path):
    return AuditLog.open(RunFolder(path=tmp_path), KEY, {"command": "c"})


# --- the chain


def test_a_line_has_a_known_hash_and_signature():
    time = "2026-01-02T03:04:05+00:00"
    entry = make_entry(KEY, previous=START, seq=0, time=time, event="opened", body={"b": 1, "a": (2.5,)})
    domain = b"fedproxy-secure audit 1"
    content = b'{"body":{"a":[2.5],"b":1},"event":"opened","seq":0,"time":"2026-01-02T03:04:05+00:00"}'

    def sha256(*parts):
        return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in parts)).digest()

    assert entry.hash == sha256(domain, b"0" * 64, content).hex()
    signed = sha256(domain, bytes.fromhex(entry.hash))
    private = Ed25519PrivateKey.from_private_bytes(KEY.reveal())
    assert entry.signature == private.sign(signed).hex()


def test_every_event_is_on_disk_before_add_returns(log, tmp_path):
    for number in range(3):
        entry = log.add("round", round=number, participants=("a", "b"))
        assert events(tmp_path)[-1] == entry
        assert log.head == entry.hash
    found = examine((tmp_path / AUDIT_LOG).read_bytes())
    assert found.problems == ()
    assert found.public == signing_public(KEY)
    assert [e.seq for e in found.entries] == [0, 1, 2, 3]


def test_a_log_opened_again_goes_on_in_the_same_chain(log, tmp_path):
    log.add("round", round=0)
    again = AuditLog.open(RunFolder(path=tmp_path), KEY, {"command": "other"})
    again.add("round", round=1)
    assert examine((tmp_path / AUDIT_LOG).read_bytes()).problems == ()
    assert [e.event for e in events(tmp_path)] == ["opened", "round", "round"]
    assert events(tmp_path)[0].body["command"] == "c"


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_a_kill_cut_short_is_dropped_on_the_way_on(log, tmp_path, cut):
    log.add("round", round=0)
    log.add("round", round=1)
    (tmp_path / AUDIT_LOG).write_bytes((tmp_path / AUDIT_LOG).read_bytes()[:-cut])
    assert examine((tmp_path / AUDIT_LOG).read_bytes()).cut
    AuditLog.open(RunFolder(path=tmp_path), KEY, {}).add("round", round=1)
    assert [e.body.get("round") for e in events(tmp_path)] == [None, 0, 1]
    assert examine((tmp_path / AUDIT_LOG).read_bytes()).problems == ()


def test_a_first_line_cut_short_begins_the_log_anew(tmp_path):
    (tmp_path / AUDIT_LOG).write_bytes(b'{"body": {"pub')
    AuditLog.open(RunFolder(path=tmp_path), KEY, {})
    assert [e.event for e in events(tmp_path)] == ["opened"]


def test_two_logs_of_one_signer_differ_from_the_first_line_on(tmp_path):
    heads = {AuditLog.open(RunFolder(path=tmp_path / n), KEY, {}).head for n in ("a", "b")}
    assert len(heads) == 2


# --- keys


def test_a_key_is_private_and_never_overwritten(tmp_path):
    public = make_key(tmp_path / "me.key")
    assert (tmp_path / "me.key").stat().st_mode & 0o777 == 0o600
    assert parse_public(str(tmp_path / "me.key.pub")) == parse_public(public.hex()) == public
    with pytest.raises(ConfigError, match="is there already; keys are never overwritten"):
        make_key(tmp_path / "me.key")
    (tmp_path / "me.key").rename(tmp_path / "moved.key")  # its public half may be in use
    with pytest.raises(ConfigError, match=r"me\.key\.pub: is there already; keys are never overwritten"):
        make_key(tmp_path / "me.key")
    assert not (tmp_path / "me.key").exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        make_key(tmp_path / "nowhere" / "me.key")


def test_a_key_without_its_public_half_is_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(RunFolderError, match=r"me\.key\.pub: cannot be written"):
            make_key(tmp_path / "me.key")
    assert os.listdir(tmp_path) == []
    make_key(tmp_path / "me.key")


def test_a_private_key_in_the_place_of_the_public_one_is_refused_and_not_shown(tmp_path):
    make_key(tmp_path / "me.key")
    written = (tmp_path / "me.key").read_text()
    for text in (str(tmp_path / "me.key"), written, written.strip()):
        with pytest.raises(ConfigError, match=r"private.*must be the public key") as raised:
            parse_public(text)
        assert written.split()[-1] not in str(raised.value)


@pytest.mark.parametrize("text", ["abc", "zz" * 32, "no/such/file"])
def test_what_is_no_public_key_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abc").write_text("12")
    with pytest.raises(ConfigError):
        parse_public(text)


def test_a_run_makes_its_own_key_once_and_beside_its_folder(tmp_path):
    made = run_key(tmp_path / "run", None, make=True)
    assert own_key_file(tmp_path / "run") == (tmp_path / "run.audit.key").resolve()
    assert run_key(tmp_path / "run", None, make=False).reveal() == made.reveal()
    own_key_file(tmp_path / "run").unlink()
    with pytest.raises(ConfigError, match="is missing"):
        run_key(tmp_path / "run", None, make=False)


def test_a_key_that_others_may_read_signs_nothing(tmp_path):
    make_key(tmp_path / "me.key")
    (tmp_path / "me.key").chmod(0o644)
    with pytest.raises(ConfigError, match="must be 600"):
        run_key(tmp_path / "run", str(tmp_path / "me.key"), make=True)
