"""The events of a party, one dataclass with strict checks, and totals over them.

An event reveals no secret of other parties. It has the time, the party, the kind of event, the round, the
type of the message, how many clients took part, bytes and seconds as the party itself measured them, and
the outcome, with only the class of the error. Not in it: records, losses, norms, updates, epsilon, names of
clients, paths, and the text of an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.quoting import quoted

MOST_REASONS = 32  # classes of errors with a count of their own; further ones count as `OTHER`
OTHER = "OtherError"

Party = Literal["owner", "site"]
Kind = Literal["start", "setup", "message", "round", "training", "stop"]
Outcome = Literal["done", "aborted"]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_MESSAGE = re.compile(r"[a-z][a-z0-9_.]{0,63}", re.ASCII)
_REASON = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_MOST = 2**53  # the largest valid count


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a party.

    Args:
        time: when it ended, in UTC; milliseconds are kept.
        party: whose log this is.
        kind: `start` and `stop` of a process, `setup` of the clients (at a site: of the way to the owner,
            if something is wrong there), `message` answered by a site, `training` that failed at a site
            whose answer hides it, or `round` tried by the owner.
        round: from 0; at a site the round that the owner names in her request.
        message: the type of the message, such as `train` or `query.mask`.
        clients: how many are connected (`setup`) or took part (`round`).
        bytes_in: payload received, in bytes.
        bytes_out: payload sent, in bytes.
        seconds: how long it took.
        outcome: `done` or `aborted`.
        reason: the class of the error if it was aborted; at a site's `setup` the check that fails.

    Raises `DataError` for a value of another type or out of its range.
    """

    time: datetime
    party: Party
    kind: Kind
    round: int | None = None
    message: str | None = None
    clients: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    outcome: Outcome = "done"
    reason: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.time, datetime) or self.time.tzinfo is None:
            raise DataError(f"event: time={quoted(self.time)}: must be a time in UTC")
        for name, choices in (("party", Party), ("kind", Kind), ("outcome", Outcome)):
            _check(name, getattr(self, name), getattr(self, name) in get_args(choices))
        for name in ("round", "clients"):
            value = getattr(self, name)
            _check(name, value, value is None or _is_count(value))
        for name in ("bytes_in", "bytes_out"):
            _check(name, getattr(self, name), _is_count(getattr(self, name)))
        _check("seconds", self.seconds, _is_seconds(self.seconds))
        for name, pattern in (("message", _MESSAGE), ("reason", _REASON)):
            value = getattr(self, name)
            _check(
                name, value, value is None or (isinstance(value, str) and bool(pattern.fullmatch(value)))
            )
        _check("reason", self.reason, (self.reason is not None) == (self.outcome == "aborted"))

    def fields(self) -> dict[str, Any]:
        """Return the event as a line holds it."""
        time = self.time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {**asdict(self), "time": time, "seconds": round(self.seconds, 6)}

    @classmethod
    def from_fields(cls, fields: Any) -> Event:
        """Return the event of a line. Raises `DataError` for anything but what `fields` returns."""
        if not isinstance(fields, dict) or set(fields) != set(cls.__dataclass_fields__):
            raise DataError(f"event: {quoted(fields)}: must have exactly the fields of an event")
        time = fields["time"]
        if not isinstance(time, str) or not _TIME.fullmatch(time):
            raise DataError(f"event: time={quoted(time)}: must be like 2026-01-31T12:00:00.000Z")
        try:
            return cls(**{**fields, "time": datetime.fromisoformat(time)})
        except ValueError:
            raise DataError(f"event: time={quoted(time)}: is no time") from None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over all events of a log, including those that were rotated away.

    `messages` counts events of that kind. `rounds` counts finished events `train` or `round` whose round is
    later than all before; `last_round` is the number of the last such round, -1 before the first. `aborts`
    counts aborted events by the class of their error.
    """

    messages: int = 0
    rounds: int = 0
    last_round: int = -1
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    aborts: Mapping[str, int] = field(default_factory=dict)

    def plus(self, event: Event) -> Totals:
        """Return the totals with one more event."""
        aborts = self.aborts
        if event.reason is not None and event.kind != "stop":  # the round's own event counts it
            known = event.reason in aborts or len(aborts) < MOST_REASONS
            reason = event.reason if known else OTHER
            aborts = {**aborts, reason: aborts.get(reason, 0) + 1}
        trained = event.outcome == "done" and (event.kind == "round" or event.message == "train")
        new_round = trained and event.round is not None and event.round > self.last_round
        return replace(
            self,
            messages=self.messages + (event.kind == "message"),
            rounds=self.rounds + new_round,
            last_round=event.round if new_round and event.round is not None else self.last_round,
            bytes_in=self.bytes_in + event.bytes_in,
            bytes_out=self.bytes_out + event.bytes_out,
            seconds=self.seconds + event.seconds,
            aborts=aborts,
        )

    def joined(self, other: Totals) -> Totals:
        """Return the totals of both."""
        reasons = [*self.aborts, *(r for r in other.aborts if r not in self.aborts)]
        return Totals(
            messages=self.messages + other.messages,
            rounds=self.rounds + other.rounds,
            last_round=max(self.last_round, other.last_round),
            bytes_in=self.bytes_in + other.bytes_in,
            bytes_out=self.bytes_out + other.bytes_out,
            seconds=self.seconds + other.seconds,
            aborts={r: self.aborts.get(r, 0) + other.aborts.get(r, 0) for r in reasons},
        )

    @classmethod
    def from_fields(cls, fields: Any) -> Totals:
        """Return the totals that a log carries on. Raises `DataError` for anything else."""
        if not isinstance(fields, dict) or set(fields) != set(cls.__dataclass_fields__):
            raise DataError(f"totals: {quoted(fields)}: must have exactly the fields of totals")
        for name in ("messages", "rounds", "bytes_in", "bytes_out"):
            _check(name, fields[name], _is_count(fields[name]))
        _check(
            "last_round",
            fields["last_round"],
            fields["last_round"] == -1 or _is_count(fields["last_round"]),
        )
        _check("seconds", fields["seconds"], _is_seconds(fields["seconds"]))
        aborts = fields["aborts"]
        sound = isinstance(aborts, dict) and len(aborts) <= MOST_REASONS + 1
        _check(
            "aborts",
            aborts,
            sound and all(_REASON.fullmatch(k) and _is_count(v) for k, v in aborts.items()),
        )
        return cls(**fields)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST


def _check(name: str, value: object, sound: bool) -> None:
    if not sound:
        raise DataError(f"event: {name}={quoted(value)}: is not what an event may hold")
