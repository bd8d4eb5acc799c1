"""How the owner's federation stands, read from its run folder and her log of events.

Read from the folder: `job.json` (rounds, names of clients, time limit), `rounds.jsonl` (numbers of rounds,
who took part, seconds), `ledger.jsonl` (bytes) and `trouble.json` (the class of the error); and when
`job.json`, `rounds.jsonl` and `waits.json` were written. Nothing else of these files is kept: losses, norms
and the error's text stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedproxy_secure.errors import DataError, FedProxyError, RunFolderError
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.monitor.event_log import EventLog, Events
from fedproxy_secure.monitor.noting import ledger_bytes
from fedproxy_secure.monitor.state import FederationStatus, Phase, time_left
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import JOB, LEAKAGE, ROUNDS, TROUBLE, WAITS
from fedproxy_secure.runtime.progress import duration
from fedproxy_secure.runtime.untrusted import read_json


@dataclass(frozen=True, kw_only=True)
class _Round:
    participants: tuple[str, ...]
    seconds: float


def owner_standing(
    run_folder: Path,
    *,
    name: str = "federation",
    events: EventLog | None = None,
) -> FederationStatus:
    """Return how a federation stands whose server app writes into `run_folder`.

    Args:
        run_folder: where `rounds.jsonl` is written, beside `job.json`; both may be missing so far.
        name: the owner's name for the federation.
        events: her log; without it connected clients and reasons of aborts are unknown.

    A file that cannot be read makes the standing unhealthy, and says which; nothing is raised.
    """
    unreadable: list[str] = []
    now = datetime.now(UTC)
    job = _read_or(None, unreadable, JOB, lambda: _job(run_folder / JOB))
    rounds = _read_or([], unreadable, ROUNDS, lambda: _rounds(run_folder))
    received, sent = _read_or((0, 0), unreadable, LEAKAGE, lambda: _bytes(run_folder))
    trouble = _read_or(None, unreadable, TROUBLE, lambda: _trouble(run_folder / TROUBLE))
    log = _read_or(
        Events(), unreadable, "the log of events", lambda: Events() if events is None else events.read()
    )

    planned = None if job is None else job.federate.rounds
    setups = [e for e in log.events if e.kind == "setup" and e.outcome == "done"]
    last = rounds[-1] if rounds else None
    standing = FederationStatus(
        role="owner",
        name=name,
        phase="running",
        healthy=True,
        why="",
        round=_under_way(len(rounds), planned),
        rounds=planned,
        rounds_done=len(rounds),
        cohort=None if job is None else job.clients_a_round,
        connected=setups[-1].clients if setups else None,
        clients=None if last is None else len(last.participants),
        absent=_absent(job, last),
        bytes_sent=sent,
        bytes_received=received,
        round_seconds=None if last is None else last.seconds,
        left_seconds=time_left([r.seconds for r in rounds], rounds=planned, done=len(rounds)),
        aborts=log.totals.aborts,
        last=log.events[-1] if log.events else None,
        skipped=log.skipped,
        read_at=now,
    )
    quiet = _quiet_s(run_folder, standing, now)
    phase, healthy, why = _judged(standing, job, trouble=trouble, quiet_s=quiet)
    if unreadable:
        healthy, why = False, f"cannot be read: {', '.join(unreadable)}"
    return replace(standing, phase=phase, healthy=healthy, why=why)


def _judged(
    at: FederationStatus, job: FederationJob | None, *, trouble: str | None, quiet_s: float | None
) -> tuple[Phase, bool, str]:
    """Return the phase, whether it is healthy, and why."""
    done, planned = at.rounds_done, at.rounds
    so_far = f"{done} of {'?' if planned is None else planned} rounds done"
    if planned is not None and done >= planned:
        return "finished", True, "all rounds are done"
    begins = at.last is not None and at.last.kind == "start"
    if trouble is not None and not begins:  # at a start it is left from the call before
        return "stopped", False, f"ended with {trouble}, {so_far}; trouble.json says why"
    if at.last is not None and at.last.outcome == "aborted":
        return "stopped", False, f"ended with {at.last.reason}, {so_far}; the run's log says why"
    if at.last is not None and at.last.kind == "stop":
        return "stopped", True, f"was stopped, {so_far}; it resumes there"
    if quiet_s is None:
        return "waiting", True, "has not begun"
    if job is not None and quiet_s > job.federate.timeout_s:
        limit = duration(job.federate.timeout_s)
        return "running", False, f"silent for {duration(quiet_s)}, longer than federate.timeout_s ({limit})"
    if at.last is not None and at.last.kind == "start":
        return "running", True, "makes the proxy, waits for clients, or sends it to them"
    return "running", True, f"round {at.round} is under way"


def _under_way(done: int, planned: int | None) -> int | None:
    return done if planned is None or done < planned else max(0, planned - 1)


def _absent(job: FederationJob | None, last: _Round | None) -> tuple[str, ...]:
    if job is None or last is None or job.clients_a_round < len(job.clients):
        return ()
    return tuple(sorted({c.name for c in job.clients} - set(last.participants)))


def _quiet_s(run_folder: Path, at: FederationStatus, now: datetime) -> float | None:
    """Return the seconds since the last sign of the server; None if there was none."""
    signs = [] if at.last is None else [at.last.time.timestamp()]
    for name in (JOB, ROUNDS, WAITS):
        with suppress(FileNotFoundError):
            signs.append((run_folder / name).stat().st_mtime)
    return max(0.0, now.timestamp() - max(signs)) if signs else None


def _read_or(default: Any, unreadable: list[str], what: str, read: Any) -> Any:
    """Return what `read` returns or, if it fails, the default; then `what` is noted as unreadable."""
    try:
        return read()
    except FedProxyError:
        unreadable.append(what)
        return default


def _job(file: Path) -> FederationJob | None:
    if not file.exists():
        return None
    try:
        return FederationJob.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file}: is damaged") from error


def _rounds(folder: Path) -> list[_Round]:
    return [_round(line) for line in RunFolder(path=folder).read_jsonl(ROUNDS)]


def _round(line: Mapping[str, Any]) -> _Round:
    """Return what is shown of a round's line; nothing else of it is kept."""
    try:
        participants: Sequence[object] = line["participants"]
        if not isinstance(participants, list) or not all(isinstance(p, str) for p in participants):
            raise TypeError
        return _Round(participants=tuple(str(p) for p in participants), seconds=float(line["seconds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{ROUNDS}: has a line that is no round") from error


def _bytes(folder: Path) -> tuple[int, int]:
    try:
        received, sent = ledger_bytes(RunFolder(path=folder).read_jsonl(LEAKAGE))
        return int(received), int(sent)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{LEAKAGE}: has a line that is no message") from error


def _trouble(file: Path) -> str | None:
    """Return the class of the error that ended the run."""
    if not file.exists():
        return None
    try:
        kind = read_json(file)[0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFolderError(f"{file}: is damaged") from error
    return kind if isinstance(kind, str) and kind.isidentifier() and len(kind) <= 64 else "an error"
