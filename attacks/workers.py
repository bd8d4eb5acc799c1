"""Tasks in processes of their own: one that hangs or dies takes no other with it.

Processes are forked from the server of `fedproxy_secure.preload`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GRACE_S = 30.0  # beyond its seconds, for what does not listen: start, clean-up, a long call of a library


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A task without a result. `timed_out`: it was killed; otherwise it died with `code`."""

    timed_out: bool
    code: int


@dataclass(kw_only=True)
class _Running:
    index: int
    process: BaseProcess
    until: float


def in_processes(
    work: Callable[[T], R], tasks: Sequence[T], *, jobs: int, seconds: float
) -> Generator[tuple[int, R | Lost]]:
    """(index, result) of every task as they end, `jobs` at a time, in the order of `tasks`.

    Args:
        work: a function of a module, and picklable tasks and results. What it raises counts as lost.
        seconds: a task that takes longer by `GRACE_S` is killed.

    Processes that still run when the iterator is closed are killed.
    """
    context = get_context("forkserver")
    running: dict[Connection, _Running] = {}
    waiting = list(range(len(tasks)))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(there, work, tasks[index]), daemon=True)
                process.start()
                there.close()
                until = time.monotonic() + seconds + GRACE_S
                running[here] = _Running(index=index, process=process, until=until)
            first = min(r.until for r in running.values())
            ready: list[Any] = wait(list(running), timeout=max(0.0, first - time.monotonic()))
            for here in ready:
                yield running[here].index, _result(here, running.pop(here))
            for here, task in list(running.items()):
                if task.until < time.monotonic():
                    _kill(task.process)
                    yield running.pop(here).index, Lost(timed_out=True, code=-signal.SIGKILL)
    finally:
        for task in running.values():
            _kill(task.process)


def _result(here: Connection, task: _Running) -> Any:
    try:
        result = here.recv()
    except EOFError:
        result = None
    task.process.join()
    here.close()
    return Lost(timed_out=False, code=task.process.exitcode or 0) if result is None else result[0]


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _child(there: Connection, work: Callable[[T], R], task: T) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    result = work(task)
    with suppress(BrokenPipeError):  # nobody waits for it any more
        there.send((result,))
    there.close()
