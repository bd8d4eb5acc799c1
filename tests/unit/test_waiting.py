"""What a server app waits for is told in time, and looking for it costs little and finds it soon."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower.launch import control
from fedproxy_secure.flower.launch.control import AGAIN_S, LONG_S, SignsOfLife, patiently, waited_for, watch
from fedproxy_secure.flower.patience import SHARE, Patience, pause_s
from fedproxy_secure.flower.server_app import ALIVE, FINAL
from fedproxy_secure.flower.waiting import MOST_REASON, Wait, WaitNotes, with_reasons
from fedproxy_secure.record.saved_rounds import STATE, resumed
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ROUNDS, TROUBLE, WAITS

LEAST_S, MOST_S = 0.05, 0.4
NAMES = ("bank", "clinic")


def looks_until(comes_s):
    """The times at which somebody with this patience looks, up to the one that finds what has come."""
    at = [0.0]
    while at[-1] < comes_s:
        at.append(at[-1] + pause_s(at[-1], least_s=LEAST_S, most_s=MOST_S))
    return at


@given(st.floats(0, 600))
def test_what_comes_is_found_a_third_of_its_waiting_time_late_at_most_and_looked_for_rarely(comes_s):
    at = looks_until(comes_s)
    late = at[-1] - comes_s
    assert late <= max(LEAST_S, min(MOST_S, SHARE * comes_s)) + 1e-9
    assert len(at) <= 14 + comes_s / MOST_S


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """What `time.monotonic` says."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_patience_begins_anew_when_something_has_come(clock):
    patience = Patience(least_s=0.01, most_s=60.0)
    patience.come()
    clock.now += 0.3
    assert patience.pause_s() == pytest.approx(0.1)
    patience.come()
    assert patience.pause_s() == 0.01


def test_a_wait_is_noted_when_it_lasts_and_forgotten_when_it_is_over(tmp_path, clock):
    notes = WaitNotes(tmp_path, every_s=0.1)
    notes.note("setup", NAMES, began=clock.now, timeout_s=60)
    assert Wait.load(tmp_path) is None
    clock.now += 0.15
    notes.note("setup", NAMES[::-1], began=clock.now - 30, timeout_s=60)
    found = Wait.load(tmp_path)
    assert (found.what, found.names, found.until - found.since) == ("setup", NAMES, pytest.approx(60))
    assert time.time() - found.since == pytest.approx(30, abs=5)
    notes.note("train", NAMES, began=clock.now - 30, timeout_s=60)
    assert Wait.load(tmp_path) == found, "not so soon after the last one"
    notes.over()
    notes.over()
    assert Wait.load(tmp_path) is None


def test_a_wait_that_cannot_be_noted_ends_no_run(tmp_path, caplog):
    notes = WaitNotes(tmp_path / "is no folder", every_s=0)
    (tmp_path / "is no folder").write_text("")
    notes.note("setup", NAMES, began=0, timeout_s=60)
    notes.over()
    assert "a wait is not noted" in caplog.text


def test_without_a_folder_nothing_is_noted():
    WaitNotes(None, every_s=0).note("setup", NAMES, began=0, timeout_s=60)
    WaitNotes(None).over()


def test_a_server_app_that_lives_is_not_silent_whatever_the_machines_clock_is_set_to(tmp_path, clock):
    alive = tmp_path / ALIVE
    signs = SignsOfLife(alive)
    clock.now += 40
    assert signs.silent_s() == 40, "it has not begun"
    for set_to in (1_000, 2_000_000, 500):
        alive.touch()
        os.utime(alive, (set_to, set_to))
        clock.now += 10
        assert signs.silent_s() == 0
    clock.now += 301
    assert signs.silent_s() == 301


def test_a_file_that_the_system_refuses_for_a_moment_is_read_again():
    refused = iter([OSError(24, "Too many open files"), OSError(24, "Too many open files")])

    def read():
        for error in refused:
            raise error
        return "read"

    assert patiently(read) == "read"
    refused = iter([OSError(24, "Too many open files")] * 9)
    with pytest.raises(OSError, match="Too many open files"):
        patiently(read, patience_s=-1)


