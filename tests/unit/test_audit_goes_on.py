"""All who read an audit log read it in one way, and what was altered is named with a remedy."""

import json
import os
import shutil

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.chain import parse_line
from fedproxy_secure.audit.examine import examine, read_log
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.tracing import find_leak, only_seed
from fedproxy_secure.audit.verify import check_files, verify_run
from fedproxy_secure.audit.vouched import check_finished_seeds, vouched_files
from fedproxy_secure.audit.witness import Witness, reopen_findings
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.primitives import fresh_secret
from fedproxy_secure.errors import AuditError, DataError, RunFolderError
from fedproxy_secure.evidence.finding import read_findings, write_findings
from fedproxy_secure.evidence.kept import append_event, read_events
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG, FINDINGS
from tests.support.gate_samples import finding
from tests.support.signed_run import signed_run

CONFIG = parse_config({"seeds": [0]})


@pytest.fixture
def run(tmp_path):
    return signed_run(tmp_path).folder


def test_a_run_signed_with_a_key_from_elsewhere_is_checked_before_it_is_attacked(tmp_path):
    from fedproxy_secure.audit.keys import make_key

    make_key(tmp_path / "own.key")
    run = signed_run(tmp_path, key=tmp_path / "own.key").folder
    before = (run / AUDIT_LOG).read_bytes()
    reopen_findings(run)
    assert (run / AUDIT_LOG).read_bytes() == before
    (run / "seed-0/fused/model.safetensors").write_bytes(b"another")
    with pytest.raises(AuditError, match=r"fused/model\.safetensors: was altered"):
        reopen_findings(run)


def test_seeds_of_a_log_with_a_broken_chain_are_not_taken_for_finished(run):
    lines = (run / AUDIT_LOG).read_bytes().splitlines(keepends=True)
    event = [parse_line(line.rstrip(b"\n")).event for line in lines]
    (run / AUDIT_LOG).write_bytes(b"".join(x for x, e in zip(lines, event, strict=True) if e != "finished"))
    (run / "seed-0/fused/model.safetensors").write_bytes(b"another")  # which no line vouches for now
    with pytest.raises(AuditError, match=r"audit\.jsonl: line \d+: .* are missing"):
        check_finished_seeds(run)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
def test_a_log_that_is_a_pipe_or_a_link_is_refused_by_all_who_read_it(run, make, tmp_path):
    above = Witness.open(RunFolder.create(tmp_path / "above", CONFIG), CONFIG, command="c")
    shutil.move(run, tmp_path / "above" / "below")
    run = tmp_path / "above" / "below"
    (run / AUDIT_LOG).unlink()
    make(run / AUDIT_LOG)
    for read in (
        lambda: check_finished_seeds(run),
        lambda: reopen_findings(run),
        lambda: only_seed(run),
        lambda: find_leak(run, run, seed=0),
        lambda: AuditLog.open(RunFolder(path=run), fresh_secret(), {}),
        lambda: above.inner("below"),
        lambda: verify_run(run),
    ):
        with pytest.raises(AuditError, match=r"audit\.jsonl: is (no file|a link)"):
            read()


@pytest.mark.parametrize("damage", [lambda f: f.unlink(missing_ok=True), lambda f: f.write_text("{}\n")])
@pytest.mark.parametrize("name", ["rounds.jsonl", "ledger.jsonl"])
def test_a_file_of_a_finished_seed_that_was_altered_is_named_with_a_remedy(tmp_path, name, damage):
    more = {"federation/rounds.jsonl": b'{"round": 0}\n', "federation/ledger.jsonl": b'{"round": 0}\n'}
    run = signed_run(tmp_path, more=more).folder
    damage(run / "seed-0/federation" / name)
    with pytest.raises(AuditError, match="put it back, or delete the whole folder seed-0 and resume"):
        Witness.open(RunFolder(path=run), CONFIG, command="c")
    shutil.rmtree(run / "seed-0")
    Witness.open(RunFolder(path=run), CONFIG, command="c").started(0)


