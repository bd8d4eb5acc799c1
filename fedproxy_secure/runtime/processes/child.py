"""What a process of the pool runs: its task; progress and the result go to its parent by a pipe."""

from __future__ import annotations

import pickle
import select
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Concatenate, TypeVar

from fedproxy_secure.runtime.preload import end_with_parent
from fedproxy_secure.runtime.progress import Relayed, Snapshot

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class ProgressMessage:
    """The message that carries progress."""

    snapshot: Snapshot


def child(there: Connection, work: Callable[Concatenate[T, ...], R], task: T, tells: bool) -> None:
    """Run a task and send its result, or what it raised, as the last message of the pipe.

    Args:
        there: the end of the pipe to send by.
        work, task: as in `in_processes`.
        tells: whether `work` takes a `progress`, which is then sent too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    end_with_parent()
    try:
        result = work(task, progress=Relayed(hand_on=partial(_tell, there))) if tells else work(task)
        message = ForkingPickler.dumps((result, None))  # here, so that what cannot be pickled is told too
    except Exception as error:
        message = ForkingPickler.dumps((None, _portable(error)))
    with suppress(BrokenPipeError):  # nobody waits for it any more
        there.send_bytes(message)
    there.close()


def _tell(there: Connection, snapshot: Snapshot) -> bool:
    """Send a snapshot if the pipe takes it without waiting, and return whether it did."""
    message = pickle.dumps(ProgressMessage(snapshot=snapshot))
    room = select.poll()
    room.register(there, select.POLLOUT)
    # a pipe that is ready takes PIPE_BUF bytes at once; the connection puts 4 bytes before the message
    if len(message) + 4 > select.PIPE_BUF or not room.poll(0):
        return False
    try:
        there.send_bytes(message)
    except BrokenPipeError:  # nobody listens any more
        return False
    return True


def _portable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, or its text where it cannot be pickled."""
    error.add_note("in a process of its own:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above, by this process
    except Exception:  # an error's own code may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
