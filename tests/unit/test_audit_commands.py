"""The commands `audit verify`, `show` and `keygen`."""

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.chain import START, make_entry
from fedproxy_secure.audit.keys import make_key, own_key_file, parse_public
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.cli.app import app
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from tests.support.run_logs import events, signer_of


@pytest.fixture
def settings(run_of_two_seeds):
    return run_of_two_seeds[0]


@pytest.fixture
def finished(run_of_two_seeds):
    return run_of_two_seeds[1]


def invoke(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_verify_says_who_signed_and_whether_that_was_pinned(finished, tmp_path):
    shown = invoke("verify", finished)
    assert shown.exit_code == 3
    assert "not verified: anybody may have re-signed" in shown.stdout
    assert "BAD" not in shown.stdout
    (tmp_path / "key.pub").write_text(signer_of(finished) + "\n")
    for key in (signer_of(finished), tmp_path / "key.pub"):
        pinned = invoke("verify", finished, "--key", key)
        assert pinned.exit_code == 0
        assert ", as expected" in pinned.stdout
    assert invoke("verify", finished, "--key", "zz" * 32).exit_code == 2
    assert invoke("verify", tmp_path).exit_code == 2


def test_a_command_never_shows_a_private_key_that_was_given_for_the_public_one(finished):
    digits = own_key_file(finished).read_text().split()[-1]
    wrong_file = invoke("verify", finished, "--key", own_key_file(finished))
    assert wrong_file.exit_code == 2
    assert "holds a private key" in wrong_file.stderr
    bare_digits = invoke("verify", finished, "--key", digits)  # nothing tells these from a public key
    assert bare_digits.exit_code == 1
    policy = ["--policy", "research"]
    gate = CliRunner().invoke(
        app,
        ["gate", "--report", str(finished / "report.json"), *policy, "--key", digits, "--format", "json"],
    )
    assert gate.exit_code == 1
    assert "not by the expected key, whose id begins with" in gate.output
    for shown in (wrong_file, bare_digits, gate):
        assert digits not in shown.output


def test_help_says_what_exit_code_3_means():
    shown = " ".join(invoke("verify", "--help").stdout.replace("│", " ").split())
    assert "but --key was not given, so the signer is unverified" in shown


def test_a_run_that_goes_on_is_neither_whole_nor_bad(tmp_path):
    config = parse_config({"seeds": [0]})
    witness = Witness.open(RunFolder.create(tmp_path / "run", config), config, command="c")
    witness.started(0)
    RunFolder(path=tmp_path / "run").write_text("seed-0/plan.json", "{}")
    shown = invoke("verify", tmp_path / "run")
    assert shown.exit_code == 3
    assert "report.sig: is missing" in shown.stdout
    assert "seed-0: did not finish" in shown.stdout


def test_keygen_makes_a_key_that_a_run_takes(settings, tmp_path):
    made = invoke("keygen", "--out", tmp_path / "me.key")
    assert made.exit_code == 0
    assert (tmp_path / "me.key.pub").read_text().strip() in made.stdout
    assert invoke("keygen", "--out", tmp_path / "me.key").exit_code == 2
    config = parse_config({**settings, "audit": {"signing_key": str(tmp_path / "me.key")}})
    assert config.sha256() == parse_config(settings).sha256()
    folder = RunFolder.create(tmp_path / "run", config)
    witness = Witness.open(folder, config, command="c")
    assert witness.public == parse_public(str(tmp_path / "me.key.pub"))
    assert not own_key_file(tmp_path / "run").exists()


def test_another_key_cannot_go_on(tmp_path):
    config = parse_config({"seeds": [0]})
    folder = RunFolder.create(tmp_path / "run", config)
    Witness.open(folder, config, command="c")
    make_key(tmp_path / "other.key")
    other = parse_config({"seeds": [0], "audit": {"signing_key": str(tmp_path / "other.key")}})
    with pytest.raises(AuditError, match="is signed by another key"):
        Witness.open(folder, other, command="c")
    assert len(events(tmp_path / "run")) == 1


def test_neither_show_nor_verify_hands_a_terminal_what_it_would_obey(tmp_path):
    """Whoever looks at somebody's folder has not checked it yet: a log may hold anything."""
    thief = Secret(bytes(32))
    body = {"public_key": signing_public(thief).hex(), "schema_version": 1}
    first = make_entry(thief, previous=START, seq=0, time="", event="opened", body=body)
    evil = "\x1b[2J\x1b]0;owned\x07\u202egnp"
    second = make_entry(
        thief, previous=first.hash, seq=1, time=evil, event=evil, body={"files": {evil: evil}, evil: [evil]}
    )
    third = make_entry(
        thief, previous=second.hash, seq=2, time="", event="files", body={"files": {evil: "00" * 32}}
    )
    (tmp_path / AUDIT_LOG).write_bytes(b"".join(e.line() + b"\n" for e in (first, second, third)))
    for command in ("show", "verify"):
        shown = invoke(command, tmp_path)
        assert "[2J" in shown.stdout
        assert all(c.isprintable() or c == "\n" for c in shown.stdout)


def test_show_prints_one_line_an_event(finished, tmp_path):
    shown = invoke("show", finished)
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) == 13
    assert "participants: c0, c1, c2; round 1; seed 0" in shown.stdout
    assert invoke("show", tmp_path).exit_code == 2
    (tmp_path / AUDIT_LOG).write_text("{}\n")
    assert "line 1: is not a line of an audit log" in invoke("show", tmp_path).stderr


def test_show_prints_the_log_of_a_run_that_goes_on_or_was_killed(finished, tmp_path):
    whole = (finished / AUDIT_LOG).read_bytes()
    (tmp_path / AUDIT_LOG).write_bytes(whole[:-20])
    shown = invoke("show", tmp_path)
    assert shown.exit_code == 0
    *lines, last = shown.stdout.splitlines()
    assert lines == invoke("show", finished).stdout.splitlines()[:-1]
    assert last.startswith("line 13 is cut short")
    (tmp_path / AUDIT_LOG).write_bytes(whole.replace(b"\n", b"\r\n", 1))
    assert "line 1: " in invoke("show", tmp_path).stderr
