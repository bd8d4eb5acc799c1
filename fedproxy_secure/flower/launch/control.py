"""The control folder, through which the process that submits a run and its server app communicate.

job.json, proxy.path, initial.safetensors    written before the run is submitted
nodes.json                                   which client each registered node is, if nodes have keys
waits.json                                   what the server app waits for, while it waits (`waiting`)
alive                                        touched by the server app for as long as it lives
unmasked.json                                which clients are in the last round's unmasked sum (`serve`)
rounds.jsonl, state.safetensors, ...         written by the server app as rounds end (`serve`)
final.safetensors or trouble.json            written last: the last state, or why the run failed
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

PATIENCE_S = 60.0  # how long reading a file is tried again
SILENT_S = 300.0  # a loaded machine may take a minute to start the server app
LONG_S, AGAIN_S = 10.0, 30.0  # after how long a wait is reported, and how often again
_Read = TypeVar("_Read")


def write_control(
    control: Path,
    job: FederationJob,
    proxy_folder: Path,
    initial: ServerState,
    *,
    registered: Registered | None = None,
) -> None:
    """Write the files that the server app reads; remove those that an earlier attempt left at its end.

    Without `registered`, nodes have no keys, and each says itself which client it is.
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
    """Write the next run's control folder into the file that the SuperLink's environment names."""
    write_bytes(file, str(control.resolve()).encode())


def watch(
    run: subprocess.Popen[bytes],
    control: Path,
    logs: Path,
    on_round: OnRound | None,
    tell: Callable[[str], None] | None = None,
) -> ServerState:
    """Pass on metrics as rounds end, until the server app is done, and return its last state.

    `tell` is called with a line when a wait has lasted longer than `LONG_S`, and then again every `AGAIN_S`
    for as long as it lasts.

    The server app decides how long to wait for clients: in every step of a round it gives up those that are
    silent for `federate.timeout_s`, or that Flower has not heard from for a minute. This function checks
    only that the server app lives.

    Raises the server app's error, or `RoundAborted` if Flower failed or did not start the app, or if the
    app was killed.
    """
    known = _by_round(_lines(control / ROUNDS))
    began, tell_at = time.time(), 0.0
    signs = SignsOfLife(control / ALIVE)
    while True:
        finished, ended = (
            (control / FINAL).exists(),
            run.poll() is not None,
        )  # before reading the lines, so that none is missed
        lines = patiently(lambda: _lines(control / ROUNDS))
        for metrics in lines:
            # the server app drops the line of a round that has no state, and writes it anew
            if on_round is not None and known.get(metrics["round"]) != metrics:
                on_round(metrics)
        known = _by_round(lines)
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
            tell_at = _report_wait(tell, waited_for(control, began), time.time(), tell_at)
        time.sleep(POLL_S)


def waited_for(control: Path, began: float) -> waiting.Wait | None:
    """Return the wait under way in a control folder: the server app's noted one, or that for its start.

    `began`: when the run was submitted, seconds since the epoch.
    """
    if (control / ALIVE).exists():
        return waiting.Wait.load(control)
    return waiting.Wait(what="start", names=("the server app",), since=began, until=began + SILENT_S)


def _report_wait(
    tell: Callable[[str], None], wait: waiting.Wait | None, now: float, tell_at: float
) -> float:
    """Report a long wait if that is due; return when to report it next, in seconds since the epoch."""
    if wait is None:
        return 0.0
    if now < tell_at or now - wait.since < LONG_S:
        return tell_at
    tell(wait.sentence(now))
    return now + AGAIN_S


def patiently(read: Callable[[], _Read], *, patience_s: float = PATIENCE_S) -> _Read:
    """Return what `read` returns; if it raises `OSError`, try again for `patience_s` seconds.

    For a moment, a process may have no file descriptors left, or its machine no memory. That must not end a
    run of days.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


class SignsOfLife:
    """Measures how long a file has not been touched, by a clock that nobody sets.

    Comparing the file's time with the machine's would be wrong as soon as somebody, or NTP, sets the clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen, self._at = self._changed(), time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since a call first found the file as it is now; call it frequently."""
        changed = self._changed()
        if changed != self._seen:
            self._seen, self._at = changed, time.monotonic()
        return time.monotonic() - self._at

    def _changed(self) -> int | None:
        """Return when the file was last changed, or None if it is missing or cannot be looked at."""
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return None


def _by_round(lines: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {line["round"]: line for line in lines}


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSONL file that another process writes; none if there is no file."""
    try:
        return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    except FileNotFoundError:
        return []
