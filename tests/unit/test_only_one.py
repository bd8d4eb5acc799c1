"""One process at a time works in a folder; the lock is the kernel's and goes with the process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedproxy_secure.cli.app import app
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import RUNNING
from fedproxy_secure.runtime.only_one import only_run_in, running, the_only_one
from tests.support.signed_run import signed_run

ROOT = Path(__file__).parents[2]
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from fedproxy_secure.runtime.only_one import only_run_in

with only_run_in(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def everything(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_holder_is_refused_by_name_and_leaves_the_folder_as_it_was(tmp_path):
    with only_run_in(tmp_path / "run"):
        before = everything(tmp_path)
        with pytest.raises(RunFolderError) as raised, only_run_in(tmp_path / "run"):
            pass
        assert everything(tmp_path) == before
    assert str(raised.value) == (
        f"{tmp_path / 'run'}: a command runs here already, process {os.getpid()}; wait until it ends, or "
        "end it first"
    )
    assert everything(tmp_path) == {}


def test_a_link_in_the_locks_place_is_refused_and_what_it_points_to_stays(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("the owner's")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUNNING).symlink_to("../other.txt")
    with pytest.raises(RunFolderError, match=r"running\.json: is a link"), only_run_in(tmp_path / "run"):
        pass
    assert other.read_text() == "the owner's"
    assert running(tmp_path / "run") is None


def test_an_error_lets_the_folder_go(tmp_path):
    with pytest.raises(ValueError, match="x"), only_run_in(tmp_path):
        raise ValueError("x")
    assert running(tmp_path) is None
    with only_run_in(tmp_path):
        assert running(tmp_path) == os.getpid()


def test_a_killed_holder_holds_no_more_though_a_program_that_it_started_lives_on(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        assert running(tmp_path) == holder.pid
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(child, 0)  # it lives
        with only_run_in(tmp_path):
            assert json.loads((tmp_path / RUNNING).read_text())["pid"] == os.getpid()
        assert not (tmp_path / RUNNING).exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_holder_that_ends_soon_is_waited_for(tmp_path):
    code = HOLDER.replace("time.sleep(60)", "time.sleep(1)")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        with only_run_in(tmp_path, wait_s=30):
            pass
        os.kill(child, signal.SIGKILL)


def test_a_lock_on_a_file_that_its_holder_has_removed_counts_for_nothing(tmp_path):
    with the_only_one(tmp_path, "a", remedy="wait"):
        (tmp_path / RUNNING).unlink()
        with the_only_one(tmp_path, "b", remedy="wait"):
            assert running(tmp_path) == os.getpid()


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(RunFolderError, match="cannot be a run folder: Not a directory"),
            only_run_in(place),
        ):
            pass


def test_what_a_killed_process_left_makes_no_folder_foreign(tmp_path):
    from fedproxy_secure.config import Config

    (tmp_path / RUNNING).write_text("{}")
    RunFolder.create(tmp_path, Config())


@pytest.mark.torch
@pytest.mark.parametrize("command", ["run", "matrix", "compare"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_command_in_a_folder_where_another_works_writes_nothing_and_ends_with_75(
    tmp_path, command, resume
):
    held = signed_run(tmp_path)
    with only_run_in(held.folder):
        before = everything(tmp_path)
        done = CliRunner().invoke(app, [command, "quickstart", "--out", str(held.folder), *resume])
        assert done.exit_code == 75, done.output
        assert len(done.output.splitlines()) == 1
        assert "a command runs here already, process" in done.output
        assert everything(tmp_path) == before


@pytest.mark.torch
def test_no_run_is_attacked_while_another_process_works_in_its_folder(tmp_path):
    from fedproxy_secure.config import load_config
    from fedproxy_secure.experiments.attacked import attack_run, attacked_report

    held = signed_run(tmp_path)
    config = load_config(held.folder / "config.yaml")
    with only_run_in(held.folder):
        before = everything(tmp_path)
        done = CliRunner().invoke(app, ["attack", "run", "--run", str(held.folder), "--jobs", "1"])
        assert done.exit_code == 75, done.output
        assert "a command runs here already" in done.output
        with pytest.raises(RunFolderError, match="runs here already"):
            attack_run(config, held.folder, seed=0)
        with pytest.raises(RunFolderError, match="runs here already"):
            attacked_report(config, held.folder, progress=None, command="c")
        assert everything(tmp_path) == before


@pytest.mark.torch
def test_a_signed_run_is_whole_after_its_folder_was_held(tmp_path):
    from fedproxy_secure.audit.verify import verify_run

    held = signed_run(tmp_path)
    with only_run_in(held.folder):
        assert yaml.safe_load((held.folder / "config.yaml").read_text())
    assert verify_run(held.folder).whole
