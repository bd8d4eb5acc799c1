"""Who lacks the signer's key changes no line of a finished run's log unseen."""

import json
import shutil
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from fedproxy_secure.audit.chain import START, make_entry, parse_line
from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.seal import sign_report
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.vouched import erased_files
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.cli.app import app
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from tests.support.audited_run import (
    CONFIG,
    LINES,
    lines_of,
    problems,
    public_of,
    put,
)


@pytest.mark.parametrize("number", range(1, LINES + 1))
def test_an_altered_line_is_found_wherever_it_is(run, number):
    lines = lines_of(run)
    assert len(lines) == LINES
    fields = json.loads(lines[number - 1])
    fields["time"] = "1999-01-01T00:00:00+00:00"
    lines[number - 1] = json.dumps(fields, sort_keys=True).encode()
    put(run, lines)
    assert any(p.startswith(f"{AUDIT_LOG}: line {number}: was altered") for p in problems(run))


@pytest.mark.parametrize("number", range(1, LINES))
def test_a_line_altered_with_its_hash_lacks_the_signature(run, number):
    lines = lines_of(run)
    entry = parse_line(lines[number - 1])
    forged = make_entry(
        fresh_secret(),
        previous=entry.previous,
        seq=entry.seq,
        time="1999-01-01T00:00:00+00:00",
        event=entry.event,
        body=entry.body,
    )
    lines[number - 1] = forged.line()
    put(run, lines)
    found = problems(run)
    assert f"{AUDIT_LOG}: line {number}: was altered: the signature is not the signer's" in found
    assert f"{AUDIT_LOG}: line {number + 1}: does not follow from the line before it" in found


@pytest.mark.parametrize("number", range(1, LINES))
def test_a_missing_line_is_found_where_it_was(run, number):
    lines = lines_of(run)
    del lines[number - 1]
    put(run, lines)
    holds = f"line {number}: holds event {number} where event {number - 1} must be: lines are missing"
    assert f"{AUDIT_LOG}: {holds}" in problems(run)


@pytest.mark.parametrize("number", range(1, LINES))
def test_two_lines_that_change_places_are_found(run, number):
    lines = lines_of(run)
    lines[number - 1], lines[number] = lines[number], lines[number - 1]
    put(run, lines)
    found = problems(run)
    assert any(p.startswith(f"{AUDIT_LOG}: line {number}: holds event {number} where event") for p in found)
    assert any("were moved or repeated" in p for p in found)


def test_a_repeated_line_is_found(run):
    lines = lines_of(run)
    put(run, [*lines[:3], lines[2], *lines[3:]])
    assert any(p.startswith(f"{AUDIT_LOG}: line 4: holds event 2 where event 3") for p in problems(run))


@pytest.mark.parametrize("kept", range(1, LINES))
def test_lines_cut_off_at_the_end_are_found_by_the_reports_signature(run, kept):
    put(run, lines_of(run)[:kept])
    holds = f"lines after line {kept} are missing: the report is signed over a later line"
    assert f"{AUDIT_LOG}: {holds}" in problems(run)


def test_a_log_that_is_gone_is_no_log(run):
    (run / AUDIT_LOG).unlink()
    with pytest.raises(AuditError, match="cannot be read"):
        verify_run(run)
    put(run, [])
    assert any("does not open a log" in p for p in problems(run))


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 5000, b'{"seq": 0}', b"not JSON"]
)
def test_a_line_that_is_none_is_named(run, line):
    lines = lines_of(run)
    put(run, [*lines[:2], line, *lines[2:]])
    assert f"{AUDIT_LOG}: line 3: is not a line of an audit log" in problems(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"seq": 3', b'"seq":  3'),
        lambda line: line.replace(b'"seq": 3', b'"seq": 99, "seq": 3'),
        lambda line: line.replace(b'"seq": 3', b'"seq": 3.0'),
        lambda line: line.replace(b'"seq": 3', b'"seq": true'),
        lambda line: line + b" ",
        lambda line: line.replace(b"}", b', "zz": 1}', 1),
    ],
    ids=["space", "key twice", "float", "true", "space at the end", "field more"],
)
def test_a_line_that_only_means_the_same_is_not_the_same(run, change):
    lines = lines_of(run)
    assert change(lines[3]) != lines[3]
    lines[3] = change(lines[3])
    put(run, lines)
    assert any(p.startswith(f"{AUDIT_LOG}: line 4: ") for p in problems(run))


