"""Run tasks in processes of their own, so that a task that hangs or dies takes no other with it.

This is the project's only pool: comparisons, matrices and suites of attacks run on it. Each task gets a new
process. A process that is used again keeps what the last task left in memory, and if it is killed, the next
task is lost with it. Processes from the server of `fedproxy_secure.runtime.preload` (`forkserver`) start in
milliseconds; `spawn` imports everything anew.

A task can tell its progress: what it tells travels through the pipe that brings its result, a few small
messages a second. A message for which the pipe has no room is left out, so that a task never waits for
whoever listens.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Concatenate, Literal, NoReturn, TypeVar

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.runtime.preload import THREADS
from fedproxy_secure.runtime.processes.child import ProgressMessage, child
from fedproxy_secure.runtime.progress import Progress, Replay, Snapshot

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[Concatenate[T, ...], R]
Start = Literal["forkserver", "spawn"]

GRACE_S = 30.0  # beyond a task's seconds: for start, clean-up, and library calls that take long


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A task without a result: it timed out and was killed, raised `error`, or exited with `code`."""

    timed_out: bool
    code: int
    error: Exception | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        return "ran out of time" if self.timed_out else f"its process ended with code {self.code}"

    def reraise(self, what: str) -> NoReturn:
        """Raise what says how the task, called `what`, ended; its name stands in it.

        An error raised on purpose is raised as one of its class, any other as it is, with a note. A task
        without an error ends in a `FedProxyError`.
        """
        if isinstance(self.error, FedProxyError):
            raise type(self.error)(f"{what}: {self.error}") from self.error
        if self.error is not None:
            self.error.add_note(f"raised by {what}")
            raise self.error
        raise FedProxyError(f"{what}: {self}")


@dataclass(kw_only=True)
class _Running:
    index: int
    process: BaseProcess
    until: float | None  # time.monotonic() at which it is killed
    replay: Replay | None

    def is_late(self) -> bool:
        """Return whether it is to be killed now."""
        return self.until is not None and self.until < time.monotonic()


def run_tasks(
    work: Work[T, R],
    tasks: Iterable[T | None],
    *,
    jobs: int,
    on_cuda: bool,
    progress: Callable[[T], Progress] | None = None,
) -> Generator[tuple[int, R | Lost]]:
    """Yield (index, result) of every task as it ends, with as many processes as the setting `jobs` asks.

    Args:
        jobs: 1 runs all in this process; 0 is one process per core, or on CUDA one process at a time.

    The other arguments are those of `in_processes`.
    """
    if jobs == 1:
        return in_this_process(work, tasks, progress=progress)
    return in_processes(
        work,
        tasks,
        jobs=processes_of(jobs, on_cuda=on_cuda),
        start="spawn" if on_cuda else "forkserver",
        progress=progress,
    )


def processes_of(jobs: int, *, on_cuda: bool) -> int:
    """Return how many tasks run at a time under a setting `jobs`, at least 1."""
    return jobs or (1 if on_cuda else os.cpu_count() or 1)


def in_processes(
    work: Work[T, R],
    tasks: Iterable[T | None],
    *,
    jobs: int,
    seconds: float | Callable[[T], float] | None = None,
    start: Start = "forkserver",
    progress: Callable[[T], Progress] | None = None,
) -> Generator[tuple[int, R | Lost]]:
    """Yield (index, result) of every task as it ends, `jobs` at a time, begun in the order of `tasks`.

    A process whose result is there has `GRACE_S` to end, then it is killed.

    Close the generator to end it early: processes that still run are then killed. An interrupt from the
    keyboard reaches this process alone, and ends the others in the same way. They end with this process,
    however it ends.

    Args:
        work: a function at the top of a module; its tasks and results are pickled. What it raises comes as
            `Lost.error`.
        tasks: the next task is taken when a process is free, so an iterator may stop early. While no task
            is ready it yields None, which has no index, and is asked again when a task has ended.
        seconds: a task that takes `GRACE_S` longer than this, or than this returns for it, is killed; None:
            no limit.
        start: `spawn` where tasks use CUDA.
        progress: makes the `Progress` that is told in this process what a task tells in its own; `work` is
            then called with a keyword `progress` too.
    """
    for name in THREADS:  # inherited: threads that contend for a core are many times slower than one
        os.environ.setdefault(name, "1")
    context: SpawnContext | ForkServerContext
    context = get_context("spawn") if start == "spawn" else get_context("forkserver")
    running: dict[Connection, _Running] = {}
    ending: list[_Running] = []  # their results are there
    waiting, begun, ended = iter(tasks), 0, False
    try:
        while True:
            while not ended and len(running) + len(ending) < jobs:
                try:
                    task = next(waiting)
                except StopIteration:
                    ended = True
                    break
                if task is None:
                    break
                here, own = _begin(context, work, task, begun, seconds, progress)
                running[here] = own
                begun += 1
            if not running and not ending:
                return
            for here in _ready(running, ending):
                message = _message(here, running[here])
                if isinstance(message, ProgressMessage):
                    _replay(running[here], message.snapshot)
                    continue
                own = running.pop(here)
                _replay(own, ())
                ending.append(replace(own, until=time.monotonic() + GRACE_S))
                yield own.index, message
            for here in [here for here, own in running.items() if own.is_late()]:
                own = running.pop(here)
                _kill(own.process, here)
                _replay(own, ())
                yield own.index, Lost(timed_out=True, code=-signal.SIGKILL)
            ending = [own for own in ending if not _has_ended(own)]
    finally:
        for here, own in running.items():
            _kill(own.process, here)
        for own in ending:
            own.process.join(GRACE_S)
            own.process.kill()


