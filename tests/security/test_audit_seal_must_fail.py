"""A finished run's report and its signature belong together: each change of one is found."""

import json

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.chain import parse_line
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.cli.app import app
from fedproxy_secure.cli.evidence import signed_as
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.runtime.files.names import SIGNATURE
from tests.support.audited_run import lines_of, problems, put


def test_every_bit_of_the_reports_signature_counts(run):
    raw = (run / SIGNATURE).read_bytes()
    for at in range(0, len(raw), 5):
        for bit in (1, 32):
            changed = bytearray(raw)
            changed[at] ^= bit
            (run / SIGNATURE).write_bytes(bytes(changed))
            assert problems(run), at


@pytest.mark.parametrize("name", ["report.json", "report.md", "config.yaml", "seed-0/result.json"])
def test_no_file_of_the_report_or_its_evidence_can_be_altered(run, name):
    (run / name).write_bytes((run / name).read_bytes() + b" ")
    assert any(p.startswith(f"{name}: was altered") for p in problems(run))


def test_a_report_whose_head_was_replaced_is_found(run):
    text = (run / "report.json").read_text()
    head = json.loads(text)["audit_head"]
    (run / "report.json").write_text(text.replace(head, "00" * 32))
    assert "report.json: its audit_head is not the one that report.sig has" in problems(run)


@pytest.mark.parametrize("field", ["head", "public_key", "signature", "files", "schema_version"])
def test_no_field_of_the_reports_signature_can_be_altered(run, field):
    seal = json.loads((run / SIGNATURE).read_text())
    changed = {
        "head": parse_line(lines_of(run)[3]).hash,
        "public_key": signing_public(fresh_secret()).hex(),
        "signature": "00" * 64,
        "files": {**seal["files"], "report.json": "00" * 32},
        "schema_version": 2,
    }
    (run / SIGNATURE).write_text(json.dumps({**seal, field: changed[field]}))
    assert any(p.startswith(SIGNATURE) for p in problems(run))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"head": 1}', b"\xff\xed\xa0\xbd"])
def test_a_damaged_signature_is_a_problem_not_a_crash(run, text):
    (run / SIGNATURE).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert any(p.startswith(SIGNATURE) for p in problems(run))


def test_without_a_signature_the_end_is_open_and_never_whole(run):
    (run / SIGNATURE).unlink()
    put(run, lines_of(run)[:-1])
    found = verify_run(run)
    assert not found.whole
    assert any("nothing says where the log ends" in line for line in found.unsettled)


# --- what is judged is what is signed


def test_a_report_that_was_swapped_while_it_was_judged_does_not_count_as_signed(run):
    genuine = (run / "report.json").read_bytes()
    assert signed_as(run / "report.json", genuine).problems == ()
    better = genuine.replace(b'"name": "', b'"name": "better ', 1)
    assert better != genuine
    assert signed_as(run / "report.json", better).problems == (
        f"report.json: was altered: its content does not match {SIGNATURE}",
    )


def test_a_gate_says_what_is_wrong_with_a_report_without_its_terminal_sequences(run):
    text = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**text, "schema_version": "\x1b]0;owned\x07"}))
    arguments = ["gate", "--report", str(run / "report.json"), "--policy", "research"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3
    assert "schema_version=" in done.output
    assert not {"\x1b", "\x07"} & set(done.output)