def test_every_bit_of_a_line_counts(run):
    lines = lines_of(run)
    for at in range(0, len(lines[2]), 5):
        for bit in (1, 32):  # 32 makes a capital of a hex digit
            changed = bytearray(lines[2])
            changed[at] ^= bit
            put(run, [*lines[:2], bytes(changed), *lines[3:]])
            assert problems(run), at


HOSTILE = [
    ("previous", "\ud800"),
    ("previous", "0" * 63),
    ("previous", "A" * 64),
    ("hash", "\x1b]0;owned\x07"),
    ("hash", "0" * 63 + "\n"),
    ("signature", "0" * 127),
    ("signature", "\x1b[2J"),
]


@pytest.mark.parametrize(("field", "value"), HOSTILE)
@pytest.mark.parametrize("number", [1, LINES])
def test_a_hash_or_signature_of_another_form_is_no_line_and_does_not_reach_the_terminal(
    run, field, value, number
):
    lines = lines_of(run)
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), field: value}, sort_keys=True).encode()
    put(run, lines)
    assert f"{AUDIT_LOG}: line {number}: is not a line of an audit log" in problems(run)
    done = CliRunner().invoke(app, ["audit", "verify", str(run)])
    assert done.exit_code == 1
    assert not {"\x1b", "\x07"} & set(done.output)


def test_a_whole_forgery_by_another_key_falls_to_the_pinned_key(run):
    """Everything made anew, consistently: only who knows the signer's key beforehand can tell."""
    signer, thief = public_of(run), fresh_secret()
    previous, forged = START, []
    for raw in lines_of(run):
        entry = parse_line(raw)
        body = entry.body
        if entry.event == "opened":
            body = {**body, "public_key": signing_public(thief).hex()}
        if entry.event == "round":
            body = {**body, "participants": ["bank", "clinic", "nobody"]}
        made = make_entry(
            thief, previous=previous, seq=entry.seq, time=entry.time, event=entry.event, body=body
        )
        previous = made.hash
        forged.append(made.line())
    put(run, forged)
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "audit_head": previous}))
    sign_report(run, thief, previous)
    assert verify_run(run).whole  # integrity alone, and not pinned
    assert not verify_run(run).pinned
    assert not verify_run(run).verified
    unpinned = CliRunner().invoke(app, ["audit", "verify", str(run)])
    assert unpinned.exit_code == 3
    assert "not verified: anybody may have re-signed this folder" in unpinned.stdout
    pinned = CliRunner().invoke(app, ["audit", "verify", str(run), "--key", signer.hex()])
    assert pinned.exit_code == 1
    found = verify_run(run, key=signer)
    assert found.problems == (f"{AUDIT_LOG}: line 1: names another signer than the key asked for",)
    assert not found.pinned


def test_a_line_of_another_run_of_the_same_signer_does_not_fit(run, tmp_path):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(own_key_file(run).read_text()))
    assert key.public_key().public_bytes_raw() == public_of(run)
    other = RunFolder.create(tmp_path / "other", CONFIG)
    shutil.copy(own_key_file(run), own_key_file(other.path))
    witness = Witness.open(other, CONFIG, command="c")
    witness.started(0)
    witness.log.add("round", seed=0, round=0, participants=["nobody"], spends={})
    lines = lines_of(run)
    lines[2] = lines_of(other.path)[2]
    put(run, lines)
    assert f"{AUDIT_LOG}: line 3: does not follow from the line before it" in problems(run)


def test_the_time_to_read_a_log_that_erases_again_and_again_is_linear_in_its_length():
    """A hostile log has millions of such lines: in quadratic time, reading it takes days."""
    key = fresh_secret()
    entries = [
        make_entry(key, previous=START, seq=seq, time="", event=event, body={"files": files})
        for seq, (event, files) in enumerate([("files", {"x": "00" * 32}), ("erased", ["x"])] * 4)
    ]
    begun = time.process_time()
    assert erased_files(entries * 5000) == {"x": ("00" * 32, 40_000)}
    assert time.process_time() - begun < 2
