"""The code that a process of the pool runs: its task, with a pipe to the parent for progress and result."""

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


def child(pipe: Connection, work: Callable[Concatenate[T, ...], R], task: T, tells: bool) -> None:
    """Run a task and send its result, or its error, as the last message of the pipe.

    Args:
        pipe: the sending end of the pipe.
        work, task: as in `in_processes`.
        tells: whether `work` takes a `progress`, which is then sent too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal, too, and ends this process
    end_with_parent()
    try:
        result = work(task, progress=Relayed(hand_on=partial(_tell, pipe))) if tells else work(task)
        message = ForkingPickler.dumps(
            (result, None)
        )  # in the `try`, so that a failure to pickle is sent, too
    except Exception as error:
        message = ForkingPickler.dumps((None, _portable(error)))
    with suppress(BrokenPipeError):  # the parent has closed its end
        pipe.send_bytes(message)
    pipe.close()


def _tell(pipe: Connection, snapshot: Snapshot) -> bool:
    """Send a snapshot if the pipe takes it without waiting, and return whether it did."""
    message = pickle.dumps(ProgressMessage(snapshot=snapshot))
    poller = select.poll()
    poller.register(pipe, select.POLLOUT)
    # a pipe that is ready takes PIPE_BUF bytes at once; the connection puts 4 bytes before the message
    if len(message) + 4 > select.PIPE_BUF or not poller.poll(0):
        return False
    try:
        pipe.send_bytes(message)
    except BrokenPipeError:  # the parent has closed its end
        return False
    return True


def _portable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, or an error with its text if it cannot be pickled."""
    error.add_note("in a process of its own:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above, by this process
    except Exception:  # an error's own code may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
