"""Who lacks the signer's key changes, adds, links or removes no file of a finished run unseen."""

import errno
import os
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fedproxy_secure.audit.chain import START, make_entry
from fedproxy_secure.audit.seal import everything_below
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.cli.app import app
from fedproxy_secure.crypto.primitives import fresh_secret, signing_public
from fedproxy_secure.report.publish import write_texts
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG, SIGNATURE
from tests.support.audited_run import CONFIG, forged, problems, public_of, put
from tests.support.sample_report import sample_report


def test_an_altered_missing_or_added_file_is_found_with_its_line(run):
    model = run / "seed-0/fused/model.safetensors"
    model.write_bytes(bytes(99) + b"\x01")
    assert (
        f"seed-0/fused/model.safetensors: was altered: its SHA-256 is not that of line 7 of {AUDIT_LOG}"
        in problems(run)
    )
    model.unlink()
    assert f"seed-0/fused/model.safetensors: is missing (line 7 of {AUDIT_LOG} has it)" in problems(run)
    model.write_bytes(bytes(100))
    (run / "seed-0/fused/modeling_evil.py").write_text("import os")
    assert problems(run) == (f"seed-0/fused/modeling_evil.py: was added: {AUDIT_LOG} does not have it",)


@pytest.mark.parametrize(
    "name",
    [
        "seed-0/.hidden",
        "seed-0/fused/.gitattributes",
        "seed-0/.partial-forged",
        "seed-0/federation/evil.key",
        "seed-0/.cache/x.py",
    ],
)
def test_hidden_files_and_keys_that_were_added_to_a_seed_are_found(run, name):
    RunFolder(path=run).write_text(name, "import os")
    assert problems(run) == (f"{name}: was added: {AUDIT_LOG} does not have it",)


def test_a_folder_that_is_linked_into_a_seed_is_found(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "modeling_evil.py").write_text("import os")
    (run / "seed-0/more").symlink_to(tmp_path / "elsewhere")
    (run / "seed-0/nowhere").symlink_to(tmp_path / "gone")
    assert problems(run) == (
        f"seed-0/more: a link was added: {AUDIT_LOG} does not have it",
        f"seed-0/nowhere: a link was added: {AUDIT_LOG} does not have it",
    )


@pytest.mark.parametrize(
    "name", ["seed-0/fused/model.safetensors", "seed-0/fused", "seed-0", "report.json"]
)
def test_what_was_moved_away_and_linked_back_is_found_though_its_bytes_are_the_same(run, tmp_path, name):
    """Its content can be changed later, where nobody looks."""
    shutil.move(run / name, tmp_path / "moved")
    (run / name).symlink_to(tmp_path / "moved")
    found = problems(run)
    assert any(p.startswith(f"{name}: is a link") for p in found)


def test_a_pipe_in_the_place_of_a_file_is_found_and_hangs_nobody(run):
    for name in ("seed-0/fused/model.safetensors", "report.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    os.mkfifo(run / "seed-0/pipe")
    found = problems(run)
    assert any(p.startswith("seed-0/fused/model.safetensors: is missing") for p in found)
    assert any(p.startswith("report.json: is missing") for p in found)
    assert f"seed-0/pipe: was added: {AUDIT_LOG} does not have it" in found


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "is no file"),
        (lambda file: file.symlink_to("/dev/zero"), "is a link; must be a file"),
        (lambda file: file.symlink_to("report.json"), "is a link; must be a file"),
        (lambda file: file.mkdir(), "cannot be read: Is a directory"),
        (lambda file: (file.touch(), os.truncate(file, 2**24 + 1)), "has more than 16,777,216 bytes"),
    ],
)
def test_what_is_no_signature_but_a_pipe_a_link_or_endless_is_found_and_hangs_nobody(run, make, says):
    (run / SIGNATURE).unlink()
    make(run / SIGNATURE)
    assert f"{SIGNATURE}: {says}" in problems(run)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_log_that_is_a_pipe_or_a_link_is_refused_in_one_line(run, make, command):
    (run / AUDIT_LOG).unlink()
    make(run / AUDIT_LOG)
    done = CliRunner().invoke(app, ["audit", command, str(run)])
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith(f"error: {run / AUDIT_LOG}: is ")


def test_a_finished_seed_whose_number_is_a_path_is_not_looked_for_outside_the_folder(run, tmp_path):
    (tmp_path / "somebody-elses.txt").write_text("x")
    (run / "seed-").mkdir()
    forged(run, ("opened", {}), ("finished", {"seed": "/../..", "files": {}}))
    assert not any("somebody-elses" in p for p in problems(run))
    assert "seed-: did not finish" in verify_run(run).unsettled


@pytest.mark.parametrize(
    "name",
    [
        "better-report.html",
        ".hidden",
        "evil.key",
        "more/x.py",
        ".git/config",
        "attacks/more.json",
        "seed-results.json",
    ],
)
def test_what_lies_beside_the_report_and_is_not_signed_is_named(run, name):
    RunFolder(path=run).write_text(name, "x")
    found = verify_run(run, key=public_of(run))
    assert found.unsettled == (f"{name}: neither {AUDIT_LOG} nor {SIGNATURE} has it",)
    assert not found.verified