def waiting_since(folder, seconds):
    now = time.time()
    (folder / ALIVE).touch()
    Wait(what="round 1, train", names=NAMES, since=now - seconds, until=now + 100).save(folder)


def told_by_watch(folder):
    """The lines that `watch` tells until the server app, which here is this test, ends in trouble."""
    lines = []

    def tell(line):
        lines.append(line)
        (folder / TROUBLE).write_text(json.dumps(["RoundAborted", "enough seen"]))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as run:
        try:
            with pytest.raises(RoundAborted, match="enough seen"):
                watch(run, folder, folder, None, tell)
        finally:
            run.kill()
    return lines


def test_the_owner_is_told_for_whom_she_waits_since_when_and_for_how_long(tmp_path):
    waiting_since(tmp_path, LONG_S + 5)
    (line,) = told_by_watch(tmp_path)
    assert line.startswith("has waited 1")
    assert " s for bank, clinic (round 1, train), and waits at most " in line
    assert line.endswith(" s more")


def test_a_folder_of_logs_that_cannot_be_listed_for_a_moment_ends_no_run(tmp_path, monkeypatch):
    """Too many open files: Python before 3.13 raises it from `glob`."""

    def refused(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "glob", refused)
    waiting_since(tmp_path, LONG_S + 5)
    assert len(told_by_watch(tmp_path)) == 1


def test_until_the_server_app_lives_it_is_what_is_waited_for(tmp_path):
    waiting = waited_for(tmp_path, began=1000.0)
    said = "has waited 30 s for the server app (start), and waits at most 4 min more"
    assert waiting.sentence(1030.0) == said
    (tmp_path / ALIVE).touch()
    assert waited_for(tmp_path, began=1000.0) is None
    waiting_since(tmp_path, 5)
    assert waited_for(tmp_path, began=1000.0).names == NAMES


def test_of_a_short_wait_she_is_not_told(tmp_path):
    waiting_since(tmp_path, 0)
    (tmp_path / TROUBLE).write_text(json.dumps(["RoundAborted", "enough seen"]))
    assert told_by_watch(tmp_path) == []
    assert LONG_S < AGAIN_S


def test_many_sites_and_long_reasons_stay_one_bounded_line():
    line = with_reasons("too few", {f"site {number:02}": "x\n" * 500 for number in range(50)})
    assert line.endswith(" and 42 more")
    assert len(line) < 8 * (MOST_REASON + 40)
    assert "\n" not in line
    assert with_reasons("too few", {}) == "too few"


def test_a_note_is_whole_or_not_there(tmp_path):
    waiting_since(tmp_path, 5)
    assert json.loads((tmp_path / WAITS).read_text())["names"] == list(NAMES)


def test_a_round_that_is_done_again_after_a_crash_is_reported(tmp_path, monkeypatch):
    """The run before was killed between the line of round 2 and its state."""
    folder, initial = RunFolder(path=tmp_path), ServerState(round=0, adapter=np.zeros(3, np.float32))
    for number in range(3):
        folder.append_jsonl(ROUNDS, {"round": number, "loss": 1.0})
    replace(initial, round=2).save(tmp_path / STATE)
    server_app = iter(
        [
            lambda: None,
            lambda: resumed(folder, initial),
            lambda: folder.append_jsonl(ROUNDS, {"round": 2, "loss": 1.0}),
            lambda: folder.append_jsonl(ROUNDS, {"round": 3, "loss": 1.0}),
            lambda: replace(initial, round=4).save(tmp_path / FINAL),
        ]
    )
    clock = SimpleNamespace(
        time=time.time, monotonic=time.monotonic, sleep=lambda seconds: next(server_app)()
    )
    monkeypatch.setattr(control, "time", clock)
    reported = []
    run = SimpleNamespace(poll=lambda: None)
    state = control.watch(run, tmp_path, tmp_path, lambda metrics: reported.append(metrics["round"]))
    assert (reported, state.round) == ([2, 3], 4)
