"""Transcripts can be erased so that the log still vouches for the rest, and nothing else can."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit import erase as erasing
from fedproxy_secure.audit.erase import erase_transcripts, transcripts_of
from fedproxy_secure.audit.keys import make_key, own_key_file
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.cli.app import app
from fedproxy_secure.errors import AuditError, FolderInUse
from fedproxy_secure.report.publish import publish, write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_FILES, AUDIT_LOG
from fedproxy_secure.runtime.only_one import only_run_in
from tests.support.audited_run import CONFIG, copied, finished_run, forged, public_of
from tests.support.sample_report import sample_report

TRANSCRIPT = "seed-0/federation/transcript"
RECORDS = f"{TRANSCRIPT}/clients/bank/records.safetensors"


class Killed(BaseException):
    """What nobody catches, as a kill."""


def with_transcript(folder):
    folder.write_bytes(RECORDS, b"name, diagnosis")
    folder.write_bytes(f"{TRANSCRIPT}/events.jsonl", b"{}\n")


def recorded_matrix(place, *, failed=()):
    """A matrix of two cells, told, attacked and signed as `matrix` does it; `failed` did not end."""
    out = place / "matrix"
    folder = RunFolder.create(out, CONFIG)
    witness = Witness.open(folder, CONFIG, command="matrix")
    keyed = CONFIG.with_signing_key(str(own_key_file(out)))
    names = ("cells/a", "cells/b")
    for name in names:
        cell = RunFolder.create(out / name, CONFIG)
        own = Witness.open(cell, keyed, command="run")
        own.started(0)
        line = {"round": 0, "participants": ["bank"]}
        cell.append_jsonl("seed-0/federation/rounds.jsonl", line)
        cell.append_jsonl("seed-0/federation/ledger.jsonl", {"round": 0})
        own.round(0, line)
        with_transcript(cell)
        if name in failed:
            cell.write_json("failed.json", {"error": "out of memory"})
            continue
        own.finished(0, b'{"seed": 0}\n', epsilon={})
        write_texts(replace(sample_report(), audit_head=own.settle(findings=False)), out / name)
        own.sign()
        for findings in ATTACK_FILES:
            cell.write_bytes(findings, b"{}\n")
        cell.write_json("cell.json", {"seconds": 1.0})
    done = [name for name in names if name not in failed]
    for name in done:
        witness.inner(name)
    head = witness.settle(*(f"{name}/{findings}" for name in done for findings in ATTACK_FILES))
    publish(replace(sample_report(), audit_head=head), out)
    witness.sign()
    return out


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A run whose report is text, one whose report is a page, too, and a matrix."""
    place = tmp_path_factory.mktemp("originals")
    text = finished_run(place, before_the_end=with_transcript)
    paged = copied(text, place / "paged")
    witness = Witness.open(RunFolder(path=paged), CONFIG, command="c")
    publish(replace(sample_report(), audit_head=witness.settle()), paged)
    witness.sign()
    found = {"run": text, "paged": paged, "matrix": recorded_matrix(place)}
    assert all(verify_run(folder).whole for folder in found.values())
    return found


@pytest.fixture(params=["run", "paged", "matrix"])
def whole(request, originals, tmp_path):
    return copied(originals[request.param], tmp_path / "whole")


@pytest.fixture
def run(originals, tmp_path):
    return copied(originals["run"], tmp_path / "run")


@pytest.fixture
def matrix(originals, tmp_path):
    return copied(originals["matrix"], tmp_path / "matrix")


def erase(folder):
    return erase_transcripts(folder, own_key_file(folder))


