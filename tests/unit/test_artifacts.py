"""A run folder belongs to one config, and its files are whole or not there."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedproxy_secure.config import Config, parse_config
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.runtime.artifacts import RunFolder, environment, write_bytes


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", Config())


def test_a_new_folder_says_what_it_belongs_to(folder: RunFolder):
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["config_sha256"] == Config().sha256()
    assert json.loads((folder.path / "environment.json").read_text())["python"]


def test_the_resolved_config_can_be_run_again(folder: RunFolder):
    again = parse_config(yaml.safe_load((folder.path / "config.yaml").read_text()))
    assert again == Config()


def test_a_folder_with_something_in_it_is_refused(folder: RunFolder):
    with pytest.raises(RunFolderError, match=r"is not empty; add --resume"):
        RunFolder.create(folder.path, Config())


def test_resume_goes_on_with_the_same_config(folder: RunFolder):
    folder.write_text("note.txt", "kept")
    again = RunFolder.resume(folder.path, Config())
    assert (again.path / "note.txt").read_text() == "kept"


def test_resume_creates_a_folder_that_is_not_there(tmp_path: Path):
    RunFolder.resume(tmp_path / "new", Config())
    assert (tmp_path / "new" / "manifest.json").is_file()


@pytest.mark.parametrize("absent", [["environment.json"], ["config.yaml", "environment.json"]])
def test_resume_writes_what_a_kill_left_out_and_nothing_else(folder: RunFolder, absent: list[str]):
    before = {p.name: p.read_bytes() for p in folder.path.iterdir()}
    for name in absent:
        (folder.path / name).unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in folder.path.iterdir()}
    RunFolder.resume(folder.path, Config())
    assert {p.name: p.read_bytes() for p in folder.path.iterdir()} == before
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in folder.path.iterdir()}.items()


def test_resume_refuses_other_settings(folder: RunFolder):
    with pytest.raises(RunFolderError, match="belongs to other settings") as raised:
        RunFolder.resume(folder.path, Config(seeds=(5,)))
    assert "\n" not in str(raised.value)


def test_resume_names_the_settings_that_differ_with_both_values(tmp_path: Path):
    RunFolder.create(tmp_path / "run", parse_config({"adapter": {"rank": 8}, "track": []}))
    with pytest.raises(RunFolderError) as raised:
        RunFolder.resume(tmp_path / "run", parse_config({"adapter": {"rank": 4}, "seeds": [0, 1]}))
    assert str(raised.value) == (
        f"{tmp_path}/run: belongs to other settings (seeds=[0] there, [0, 1] here; "
        "adapter.rank=8 there, 4 here); choose another --out, or put them back"
    )


def test_resume_names_at_most_five_settings(tmp_path: Path):
    RunFolder.create(tmp_path / "run", Config())
    local = {"steps": 11, "batch_size": 3, "learning_rate": 0.5}
    other = parse_config({"seeds": [9], "name": "other", "local": local, "federate": {"rounds": 7}})
    with pytest.raises(RunFolderError, match=r"\(and 1 more\)") as raised:
        RunFolder.resume(tmp_path / "run", other)
    assert str(raised.value).count(" there, ") == 5


def test_where_its_settings_cannot_be_read_resume_names_the_digests(folder: RunFolder):
    (folder.path / "config.yaml").write_text("a: [")
    with pytest.raises(RunFolderError, match=r"other settings \(SHA-256 \w{12}, these have \w{12}\)"):
        RunFolder.resume(folder.path, Config(seeds=(5,)))


def test_resume_refuses_a_folder_that_is_no_run(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"is not a run folder: has no manifest\.json"):
        RunFolder.resume(tmp_path, Config())


def test_resume_refuses_a_damaged_manifest(folder: RunFolder):
    (folder.path / "manifest.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        RunFolder.resume(folder.path, Config())


def test_a_file_in_the_way_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="Not a directory"):
        RunFolder.create(tmp_path / "file", Config())
    with pytest.raises(RunFolderError, match="Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", Config())


def test_writing_replaces_whole_files_and_leaves_nothing_else(folder: RunFolder):
    folder.write_text("a/b.txt", "old")
    path = folder.write_text("a/b.txt", "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_what_an_interrupted_write_left_does_not_make_a_folder_foreign(tmp_path: Path):
    (tmp_path / ".partial-x1").write_text("half")
    RunFolder.resume(tmp_path, Config())


def test_lines_are_appended_and_read_back(folder: RunFolder):
    assert folder.read_jsonl("rounds.jsonl") == []
    for round_number in range(3):
        folder.append_jsonl("rounds.jsonl", {"round": round_number})
    assert folder.read_jsonl("rounds.jsonl") == [{"round": n} for n in range(3)]


def test_a_line_cut_by_a_crash_is_dropped(folder: RunFolder):
    path = folder.append_jsonl("rounds.jsonl", {"round": 0})
    with path.open("a") as file:
        file.write('{"round": 1, "lo')
    assert folder.read_jsonl("rounds.jsonl") == [{"round": 0}]
    folder.append_jsonl("rounds.jsonl", {"round": 1})
    assert folder.read_jsonl("rounds.jsonl") == [{"round": 0}, {"round": 1}]


def test_a_damaged_line_is_refused(folder: RunFolder):
    folder.write_text("rounds.jsonl", "{}\nnot json\n")
    with pytest.raises(RunFolderError, match="is damaged"):
        folder.read_jsonl("rounds.jsonl")


def test_a_line_that_may_not_be_on_the_disk_is_taken_back(folder: RunFolder, monkeypatch):
    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    for before in ([], [{"round": 0}]):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fails)
            with pytest.raises(RunFolderError, match="cannot be written: Input/output error"):
                folder.append_jsonl("rounds.jsonl", {"round": len(before)})
        assert folder.read_jsonl("rounds.jsonl") == before
        folder.append_jsonl("rounds.jsonl", {"round": len(before)})


FULL_DISK = """
import resource, sys
from pathlib import Path
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.errors import RunFolderError