def test_a_file_added_so_deep_in_a_seed_that_no_path_reaches_it_is_found(run):
    folder = os.open(run / "seed-0", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("modeling_evil.py", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    (problem,) = problems(run)
    assert problem.startswith(f"seed-0/{'d' * 250}/")
    assert problem.endswith(f": was added: {AUDIT_LOG} does not have it")


def test_a_file_in_a_folder_that_its_checker_may_list_but_not_search_is_named(run, monkeypatch):
    """Whoever runs these tests may search everything, so the system's answer is made up."""
    RunFolder(path=run).write_text("attacks/x.py", "import os")

    def refusing(real):
        def called(place, *args, **more):
            if str(place) == str(run / "attacks/x.py"):
                raise PermissionError(errno.EACCES, "Permission denied", str(place))
            return real(place, *args, **more)

        return called

    monkeypatch.setattr(os, "stat", refusing(os.stat))
    monkeypatch.setattr(os, "lstat", refusing(os.lstat))
    found = verify_run(run, key=public_of(run))
    assert found.unsettled == (f"attacks/x.py: neither {AUDIT_LOG} nor {SIGNATURE} has it",)
    assert not found.verified


def test_only_a_name_at_which_nothing_can_be_is_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert not list(everything_below(tmp_path, "gone", "file/below", "a\0b", "n" * 300))
    assert list(everything_below(tmp_path, "file")) == ["file"]


def test_a_folder_that_its_checker_may_not_list_is_named(run, monkeypatch):
    """Whoever runs these tests may list everything, so the system's answer is made up."""
    closed = {str(run / name) for name in ("seed-0/closed", "closed", "attacks")}
    for name in closed:
        RunFolder(path=run).write_text(f"{name}/x.py", "import os")

    def refusing(real):
        def called(place):
            if str(place) in closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(place))
            return real(place)

        return called

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    found = verify_run(run, key=public_of(run))
    assert found.problems == (f"seed-0/closed: was added: {AUDIT_LOG} does not have it",)
    assert found.unsettled == tuple(
        f"{name}: neither {AUDIT_LOG} nor {SIGNATURE} has it" for name in ("attacks", "closed")
    )


@pytest.mark.parametrize("name", ["running.json", "cell.json", "attacks/events.jsonl"])
def test_a_name_that_nobody_vouches_for_hides_no_folder_and_no_link(run, tmp_path, name):
    RunFolder(path=run).write_text(name, "{}")
    assert verify_run(run, key=public_of(run)).verified
    (run / name).unlink()
    RunFolder(path=run).write_text(f"{name}/x/evil.py", "import os")
    line = f"neither {AUDIT_LOG} nor {SIGNATURE} has it"
    assert verify_run(run, key=public_of(run)).unsettled == (f"{name}/x/evil.py: {line}",)
    shutil.move(run / name, tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    assert verify_run(run, key=public_of(run)).unsettled == (f"{name}: {line}",)


@pytest.mark.parametrize("name", ["attacks", "tracking", "cells"])
def test_a_file_with_the_name_of_a_folder_is_named(run, name):
    RunFolder(path=run).write_text(name, "x")
    line = f"{name}: neither {AUDIT_LOG} nor {SIGNATURE} has it"
    assert verify_run(run, key=public_of(run)).unsettled == (line,)


def test_folders_beside_the_seeds_that_are_links_are_named(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("more", "attacks", "tracking", "seed-0.csv"):
        (run / name).symlink_to(tmp_path / "elsewhere")
    found = verify_run(run, key=public_of(run))
    assert set(found.unsettled) == {
        f"seed-0.csv: neither {AUDIT_LOG} nor {SIGNATURE} has it",
        f"more: neither {AUDIT_LOG} nor {SIGNATURE} has it",
        "attacks: is a link",
        "tracking: is a link",
    }


def test_a_clients_key_that_was_there_when_the_seed_ended_may_be_there_or_be_removed(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    witness = Witness.open(folder, CONFIG, command="c")
    folder.write_text("seed-0/federation/privacy/bank.salt.key", "00")
    witness.finished(0, b"{}", epsilon={})
    write_texts(replace(sample_report(), audit_head=witness.settle()), folder.path)
    witness.sign()
    assert verify_run(folder.path).whole
    (folder.path / "seed-0/federation/privacy/bank.salt.key").unlink()
    assert verify_run(folder.path).whole
    folder.write_text("seed-0/federation/privacy/clinic.salt.key", "00")
    assert problems(folder.path) == (
        f"seed-0/federation/privacy/clinic.salt.key: was added: {AUDIT_LOG} does not have it",
    )


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", ""])
def test_a_log_cannot_point_out_of_its_folder(run, name):
    """A signer that nobody knows may write anything; reading it must stay inside."""
    thief = fresh_secret()
    body = {"public_key": signing_public(thief).hex(), "schema_version": 1}
    first = make_entry(thief, previous=START, seq=0, time="", event="opened", body=body)
    second = make_entry(
        thief, previous=first.hash, seq=1, time="", event="files", body={"files": {name: "00" * 32}}
    )
    third = make_entry(
        thief, previous=second.hash, seq=2, time="", event="inner", body={"folder": name, "head": "00"}
    )
    put(run, [e.line() for e in (first, second, third)])
    found = problems(run)
    assert any("lies outside the folder" in p for p in found)
    assert not any("is missing" in p and "outside" in p for p in found)
