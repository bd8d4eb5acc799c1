"""Run each task in its own process, so that a task that hangs or dies does not affect others.

This is the project's only pool: comparisons, matrices and suites of attacks run on it. Each task gets a new
process, because a reused process keeps memory of the last task, and a kill would lose the next task, too.
Processes from the server of `fedproxy_secure.runtime.preload` (`forkserver`) start in milliseconds; `spawn`
imports everything anew.

A task can report its progress through the pipe of its result, in a few small messages a second. A message
is dropped if the pipe has no room, so that a task never waits for the parent.
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

GRACE_S = 30.0  # beyond a task's time limit, for start, clean-up, and long library calls


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
        """Raise an error that names the task, `what`, and says how it ended.

        A `FedProxyError` is raised as a new error of its class, any other error unchanged, with a note. A
        task without an error raises a `FedProxyError`.
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
    until: float | None  # value of time.monotonic() at which it is killed
    replay: Replay | None

    def is_late(self) -> bool:
        """Return whether its time is over."""
        return self.until is not None and self.until < time.monotonic()


def run_tasks(
    work: Work[T, R],
    tasks: Iterable[T | None],
    *,
    jobs: int,
    on_cuda: bool,
    progress: Callable[[T], Progress] | None = None,
) -> Generator[tuple[int, R | Lost]]:
    """Yield (index, result) of every task as it ends, with as many processes as the setting `jobs` says.

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
    """Return how many tasks run at a time with a setting `jobs`, at least 1."""
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

    A process that has sent its result has `GRACE_S` to end, then it is killed.

    Close the generator to end it early, which kills the running processes. A keyboard interrupt reaches
    only this process, and ends the others in the same way. They also end if this process ends in any way.

    Args:
        work: a function at the top of a module; its tasks and results are pickled. Its errors arrive as
            `Lost.error`.
        tasks: the next task is taken when a process is free, so an iterator may stop early. While no task
            is ready it yields None, which has no index; it is asked again after a task has ended.
        seconds: time limit of a task, or a function that returns it for a task; a task that takes `GRACE_S`
            longer is killed; None: no limit.
        start: `spawn` if tasks use CUDA.
        progress: returns the `Progress` in this process that gets a task's progress; `work` is then called
            with a keyword `progress`, too.
    """
    for name in THREADS:  # inherited; threads that contend for a core are many times slower than one thread
        os.environ.setdefault(name, "1")
    context: SpawnContext | ForkServerContext
    context = get_context("spawn") if start == "spawn" else get_context("forkserver")
    running: dict[Connection, _Running] = {}
    finishing: list[_Running] = []  # have sent their results
    waiting, begun, exhausted = iter(tasks), 0, False
    try:
        while True:
            while not exhausted and len(running) + len(finishing) < jobs:
                try:
                    task = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                if task is None:
                    break
                pipe, entry = _begin(context, work, task, begun, seconds, progress)
                running[pipe] = entry
                begun += 1
            if not running and not finishing:
                return
            for pipe in _ready(running, finishing):
                message = _message(pipe, running[pipe])
                if isinstance(message, ProgressMessage):
                    _replay(running[pipe], message.snapshot)
                    continue
                entry = running.pop(pipe)
                _replay(entry, ())
                finishing.append(replace(entry, until=time.monotonic() + GRACE_S))
                yield entry.index, message
            for pipe in [pipe for pipe, entry in running.items() if entry.is_late()]:
                entry = running.pop(pipe)
                _kill(entry.process, pipe)
                _replay(entry, ())
                yield entry.index, Lost(timed_out=True, code=-signal.SIGKILL)
            finishing = [entry for entry in finishing if not _has_ended(entry)]
    finally:
        for pipe, entry in running.items():
            _kill(entry.process, pipe)
        for entry in finishing:
            entry.process.join(GRACE_S)
            entry.process.kill()


def in_this_process(
    work: Work[T, R],
    tasks: Iterable[T | None],
    *,
    progress: Callable[[T], Progress] | None = None,
) -> Generator[tuple[int, R | Lost]]:
    """Yield as `in_processes` does, but run one task after the other in this process.

    Objects that a script has added to a registry are known only in this process. A task that hangs or ends
    the process affects all others. The iteration ends at the first None, because no running task could make
    another one ready.
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
            replay.to(())  # ends progress that the task left open
        yield index, result


def _begin(
    context: SpawnContext | ForkServerContext,
    work: Work[T, R],
    task: T,
    index: int,
    seconds: float | Callable[[T], float] | None,
    progress: Callable[[T], Progress] | None,
) -> tuple[Connection, _Running]:
    """Start a process for a task; return the receiving end of its pipe, and its entry."""
    # first, because these may raise, and then no process may be left running
    limit_s = seconds(task) if callable(seconds) else seconds
    replay = None if progress is None else Replay(shown=progress(task))
    receiver, sender = context.Pipe(duplex=False)
    tells = progress is not None
    # a daemonic process may not start others; `in_processes` and `end_with_parent` end this one
    process = context.Process(target=child, args=(sender, work, task, tells), daemon=False)
    process.start()
    sender.close()
    until = None if limit_s is None else time.monotonic() + limit_s + GRACE_S
    return receiver, _Running(index=index, process=process, until=until, replay=replay)


def _ready(running: Mapping[Connection, _Running], finishing: Sequence[_Running]) -> list[Connection]:
    """Wait until a process sends a message, ends or is late; return the pipes that have a message."""
    deadlines = [entry.until for entry in (*running.values(), *finishing) if entry.until is not None]
    timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
    ready = wait([*running, *(entry.process.sentinel for entry in finishing)], timeout=timeout)
    return [pipe for pipe in running if pipe in ready]


def _has_ended(entry: _Running) -> bool:
    """Return whether a process has ended; kill it if it is late, because one of its threads may go on."""
    if entry.is_late():
        entry.process.kill()
        entry.process.join()
    return not entry.process.is_alive()


def _message(pipe: Connection, entry: _Running) -> Any:
    """Return the message of a process: a `ProgressMessage`, its result, or `Lost` if it ended without."""
    try:
        message = pipe.recv()
    except (EOFError, OSError):  # it ended before or while it sent its result
        entry.process.join()
        pipe.close()
        return Lost(timed_out=False, code=entry.process.exitcode or 0)
    if isinstance(message, ProgressMessage):
        return message
    result, error = message
    pipe.close()
    return result if error is None else Lost(timed_out=False, code=1, error=error)


def _replay(entry: _Running, snapshot: Snapshot) -> None:
    if entry.replay is not None:
        entry.replay.to(snapshot)


def _kill(process: BaseProcess, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()
