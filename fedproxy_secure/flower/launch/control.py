"""The control folder, through which a process and the server app that a SuperLink started talk.

job.json, proxy.path, initial.safetensors    written before the run is submitted
nodes.json                                   which client each registered node is, where nodes have keys
waits.json                                   what the server app waits for, while it does (`waiting`)
alive                                        touched by the server app for as long as it lives
unmasked.json                                for whom the last round was unmasked (`serve`)
rounds.jsonl, state.safetensors, ...         written by the server app as rounds end (`serve`)
final.safetensors or trouble.json            written last
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedproxy_secure import errors
from fedproxy_secure.errors import FedProxyError, RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState
from fedproxy_secure.flower import waiting
from fedproxy_secure.flower.launch.processes import POLL_S
from fedproxy_secure.flower.nodes import Registered
from fedproxy_secure.flower.server_app import ALIVE, FINAL, INITIAL, NODES, PROXY, OnRound
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import JOB, ROUNDS, TROUBLE, WAITS

PATIENCE_S = 60.0  # how long a file that cannot be read is tried again
SILENT_S = 300.0  # a loaded machine may take a minute to start the server app
LONG_S, AGAIN_S = 10.0, 30.0
_Read = TypeVar("_Read")


def write_control(
    control: Path,
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    registered: Registered | None = None,
) -> None:
    """Write what the server app reads; what an earlier attempt left at its end is removed.

    Without `registered`, a node says itself which client it is.
    """
    control.mkdir(parents=True, exist_ok=True)
    for stale in (FINAL, TROUBLE, NODES, ALIVE, WAITS):
        (control / stale).unlink(missing_ok=True)
    write_bytes(control / JOB, job.to_json().encode())
    write_bytes(control / PROXY, str(proxy_folder.resolve()).encode())
    if registered is not None:
        registered.save(control / NODES)
    initial.save(control / INITIAL)


def name_control(file: Path, control: Path) -> None:
    """Write into the file that the SuperLink's environment names which folder its next run works in."""
    write_bytes(file, str(control.resolve()).encode())


def watch(
    run: subprocess.Popen[bytes],
    control: Path,
    logs: Path,
    on_round: OnRound | None,
    tell: Callable[[str], None] | None = None,
) -> ServerState:
    """Pass on metrics as rounds end, until the server app is done, and return its last state.

    `tell` is called with a line when something has been waited for longer than `LONG_S`, and then again
    every `AGAIN_S` for as long as it lasts.

    How long clients are waited for is the server app's part: in every step of a round it gives up those
    that are silent for `federate.timeout_s`, or of which Flower has not heard for a minute. Here it is
    enough that it lives.

    Raises the server app's error, or `RoundAborted` if Flower failed, or did not start the app, or the app
    was killed.
    """
    seen = len(_lines(control / ROUNDS))
    began, tell_at = time.time(), 0.0
    signs = SignsOfLife(control / ALIVE)
    while True:
        finished, ended = (control / FINAL).exists(), run.poll() is not None  # before the lines
        lines = patiently(lambda: _lines(control / ROUNDS))
        for metrics in lines[seen:]:
            if on_round is not None:
                on_round(metrics)
        seen = max(seen, len(lines))
        if finished:
            return ServerState.load(control / FINAL)
        if (control / TROUBLE).exists():
            kind, line = json.loads(patiently((control / TROUBLE).read_bytes))
            error_class: Any = getattr(errors, kind, FedProxyError)
            raise error_class(line)
        if ended:
            raise RoundAborted(f"flwr run: ended with code {run.returncode}; see {logs}/run.log")
        if signs.silent_s() > SILENT_S:
            raise RoundAborted(f"the server app gave no sign of life for {SILENT_S:.0f} s; see {logs}")
        if tell is not None:
            tell_at = _told(tell, waited_for(control, began), time.time(), tell_at)
        time.sleep(POLL_S)


def waited_for(control: Path, began: float) -> waiting.Wait | None:
    """Return what is waited for in a control folder: what the server app notes, or that it starts.

    `began`: when the run was submitted, seconds since the epoch.
    """
    if (control / ALIVE).exists():
        return waiting.Wait.load(control)
    return waiting.Wait(what="start", names=("the server app",), since=began, until=began + SILENT_S)


def _told(tell: Callable[[str], None], wait: waiting.Wait | None, now: float, tell_at: float) -> float:
    """Tell of a long wait if it is time to, and return when to tell of it again; times since the epoch."""
    if wait is None:
        return 0.0
    if now < tell_at or now - wait.since < LONG_S:
        return tell_at
    tell(wait.sentence(now))
    return now + AGAIN_S


def patiently(read: Callable[[], _Read], *, patience_s: float = PATIENCE_S) -> _Read:
    """Return what `read` returns, tried again for a while if the system refuses.

    A process may have as many files open as it may have, or the machine no memory left, for a moment; that
    must not end a run of days.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            return read()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)


class SignsOfLife:
    """How long a file has not been touched, by a clock that nobody sets.

    The file's own time and the machine's would say the same until somebody, or NTP, sets the clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen, self._at = self._changed(), time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since a look first found the file as it is now; looks must be frequent."""
        changed = self._changed()
        if changed != self._seen:
            self._seen, self._at = changed, time.monotonic()
        return time.monotonic() - self._at

    def _changed(self) -> int | None:
        """Return when the file was changed, None if it is not there or cannot be looked at."""
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file that another process writes; none if there is no file."""
    try:
        return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