def test_a_run_whose_seed_was_deleted_and_trained_anew_is_whole_again(tmp_path):
    """Files of the first training are gone, and those named by their content have other names now."""
    run = signed_run(tmp_path, more={"federation/blobs/aa": b"aa"}).folder
    shutil.rmtree(run / "seed-0")
    folder = RunFolder(path=run)
    Witness.open(folder, CONFIG, command="c").started(0)
    folder.write_bytes("seed-0/federation/blobs/bb", b"bb")
    killed = check_files(run, lines := read_log_entries(run), known=set())
    assert not killed.problems
    assert killed.unfinished == ["seed-0: did not finish"]
    assert not any(name.startswith("seed-0/") for name in vouched_files(lines))
    witness = Witness.open(folder, CONFIG, command="c")
    witness.started(0)
    witness.finished(0, b"{}", epsilon={})
    witness.settle()
    witness.sign()
    check_finished_seeds(run)
    assert not check_files(run, read_log_entries(run), known=set()).problems


def test_files_that_stay_when_a_seed_goes_on_are_still_vouched_for(tmp_path):
    """Otherwise, whoever deletes a result could alter the rest once the seed has begun again."""
    run = signed_run(tmp_path).folder
    (run / "seed-0/result.json").unlink()
    Witness.open(RunFolder(path=run), CONFIG, command="c").started(0)
    assert not verify_run(run).problems
    (run / "seed-0/fused/model.safetensors").write_bytes(b"altered")
    assert [p for p in verify_run(run).problems if "fused/model.safetensors: was altered" in p]
    with pytest.raises(AuditError, match=r"fused/model\.safetensors: was altered"):
        Witness.open(RunFolder(path=run), CONFIG, command="c").started(0)


def read_log_entries(run):
    return examine(read_log(run)).entries


def test_a_traced_seed_is_not_to_be_deleted_since_the_key_of_its_copies_lies_in_it(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="c")
    witness.traced(0, {"commitment": "00"})
    witness.finished(0, b"{}", epsilon={})
    (folder.path / "seed-0/result.json").write_text("[]")
    with pytest.raises(AuditError, match="put it back, or choose another --out"):
        Witness.open(folder, CONFIG, command="c")


def test_what_stopped_a_run_is_raised_though_its_rounds_are_damaged(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="c")
    witness.started(0)
    folder.write_text("seed-0/federation/rounds.jsonl", "damaged\n")
    with pytest.raises(DataError, match="what stopped it"), witness.aborts():
        raise DataError("what stopped it")


def test_what_a_seed_goes_on_from_is_there_until_the_log_has_its_end(tmp_path):
    """Else a kill while models are hashed, or a full disk, would have healing done again."""
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="c")
    state = folder.write_bytes("seed-0/healing.safetensors", b"weights")
    log = (folder.path / AUDIT_LOG).rename(tmp_path / "log")
    (folder.path / AUDIT_LOG).mkdir()
    with pytest.raises(RunFolderError, match="cannot be written"):
        witness.finished(0, b"{}", epsilon={}, without=("healing.safetensors",))
    assert state.exists()
    (folder.path / AUDIT_LOG).rmdir()
    log.rename(folder.path / AUDIT_LOG)
    witness.finished(0, b"{}", epsilon={}, without=("healing.safetensors",))
    assert not state.exists()
    assert "seed-0/healing.safetensors" not in witness.log.entries[-1].body["files"]
    assert not verify_run(folder.path).problems


def test_the_commands_end_in_one_line_on_a_folder_whose_log_is_a_pipe(run):
    (run / AUDIT_LOG).unlink()
    os.mkfifo(run / AUDIT_LOG)
    from fedproxy_secure.cli.app import app

    done = CliRunner().invoke(app, ["trace", "find", str(run), str(run)])
    assert done.exit_code == 2
    assert json.dumps(done.output).count("error") == 1
    assert "is no file" in done.output


def test_findings_about_a_seed_go_when_it_is_trained_anew(tmp_path, caplog):
    """Else the report would be signed over findings about a model that is no more."""
    run = signed_run(tmp_path).folder
    about = [finding("A2", seed=seed) for seed in (0, 1)]
    for one in about:
        append_event(run, one)
    write_findings(run, about)
    Witness.open(RunFolder(path=run), CONFIG, command="c").settle()
    shutil.rmtree(run / "seed-0")
    witness = Witness.open(RunFolder(path=run), CONFIG, command="c")
    witness.started(0)
    witness.settle()
    assert read_findings(run) == read_events(run) == about[1:]
    assert (
        "1 of 2 findings are dropped: they are about an earlier state of seed-0; attack the run again"
        in caplog.text
    )
    assert "attacks/results.json" in vouched_files(witness.log.entries)
    witness.started(1)
    assert not (run / FINDINGS).exists()
