"""The one pool of processes: results as they end, what a task raises, tasks taken one at a time."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from typing import Any

import pytest

from fedproxy_secure.errors import ConfigError, FedProxyError
from fedproxy_secure.runtime import workers
from fedproxy_secure.runtime.progress import Named, NoProgress
from fedproxy_secure.runtime.workers import Lost, in_processes, in_this_process, run_tasks
from tests.support.processes import ends_within
from tests.support.told import Told


class Awkward(Exception):
    """An error that pickles and cannot be made again."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def refuse(value):
    raise ConfigError(f"value={value}: must be another")


def awkward(value):
    raise Awkward(value, value)


def unsendable(_task):
    return lambda: None


def process_id(_task):
    return os.getpid()


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_results_come_with_the_number_of_their_task(start):
    assert dict(in_processes(math.sqrt, [4.0, 9.0, 16.0], jobs=2, start=start)) == {0: 2, 1: 3, 2: 4}


def test_what_a_task_raises_comes_back_as_it_was_raised():
    ((_, lost),) = in_processes(refuse, [3], jobs=1)
    assert isinstance(lost.error, ConfigError)
    assert str(lost) == "ConfigError: value=3: must be another"
    assert "in refuse" in "".join(lost.error.__notes__)  # where it was raised
    with pytest.raises(ConfigError, match=r"^a task: value=3: must be another$"):
        lost.reraise("a task")


def test_an_unexpected_error_is_raised_as_it_is_and_names_its_task():
    ((_, lost),) = in_processes(math.sqrt, [-1.0], jobs=1)
    with pytest.raises(ValueError, match=r"math domain error|nonnegative") as raised:
        lost.reraise("cell 7")
    assert raised.value.__notes__[-1] == "raised by cell 7"


def test_an_error_that_cannot_be_sent_comes_as_its_text():
    ((_, lost),) = in_processes(awkward, [3], jobs=1)
    assert str(lost.error) == "Awkward: 3 and 3"


def test_a_result_that_cannot_be_sent_is_told_as_an_error():
    ((_, lost),) = in_processes(unsendable, [3], jobs=1)
    assert "pickle" in str(lost.error)


def test_a_process_that_dies_is_named_by_its_code():
    ((_, lost),) = in_processes(os._exit, [7], jobs=1)
    assert lost == Lost(timed_out=False, code=7)
    with pytest.raises(FedProxyError, match="cell 1: its process ended with code 7"):
        lost.reraise("cell 1")


@pytest.mark.parametrize("asked", ["seconds", "progress"])
def test_whoever_is_asked_about_a_task_and_raises_leaves_no_process(asked):
    with pytest.raises(ConfigError, match="value=60"):
        list(in_processes(time.sleep, [60], jobs=1, **{asked: refuse}))
    assert active_children() == []


def does_not_end(seconds):
    threading.Thread(target=time.sleep, args=(seconds,)).start()
    return seconds


def works_or_does_not_end(task):
    work, seconds = task
    return work(seconds)


def test_a_process_that_does_not_end_after_its_result_holds_up_no_other(monkeypatch):
    monkeypatch.setattr(workers, "GRACE_S", 0.5)
    tasks = [(does_not_end, 60), (time.sleep, 60), (math.sqrt, 4.0)]
    results = dict(in_processes(works_or_does_not_end, tasks, jobs=2, seconds=3.0))
    assert results == {0: 60, 1: Lost(timed_out=True, code=-signal.SIGKILL), 2: 2.0}
    assert active_children() == []


def test_tasks_are_taken_when_a_process_is_free_and_may_stop_early():
    results = []

    def until_two_have_ended():
        for number in range(100):
            if len(results) >= 2:
                return
            yield float(number)

    for result in in_processes(math.sqrt, until_two_have_ended(), jobs=1):
        results.append(result)
    assert results == [(0, 0.0), (1, 1.0)]


def test_one_job_is_this_process_and_what_it_raises_stops_no_other():
    assert list(run_tasks(process_id, [0], jobs=1, on_cuda=False)) == [(0, os.getpid())]
    (_, lost), (_, two) = in_this_process(math.sqrt, [-1.0, 4.0])
    assert isinstance(lost.error, ValueError)
    assert two == 2
    ((_, other),) = run_tasks(process_id, [0], jobs=2, on_cuda=False)
    assert other != os.getpid()


def tell(steps, progress):
    progress.start("counting", steps)
    for step in range(steps):
        progress.advance("counting", note=f"at {step}")
        time.sleep(0.05)
    return steps


def flood(seconds, progress):
    """Tell more than any pipe holds, and return how many calls that were."""
    calls, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        progress.start(f"task {calls % 3}", 10)
        calls += 1
    return calls


def raise_while_counting(_task, progress):
    progress.start("counting", 2)
    raise ConfigError("no more")


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_tells_reaches_the_process_that_began_it(jobs):
    told = Told()

    def named(task):
        return Named(shown=told, name=f"task {task}")

    results = dict(run_tasks(tell, [20, 24], jobs=jobs, on_cuda=False, progress=named))
    assert results == {0: 20, 1: 24}
    assert sorted(told.started) == ["task 20: counting", "task 24: counting"]  # two processes race
    assert (len(told.advanced) == 44) if jobs == 1 else (2 <= len(told.advanced) < 40)  # a few a second
    assert told.open == {}  # also of a task that never said it was done


def test_a_task_that_fails_leaves_nothing_open():
    told = Told()
    for jobs in (1, 2):
        ((_, lost),) = run_tasks(
            raise_while_counting, [0], jobs=jobs, on_cuda=False, progress=lambda _: told
        )
        assert str(lost) == "ConfigError: no more"
    assert told.started == ["counting", "counting"]
    assert told.open == {}


def test_a_task_never_waits_for_whoever_should_listen():
    tasks = in_processes(flood, [0.0, 0.5], jobs=2, progress=lambda _: NoProgress())
    next(tasks)  # the other goes on telling, and nobody reads what it says
    time.sleep(0.6)
    ((_, calls),) = tasks
    assert calls > 1000


def test_tasks_that_are_not_ready_are_asked_for_again_when_one_has_ended():
    done: list[Any] = []

    def when_two_have_ended():
        yield from (1.0, 4.0)
        while len(done) < 2:
            yield None
        yield 9.0

    for _, result in in_processes(math.sqrt, when_two_have_ended(), jobs=3):
        done.append(result)
    assert sorted(done) == [1, 2, 3]
    assert [r for _, r in in_this_process(math.sqrt, iter([1.0, None, 4.0]))] == [1.0]


def roots_in_processes(values):
    return sorted(r for _, r in in_processes(math.sqrt, values, jobs=2))


def test_a_task_may_start_tasks_of_its_own():
    assert [r for _, r in in_processes(roots_in_processes, [[1.0, 4.0]], jobs=1)] == [[1.0, 2.0]]


SCRIPT = """
import os, signal, time
from pathlib import Path
from fedproxy_secure.runtime.workers import in_processes

def work(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(300)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored in the background
    for _ in in_processes(work, [{path!r}], jobs=1):
        pass
"""


def pid_in(file):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError("the task did not begin")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_task_ends_with_the_process_that_began_it(tmp_path, number):
    script = tmp_path / "pool.py"
    script.write_text(SCRIPT.format(path=str(tmp_path / "pid")))
    with subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        worker = pid_in(tmp_path / "pid")
        os.kill(parent.pid, number)
        _, err = parent.communicate(timeout=60)
    assert ends_within(worker, seconds=20)
    if number == signal.SIGINT:
        assert err.strip().splitlines()[-1] == "KeyboardInterrupt"