def in_this_process(
    work: Work[T, R],
    tasks: Iterable[T | None],
    *,
    progress: Callable[[T], Progress] | None = None,
) -> Generator[tuple[int, R | Lost]]:
    """Yield what `in_processes` yields, but run one task after the other in this process.

    Objects that a script has added to a registry are known here, and to no other process. A task that hangs
    or ends the process takes the others with it. Ends at the first None: no task is running that could
    change it.
    """
    for index, task in enumerate(tasks):
        if task is None:
            return
        replay = None if progress is None else Replay(shown=progress(task))
        try:
            result: R | Lost = work(task) if replay is None else work(task, progress=replay.here())
        except Exception as error:
            result = Lost(timed_out=False, code=1, error=error)
        if replay is not None:
            replay.to(())  # ends what a task left open
        yield index, result


def _begin(
    context: SpawnContext | ForkServerContext,
    work: Work[T, R],
    task: T,
    index: int,
    seconds: float | Callable[[T], float] | None,
    progress: Callable[[T], Progress] | None,
) -> tuple[Connection, _Running]:
    """Start a process for a task; return the end of the pipe that brings its result, and what is kept."""
    # first: whoever raises here leaves no process that nobody ends
    own_s = seconds(task) if callable(seconds) else seconds
    replay = None if progress is None else Replay(shown=progress(task))
    here, there = context.Pipe(duplex=False)
    tells = progress is not None
    # a daemonic process may start none of its own; `in_processes` and `end_with_parent` end this one
    process = context.Process(target=child, args=(there, work, task, tells), daemon=False)
    process.start()
    there.close()
    until = None if own_s is None else time.monotonic() + own_s + GRACE_S
    return here, _Running(index=index, process=process, until=until, replay=replay)


def _ready(running: Mapping[Connection, _Running], ending: Sequence[_Running]) -> list[Connection]:
    """Wait until a process tells something, ends or is late; return the pipes that have a message."""
    ends = [own.until for own in (*running.values(), *ending) if own.until is not None]
    left = max(0.0, min(ends) - time.monotonic()) if ends else None
    ready = wait([*running, *(own.process.sentinel for own in ending)], timeout=left)
    return [here for here in running if here in ready]


def _has_ended(own: _Running) -> bool:
    """Return whether a process has ended; one that is late is killed, as a thread of its may go on."""
    if own.is_late():
        own.process.kill()
        own.process.join()
    return not own.process.is_alive()


def _message(here: Connection, own: _Running) -> Any:
    """Return what the process sent: a `ProgressMessage`, its result, or how its task was lost."""
    try:
        message = here.recv()
    except (EOFError, OSError):  # it ended before, or in the middle of, its result
        own.process.join()
        here.close()
        return Lost(timed_out=False, code=own.process.exitcode or 0)
    if isinstance(message, ProgressMessage):
        return message
    result, error = message
    here.close()
    return result if error is None else Lost(timed_out=False, code=1, error=error)


def _replay(own: _Running, snapshot: Snapshot) -> None:
    if own.replay is not None:
        own.replay.to(snapshot)


def _kill(process: BaseProcess, here: Connection) -> None:
    process.kill()
    process.join()
    here.close()
