"""What a party's federation does now, as plain facts that a page, metrics and a command show.

What is shown, and why it hides nothing that protection hides:

    both    round, rounds, rounds done, cohort size   in the job, which every party has
            bytes, seconds, time of the last event    the party's own measurements of its own messages
            aborts by class of error                  counts; never the text, which may quote a client
            when the owner's certificate ends         every site reads it off the connection
    owner   how many clients are connected, took      she carries the messages, and every client of a round
            part, and the names of those absent       signs for whom it is unmasked
    site    her own epsilon, its limit and delta      from her own ledger; the owner is not told
            how often her training failed             from her own events; the owner is sent noisy zeros

Never shown: a record, a path, a loss (under differential privacy clients keep theirs), a norm, a weight, a
number of one client. The exact epsilon of a site follows from how many records she has, and whether her
training fails may follow from what they say. Both are on her page alone: do not let the owner scrape it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Literal

from fedproxy_secure.monitor.events import Event, Party

Phase = Literal["waiting", "running", "finished", "stopped"]
RENEW_DAYS = 30  # what is left of a certificate when its end is warned of
PACED = 5  # the last rounds, by whose median the time left is reckoned


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What a site has spent of its records' privacy: (epsilon, delta) so far, and the limit on epsilon."""

    epsilon: float
    limit: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class FederationStatus:
    """What a party's federation does now.

    Args:
        role: `owner` or `site`.
        name: the owner's name for the federation, or the site's.
        phase: `waiting` for its beginning, `running`, `finished`, or `stopped` before its end.
        healthy: False if somebody should look.
        why: what the phase rests on, or what is wrong; one line.
        round: the round under way or, at a site, last asked for; from 0. None before the first.
        rounds: how many the job has; None if unknown.
        rounds_done: the owner's saved rounds; at a site those whose sum she helped to open or, without
            secure sums, in which she trained.
        cohort: how many clients a round is meant for.
        connected: how many clients were connected after set-up; owner alone.
        clients: how many took part in the last saved round; owner alone.
        absent: names of clients that did not take part in it; owner alone, with all clients in each round.
        messages: how many messages a site has answered.
        bytes_sent: payload sent, in bytes, without what Flower and TLS add.
        bytes_received: payload received.
        round_seconds: the last round, from its beginning to its end or, at a site, to the next one.
        left_seconds: the rounds left times the median of the last `PACED` rounds.
        certificate_ends: when the owner's certificate does; owner alone.
        spending: a site's own, with differential privacy.
        aborts: aborted rounds, messages, set-ups and trainings by the class of their error.
        last: the last event.
        skipped: lines of the log that are no event.
        read_at: when all this was read.
    """

    role: Party
    name: str
    phase: Phase
    healthy: bool
    why: str
    round: int | None = None
    rounds: int | None = None
    rounds_done: int = 0
    cohort: int | None = None
    connected: int | None = None
    clients: int | None = None
    absent: tuple[str, ...] = ()
    messages: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    round_seconds: float | None = None
    left_seconds: float | None = None
    certificate_ends: datetime | None = None
    spending: Spending | None = None
    aborts: Mapping[str, int] = field(default_factory=dict)
    last: Event | None = None
    skipped: int = 0
    read_at: datetime = field(default_factory=lambda: datetime.now(UTC))


def time_left(seconds: Sequence[float], *, rounds: int | None, done: int) -> float | None:
    """Return the seconds left by the pace of the last rounds; None if pace or number are unknown."""
    if rounds is None or not seconds:
        return None
    return median(seconds[-PACED:]) * max(0, rounds - done)