def command(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def transcripts(folder):
    return [*folder.glob("**/transcript")]


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_was_erased_still_verifies(whole):
    assert transcripts(whole)
    erase(whole)
    assert not transcripts(whole)
    assert verify_run(whole, key=public_of(whole)).verified
    assert not transcripts_of(whole).begun


def test_the_log_names_what_was_erased(run):
    erase(run)
    assert f"erased: files: {RECORDS}, {TRANSCRIPT}/events.jsonl" in command("show", run).stdout


def test_only_reports_logs_and_signatures_change(whole):
    before = contents(whole)
    erase(whole)
    after = contents(whole)
    assert {n for n in before if n not in after} == {n for n in before if "/transcript/" in n}
    changed = {n.rpartition("/")[2] for n in after if after[n] != before.get(n)}
    reports = {"report.json", "report.html", "report.sarif", "report.sig"}
    assert changed <= {*reports, AUDIT_LOG, "running.json"}


def test_every_form_of_an_erased_runs_report_names_the_end_of_its_log(whole):
    before = json.loads((whole / "report.json").read_bytes())["audit_head"].encode()
    named = {n for n, content in contents(whole).items() if before in content}
    erase(whole)
    after = json.loads((whole / "report.json").read_bytes())["audit_head"].encode()
    now = contents(whole)
    assert {n for n in named if before in now[n]} == {AUDIT_LOG}  # whose next line names it
    assert {n for n in named if after in now[n]} == {n for n in named if "/" not in n}


def test_a_signature_names_the_files_that_it_named_before(matrix):
    """Nobody vouches for a cell's `cell.json`: erasing must not put it under the owner's signature."""
    files = [set(json.loads((matrix / n / "report.sig").read_bytes())["files"]) for n in ("cells/a", ".")]
    erase(matrix)
    assert files == [
        set(json.loads((matrix / n / "report.sig").read_bytes())["files"]) for n in ("cells/a", ".")
    ]


def said_of(name):
    """The text of the error about an altered file: damaged reports and logs have texts of their own."""
    return rf"{re.escape(name)}: (was altered|is missing or damaged|line 1: does not open a log)"


ALTERED = ["report.json", "report.md", "seed-0/result.json", RECORDS, "config.yaml", AUDIT_LOG]


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_is_neither_erased_nor_signed(run, name):
    """Otherwise, the owner's key would vouch for what somebody without it wrote."""
    (run / name).write_bytes(b"{}")
    before = contents(run)
    with pytest.raises(AuditError, match=said_of(name)):
        erase(run)
    assert contents(run) == before


@pytest.mark.parametrize("name", [*ALTERED, *ATTACK_FILES])
def test_an_altered_cell_keeps_the_whole_matrix_as_it_is(matrix, name):
    (matrix / "cells/b" / name).write_bytes(b"[1]")
    before = contents(matrix / "cells")
    with pytest.raises(AuditError, match=said_of(name)):
        erase(matrix)
    assert {n: b for n, b in contents(matrix / "cells").items() if n in before} == before


def test_a_run_that_goes_on_is_not_erased(run):
    Witness.open(RunFolder(path=run), CONFIG, command="c").started(1)
    with pytest.raises(AuditError, match="nothing was erased"):
        erase(run)


def test_a_folder_in_which_a_command_works_is_not_erased(matrix):
    with only_run_in(matrix / "cells/a"), pytest.raises(FolderInUse):
        erase(matrix)
    assert len(transcripts(matrix)) == 2


def test_another_key_erases_nothing(whole, tmp_path):
    make_key(tmp_path / "other.key")
    with pytest.raises(AuditError, match="signed by another key"):
        erase_transcripts(whole, tmp_path / "other.key")
    assert transcripts(whole)


ADD, DELETE = (AuditLog, "add"), (shutil, "rmtree")
WRITE, SIGN = (erasing, "write_bytes"), (erasing, "sign_report")
CALLS = {"run": {ADD: 1, DELETE: 1, WRITE: 1, SIGN: 1}, "matrix": {ADD: 4, DELETE: 2, WRITE: 5, SIGN: 3}}
KILLS = [
    pytest.param(kind, step, call, True, id=f"{kind}-{step[1]}-{call}-before")
    for kind, calls in CALLS.items()
    for step, most in calls.items()
    for call in range(1, most + 1)
]
# after any other call is before the next one
KILLS += [pytest.param(kind, SIGN, calls[SIGN], False, id=f"{kind}-after") for kind, calls in CALLS.items()]


@pytest.mark.parametrize(("kind", "step", "call", "before"), KILLS)
def test_a_killed_erasure_is_told_and_goes_on(originals, tmp_path, monkeypatch, kind, step, call, before):
    whole = copied(originals[kind], tmp_path / "whole")
    calls, real = [], getattr(*step)

    def killed(*arguments, **named):
        calls.append(1)
        if before and len(calls) == call:
            raise Killed
        found = real(*arguments, **named)
        if not before and len(calls) == call:
            raise Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(*step, killed)
        with pytest.raises(Killed):
            erase(whole)
    if before:
        assert transcripts(whole) or not verify_run(whole).whole
    shown = command("erase", whole, "--yes")
    if before:
        assert shown.exit_code == 0, shown.stderr
    else:
        assert "has no transcript" in shown.stderr
    assert not transcripts(whole)
    assert verify_run(whole, key=public_of(whole)).verified


@pytest.fixture
def killed_at(monkeypatch):
    """A function that erases a run and is killed where a function of `erase` is called."""

    def erased_until(run, owner, name, instead):
        def killed(*arguments, **named):
            instead()
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            with pytest.raises(Killed):
                erase(run)

    return erased_until


def test_a_file_half_deleted_by_a_kill_is_named(run, killed_at):
    killed_at(run, shutil, "rmtree", (run / RECORDS).unlink)
    killed = verify_run(run)
    assert not killed.problems
    assert [line for line in killed.unsettled if line.startswith(f"{TRANSCRIPT}/events.jsonl: was erased")]
    erase(run)
    assert verify_run(run).whole


@pytest.mark.parametrize("name", ["report.json", "report.md"])
def test_a_report_altered_after_a_kill_is_not_signed(run, killed_at, name):
    killed_at(run, erasing, "sign_report", lambda: None)
    text = (run / name).read_text()
    (run / name).write_text(text.replace("masking", "better", 1))
    assert (run / name).read_text() != text
    with pytest.raises(AuditError, match="was altered"):
        erase(run)


def test_what_cannot_be_deleted_is_one_line_and_goes_on(run, monkeypatch):
    def refuse(place):
        raise PermissionError(13, "Permission denied", str(place))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        shown = command("erase", run, "--yes")
    assert shown.exit_code == 2
    assert "transcript: cannot be deleted: Permission denied" in " ".join(shown.stderr.split())
    erase(run)
    assert verify_run(run).whole


def test_a_file_in_the_place_of_an_erased_one_is_a_problem(run):
    erase(run)
    (run / RECORDS).parent.mkdir(parents=True)
    (run / RECORDS).write_bytes(b"forged")
    assert [p for p in verify_run(run).problems if p.startswith(f"{RECORDS}: was added")]


def test_an_erased_run_goes_on_as_a_finished_one(run):
    erase(run)
    assert not Witness.open(RunFolder(path=run), CONFIG, command="c").has_news()


def test_cells_that_did_not_finish_are_left_and_named(tmp_path):
    folder = recorded_matrix(tmp_path, failed={"cells/b"})
    shown = command("erase", folder, "--yes")
    assert shown.exit_code == 0
    assert "left: cells/b has not finished" in shown.stderr
    assert [p.parts[-4] for p in transcripts(folder)] == ["b"]
    assert not verify_run(folder).problems


def test_a_folder_without_a_transcript_is_told(run):
    erase(run)
    shown = command("erase", run, "--yes")
    assert shown.exit_code == 2
    assert "has no transcript" in shown.stderr


def test_without_yes_the_command_only_says_what_would_go(run):
    shown = command("erase", run)
    assert shown.exit_code == 0
    assert "would delete 2 files of transcripts" in shown.stdout
    assert (run / RECORDS).exists()


@pytest.mark.parametrize("log", [b"", b"{", b"[]\n"])
def test_a_log_that_is_none_is_one_line(run, log):
    (run / AUDIT_LOG).write_bytes(log)
    assert command("erase", run, "--yes").exit_code == 2


def test_a_hostile_log_is_one_line(tmp_path):
    forged(tmp_path / "run", ("opened", {}), ("inner", {}), ("inner", {"folder": "../..", "head": 3}))
    assert command("erase", tmp_path / "run", "--yes").exit_code == 2
