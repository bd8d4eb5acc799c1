"""The status of a site in a federation, read from her own log of events, journal and privacy ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from fedproxy_secure.config.kinds import PROTECTIONS
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.errors import DataError, FedProxyError
from fedproxy_secure.federate.client_policy import ClientPolicy
from fedproxy_secure.journal.answered import Answered, answered
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import journal_file
from fedproxy_secure.monitor.event_log import EventLog, Events
from fedproxy_secure.monitor.events import Event
from fedproxy_secure.monitor.state import FederationStatus, Phase, Spending, time_left
from fedproxy_secure.runtime.files.names import PRIVACY_LEDGER
from fedproxy_secure.runtime.progress import duration

SILENT_S = 3600.0  # without a message for this time, the status is unhealthy


def site_standing(policy: ClientPolicy, *, events: EventLog) -> FederationStatus:
    """Return the status of a policy's site.

    Args:
        policy: the site's own; it names her journal (`protect.keys`) and her ledger (`privacy.ledger`).
        events: her log.

    If a file cannot be read, the status is unhealthy and names the file; nothing is raised.
    """
    unreadable: list[str] = []
    log, answered, spending = Events(), None, None
    try:
        log = events.read()
    except FedProxyError:
        unreadable.append("the log of events")
    try:
        answered = _journal(policy)
    except FedProxyError:
        unreadable.append("the journal")
    totals, seconds = log.totals, _rounds_s(log.events)
    last_trained = totals.last_round if totals.last_round >= 0 else None
    done = totals.rounds if answered is None else answered.opened
    round_number = last_trained if answered is None else answered.round
    try:
        spending = _spending(policy, begun=last_trained is not None)
    except FedProxyError:
        unreadable.append("the privacy ledger")

    standing = FederationStatus(
        role="site",
        name=policy.client.name,
        phase="running",
        healthy=True,
        why="",
        round=round_number,
        rounds=policy.rounds,
        rounds_done=done,
        cohort=None if answered is None else answered.cohort,
        messages=totals.messages,
        bytes_sent=totals.bytes_out,
        bytes_received=totals.bytes_in,
        round_seconds=seconds[-1] if seconds else None,
        left_seconds=time_left(
            seconds, rounds=policy.rounds, done=0 if round_number is None else round_number + 1
        ),
        spending=spending,
        aborts=totals.aborts,
        last=log.events[-1] if log.events else None,
        skipped=log.skipped,
        read_at=datetime.now(UTC),
    )
    complete = True if answered is None else answered.complete
    phase, healthy, why = _judged(standing, complete=complete)
    failed = next((e.round for e in reversed(log.events) if e.kind == "training"), None)
    if healthy and failed is not None and failed == _last_trained(log.events):
        healthy, why = (
            False,
            f"training failed in round {failed}, so zeros were sent in its place; see this site's log",
        )
    if unreadable:
        healthy, why = False, f"cannot be read: {', '.join(unreadable)}"
    return replace(standing, phase=phase, healthy=healthy, why=why)


def _last_trained(events: Sequence[Event]) -> int | None:
    """Return the round of the last message that asked this site to train; None if there was none."""
    return next((e.round for e in reversed(events) if e.message == "train"), None)


def _judged(at: FederationStatus, *, complete: bool) -> tuple[Phase, bool, str]:
    """Return the phase, whether it is healthy, and why."""
    connection = (
        at.last if at.last is not None and (at.last.party, at.last.kind) == ("site", "setup") else None
    )
    if connection is not None and connection.outcome == "aborted":
        line = f"waits: the preflight check {connection.reason!r} fails; see this site's log"
        return "waiting", False, line
    if at.round is not None and at.rounds is not None and at.round >= at.rounds - 1 and complete:
        return "finished", True, "the last round is done"
    if at.last is None or (at.round is None and (connection is not None or at.last.kind == "start")):
        return "waiting", True, "waits for the owner's first message"
    if at.last.kind == "stop":
        return "stopped", True, "was stopped; it resumes when it is started again"
    if at.last.outcome == "aborted":
        what = at.last.message or at.last.kind
        return "running", False, f"{what} ended with {at.last.reason}; this site's own log says why"
    quiet = at.read_at - at.last.time
    if quiet > timedelta(seconds=SILENT_S):
        return "running", False, f"no message for {duration(quiet.total_seconds())}"
    if at.round is None:
        return "running", True, "is set up, and waits for its first round"
    return "running", True, f"round {at.round} was the last one asked for"


def _rounds_s(events: Sequence[Event]) -> list[float]:
    """Return the seconds from the beginning of each round to that of the next, oldest first."""
    begun: dict[int, float] = {}
    for event in events:
        if event.message == "train" and event.round is not None and event.outcome == "done":
            begun[event.round] = event.time.timestamp() - event.seconds
    numbers = sorted(begun)
    pairs = pairwise(numbers)
    return [begun[b] - begun[a] for a, b in pairs if b == a + 1 and begun[b] >= begun[a]]


def _journal(policy: ClientPolicy) -> Answered | None:
    """Return the rounds in the site's journal; None without secure sums, or before the first round."""
    scheme, keys = policy.protect.scheme, policy.protect.keys
    if keys is None or not PROTECTIONS.get(scheme, setting="protect.scheme").needs_keys:
        return None
    if not os.path.exists(journal_file(Path(keys), policy.client.name)):  # raises nothing
        raise DataError("journal: is missing, or in a folder that cannot be read")
    return answered(Journal(folder=Path(keys), client=policy.client.name))


def _spending(policy: ClientPolicy, *, begun: bool) -> Spending | None:
    """Return the site's spending; None without differential privacy.

    Raises `DataError` if a site whose rounds have `begun` has no ledger, as the spending is then unknown.
    """
    privacy = policy.privacy
    if privacy.unit == "none" or privacy.ledger is None:
        return None
    file = Path(privacy.ledger) / f"{policy.client.name}{PRIVACY_LEDGER}"
    try:
        status = file.stat()
    except FileNotFoundError:
        if begun:
            raise DataError("privacy ledger: is missing") from None
        epsilon = 0.0
    except OSError as error:
        raise DataError("privacy ledger: cannot be read") from error
    else:
        epsilon = _epsilon(file, status.st_mtime_ns, status.st_size)
    return Spending(epsilon=epsilon, limit=privacy.limit, delta=privacy.target_delta)


@lru_cache(maxsize=8)  # the tightest accountant takes a second, and a ledger changes once a round
def _epsilon(file: Path, _changed_ns: int, _size: int) -> float:
    spent = read_all(file.parent).get(file.name.removesuffix(PRIVACY_LEDGER))
    if spent is None:
        raise DataError("privacy ledger: cannot be read")
    return spent.epsilon
