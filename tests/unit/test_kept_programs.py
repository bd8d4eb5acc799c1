"""A program that is kept running starts again when it ends, after a growing pause, and stops when told."""

import os
import resource
import signal
import subprocess
import time

import pytest

from fedproxy_secure.flower.launch import kept as module
from fedproxy_secure.flower.launch.kept import KeptProgram
from fedproxy_secure.flower.launch.processes import (
    alone_in,
    keep_bounded,
    process,
    terminated_like_interrupted,
)


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Return a maker of kept programs, whose lines go to a list; all are stopped at the end."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    told, made = [], []
    with alone_in(tmp_path) as lock:

        def make(code):
            one = KeptProgram(
                "it",
                ["-c", code],
                log=tmp_path / "it.log",
                environment=os.environ,
                lock=lock,
                tell=told.append,
            )
            made.append(one)
            return one, told

        yield make
        for one in made:
            one.stop()


def test_a_process_is_ended_though_its_parent_is_told_to_end_while_it_starts_it(tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with (
        pytest.raises(SystemExit) as told,
        terminated_like_interrupted(),
        alone_in(tmp_path) as lock,
        process("sleep", ["300"], os.environ, tmp_path / "log", lock),
    ):
        pytest.fail("it is not handed out any more")
    assert told.value.code == 128 + signal.SIGTERM
    # an interrupt that comes before the new process runs its own program is lost; then it is killed
    assert [one.returncode in (-signal.SIGINT, -signal.SIGKILL) for one in started] == [True]


def look_until(one, done):
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        one.look()
        time.sleep(0.01)


def test_a_program_that_ended_is_started_again_and_its_last_line_is_told(keep):
    one, told = keep("import sys; print('why'); sys.exit(3)")
    look_until(one, lambda: sum("started" in line for line in told) >= 2)
    assert "it ended with code 3: why" in told


def test_a_program_is_left_alone_while_it_runs_and_ends_when_told(keep, tmp_path):
    one, told = keep(f"import time; open({str(tmp_path / 'up')!r}, 'w'); time.sleep(300)")
    look_until(one, (tmp_path / "up").exists)
    for _ in range(5):
        one.look()
    assert len(told) == 1
    one.stop()
    assert (tmp_path / "lock").exists()


def test_one_that_does_not_stop_when_told_is_killed_soon(keep, tmp_path, monkeypatch):
    """Ignores SIGTERM, as a SuperNode does while it says goodbye to a SuperLink that is gone."""
    monkeypatch.setattr(module, "STOP_S", 0.3)
    deaf = (
        "import signal, time; signal.signal(2, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    one, _ = keep(deaf)
    look_until(one, lambda: (tmp_path / "it.log").exists() and "deaf" in (tmp_path / "it.log").read_text())
    deaf_one = one._process
    one.stop()
    assert deaf_one.returncode == -signal.SIGKILL


def test_a_log_that_grows_large_while_the_program_runs_is_moved_aside_and_written_on(
    keep, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "MOST_LOG_BYTES", 100)
    log, go_on = tmp_path / "it.log", tmp_path / "go on"
    code = (
        "import pathlib, time; print('a' * 200, flush=True)\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)\n"
        "print('after', flush=True); time.sleep(60)"
    )
    one, told = keep(code)
    look_until(one, (tmp_path / "it.log.1").exists)
    assert (tmp_path / "it.log.1").read_text() == "a" * 200 + "\n"
    go_on.touch()
    look_until(one, lambda: log.read_bytes() == b"after\n")
    assert len(told) == 1, "it was not started again"


def test_a_program_that_cannot_be_started_for_a_moment_is_started_later(keep, tmp_path, monkeypatch):
    log = tmp_path / "it.log"
    log.mkdir()  # as if no more files could be opened
    one, told = keep("print('up')")
    look_until(one, lambda: told)
    assert told == ["it: Is a directory; it is tried again"]
    log.rmdir()
    look_until(one, lambda: any("started" in line for line in told))


def test_a_program_that_ends_while_its_log_cannot_be_looked_at_is_started_again(keep, tmp_path):
    log, go_on = tmp_path / "it.log", tmp_path / "go on"
    one, told = keep(
        f"import pathlib, time\nwhile not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)"
    )
    look_until(one, lambda: told)
    log.unlink()
    log.symlink_to(log)
    go_on.touch()
    look_until(one, lambda: len(told) > 1)
    assert told[1] == "it ended with code 0: its log cannot be read: Too many levels of symbolic links"
    log.unlink()
    look_until(one, lambda: any("started" in line for line in told[2:]))


def test_a_log_for_whose_copy_there_is_no_room_is_emptied_and_the_copy_before_it_stays(tmp_path):
    log, before, part = (tmp_path / name for name in ("it.log", "it.log.1", "it.log.1.part"))
    log.write_bytes(b"a" * 2**16)
    before.write_text("the copy before\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, limits[1]))  # as a disk that gets full in between
    try:
        keep_bounded(log, most=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, told)
    assert log.read_bytes() == b""
    assert before.read_text() == "the copy before\n"
    assert not part.exists()


def test_a_log_that_has_grown_large_is_moved_aside(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_LOG_BYTES", 4)
    one, told = keep("print('a long line')")
    look_until(one, lambda: sum("started" in line for line in told) >= 3)
    assert (tmp_path / "it.log.1").read_text() == "a long line\n"
