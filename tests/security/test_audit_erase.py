"""Transcripts can be erased so that the log still vouches for the rest, and nothing else can."""

import shutil

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.erase import erase_transcripts, transcripts_of
from fedproxy_secure.audit.keys import make_key, own_key_file
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.cli.app import app
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.errors import AuditError
from fedproxy_secure.report.publish import publish, write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from tests.support.audited_run import CONFIG, copied, finished_run, public_of

TRANSCRIPT = "seed-0/federation/transcript"
RECORDS = f"{TRANSCRIPT}/clients/bank/records.safetensors"


def with_transcript(folder):
    folder.write_bytes(RECORDS, b"name, diagnosis")
    folder.write_bytes(f"{TRANSCRIPT}/events.jsonl", b"{}\n")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("recorded"), before_the_end=with_transcript)


@pytest.fixture
def run(recorded, tmp_path):
    return copied(recorded, tmp_path / "run")


def erase(run):
    return erase_transcripts(run, own_key_file(run))


def test_an_erased_run_still_verifies_and_its_log_names_what_is_gone(run):
    erase(run)
    assert not (run / TRANSCRIPT).exists()
    assert (run / "seed-0/fused/model.safetensors").exists()
    assert verify_run(run, key=public_of(run)).verified
    shown = CliRunner().invoke(app, ["audit", "show", str(run)]).stdout
    assert f"erased: files: {RECORDS}, {TRANSCRIPT}/events.jsonl" in shown


@pytest.mark.parametrize("written", [write_texts, publish])
def test_only_the_report_log_and_signature_change(run, written):
    report = {"report.json", "report.md", "report.sig", AUDIT_LOG}
    before = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    erase(run)
    for name, content in before.items():
        if str(name) in report or TRANSCRIPT in str(name):
            continue
        assert (run / name).read_bytes() == content


@pytest.mark.parametrize("name", ["report.json", "seed-0/result.json", RECORDS, "config.yaml"])
def test_what_was_altered_is_neither_erased_nor_signed(run, name):
    """Else the owner's key would vouch for what somebody without it wrote."""
    (run / name).write_bytes(b"{}")
    log = (run / AUDIT_LOG).read_bytes()
    with pytest.raises(AuditError, match="nothing was erased"):
        erase(run)
    assert (run / RECORDS).exists()
    assert (run / AUDIT_LOG).read_bytes() == log


def test_a_run_that_goes_on_is_not_erased(run):
    Witness.open(RunFolder(path=run), CONFIG, command="c").started(1)
    with pytest.raises(AuditError, match="nothing was erased"):
        erase(run)


def test_another_key_erases_nothing(run, tmp_path):
    make_key(tmp_path / "other.key")
    with pytest.raises(AuditError, match="signed by another key"):
        erase_transcripts(run, tmp_path / "other.key")
    assert (run / RECORDS).exists()


@pytest.mark.parametrize("deleted", [(), (RECORDS,), (RECORDS, f"{TRANSCRIPT}/events.jsonl")])
def test_a_killed_erasure_is_named_and_goes_on(run, deleted):
    told = sorted([RECORDS, f"{TRANSCRIPT}/events.jsonl"])
    AuditLog.open(RunFolder(path=run), read_key(own_key_file(run)), {}).add("erased", files=told)
    for name in deleted:
        (run / name).unlink()
    killed = verify_run(run)
    assert not killed.problems
    named = [line for line in killed.unsettled if "was erased by line" in line]
    assert len(named) == 2 - len(deleted)
    erase(run)
    assert verify_run(run).whole
    assert not (run / TRANSCRIPT).exists()


def test_a_file_in_the_place_of_an_erased_one_is_a_problem(run):
    erase(run)
    (run / RECORDS).parent.mkdir(parents=True)
    (run / RECORDS).write_bytes(b"forged")
    assert [p for p in verify_run(run).problems if p.startswith(f"{RECORDS}: was added")]


def test_an_erased_run_goes_on_as_a_finished_one(run):
    erase(run)
    witness = Witness.open(RunFolder(path=run), CONFIG, command="c")
    assert not witness.has_news()


def test_a_folder_without_a_transcript_is_told(run):
    shutil.copytree(run, run.with_name("second"))
    shutil.copy(own_key_file(run), own_key_file(run.with_name("second")))
    erase(run)
    assert transcripts_of(run).files == 0
    shown = CliRunner().invoke(app, ["audit", "erase", str(run), "--yes"])
    assert shown.exit_code == 2
    assert "has no transcript" in shown.stderr


def test_without_yes_the_command_only_says_what_would_go(run):
    shown = CliRunner().invoke(app, ["audit", "erase", str(run)])
    assert shown.exit_code == 0
    assert "would delete 2 files of transcripts" in shown.stdout
    assert (run / RECORDS).exists()
    shown = CliRunner().invoke(app, ["audit", "erase", str(run), "--yes"])
    assert shown.exit_code == 0
    assert not (run / TRANSCRIPT).exists()