folder = RunFolder(path=Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: folder.write_bytes("weights", b"new" * 4000),
    lambda: folder.append_jsonl("rounds.jsonl", {"text": "new" * 4000}),
):
    try:
        write()
    except RunFolderError as error:
        print(error)
"""


def test_a_write_that_does_not_fit_leaves_the_old_file_and_says_so_in_one_line(folder: RunFolder):
    """The limit on file sizes stands in for a full disk: `write` stops half way in both."""
    folder.write_bytes("weights", b"old")
    folder.append_jsonl("rounds.jsonl", {"round": 0})
    before = sorted(p.name for p in folder.path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder.path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith("cannot be written: File too large") for line in lines)
    assert (folder.path / "weights").read_bytes() == b"old"
    assert folder.read_jsonl("rounds.jsonl") == [{"round": 0}]
    assert (folder.path / "rounds.jsonl").read_text().count("new") == 0
    assert sorted(p.name for p in folder.path.iterdir()) == before


def test_the_environment_names_what_plugs_something_in(tmp_path: Path, monkeypatch):
    """A run that goes on with another version of a plug-in says so in its log."""
    place = tmp_path / "somebody-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text("[fedproxy_secure.methods]\nmine = somebody:MINE\n")
    monkeypatch.syspath_prepend(tmp_path)
    nameless = tmp_path / "nobody-1.0.dist-info"  # as an installation that was cut short leaves it
    nameless.mkdir()
    (nameless / "entry_points.txt").write_text("[fedproxy_secure.methods]\nother = nobody:MINE\n")
    assert environment()["packages"]["somebody"] == "1.0"


@pytest.mark.torch
def test_the_environment_names_versions_and_the_device_it_is_told():
    found = environment(device="cuda")
    assert found["device"] == "cuda"
    assert found["packages"]["torch"].startswith("2.13.0")
    assert found["cpu_count"] >= 1


KILLED = """
import os, pathlib, sys
from fedproxy_secure.runtime import artifacts
pathlib.Path.replace = lambda *_: os._exit(9)
artifacts.write_bytes(pathlib.Path(sys.argv[1]), b"first secret", private=True)
"""


def test_of_a_secret_that_was_being_written_when_a_kill_came_nothing_is_left_after_the_next(tmp_path: Path):
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.key"], check=False)
        assert killed.returncode == 9
        assert len(os.listdir(tmp_path)) == 1
    write_bytes(tmp_path / "a.key", b"second", private=True)
    assert os.listdir(tmp_path) == ["a.key"]


@pytest.mark.parametrize("private", [False, True])
def test_no_line_is_added_through_a_link(tmp_path, private):
    """Else a folder that somebody else filled could have a file outside it written to."""
    other = tmp_path / "other.txt"
    other.write_text("the owner's")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/rounds.jsonl").symlink_to(other)
    folder = RunFolder(path=tmp_path / "run", private=private)
    with pytest.raises(RunFolderError, match=r"rounds\.jsonl: is a link; must be a file"):
        folder.append_jsonl("rounds.jsonl", {"round": 0})
    assert other.read_text() == "the owner's"
