"""Write events: around every message of a client, and around set-up and rounds of the server.

Writing events does not change what a party does: if an event cannot be written, the program's log says so
and the federation continues.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.monitor.event_log import VARIABLE, EventLog
from fedproxy_secure.monitor.events import Event, Kind, Party
from fedproxy_secure.record.leakage import Ledger

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict

log = logging.getLogger(__name__)

_GROUP = re.compile(r"round (\d{1,9})(?:, .*)?", re.ASCII | re.DOTALL)
_NUMBER_BYTES = 8


def note(party: Party, kind: Kind, **fields: Any) -> None:
    """Write an event that ends now, if `FEDPROXY_EVENTS` names a file; `fields` are those of `Event`."""
    events = EventLog.from_environment()
    if events is not None:
        note_in(events, party, kind, **fields)


def note_in(events: EventLog, party: Party, kind: Kind, **fields: Any) -> None:
    """Write an event that ends now into a log; `fields` are those of `Event`."""
    try:
        events.append(Event(time=datetime.now(UTC), party=party, kind=kind, **fields))
    except FedProxyError as error:
        log.warning("event %s is not written: %s", kind, error)


def noted(
    handler: Callable[[Message, Context], RecordDict],
) -> Callable[[Message, Context], RecordDict]:
    """Return a client app's handler that writes an event for each message, even if the handler fails.

    Bytes are those of the values in the messages' records, without what Flower and TLS add.
    """

    def answer(message: Message, context: Context) -> RecordDict:
        if VARIABLE not in os.environ:
            return handler(message, context)
        began, size, reply, reason = time.perf_counter(), _received(message), None, None
        try:
            reply = handler(message, context)
            return reply
        except BaseException as error:
            reason = type(error).__name__
            raise
        finally:
            note(
                "site",
                "message",
                round=_round_of(message.metadata.group_id),
                message=message.metadata.message_type,
                bytes_in=size,
                bytes_out=0 if reply is None else payload_bytes(reply),
                seconds=time.perf_counter() - began,
                outcome="done" if reason is None else "aborted",
                reason=reason,
            )

    return answer


@dataclass
class SetUp:
    """The results of set-up, which `set_up_noted` writes.

    `clients`: how many are connected. `shipped`: bytes of the proxy that were sent, by client's name.
    """

    clients: int = 0
    shipped: dict[str, int] = field(default_factory=dict)


@contextmanager
def set_up_noted() -> Iterator[SetUp]:
    """Write `start` and, when the block is left, `setup`; the block fills in the `SetUp`."""
    note("owner", "start")
    began, set_up, reason = time.perf_counter(), SetUp(), None
    try:
        yield set_up
    except BaseException as error:
        reason = type(error).__name__
        raise
    finally:
        note(
            "owner",
            "setup",
            clients=set_up.clients,
            bytes_out=sum(set_up.shipped.values()),
            seconds=time.perf_counter() - began,
            outcome="done" if reason is None else "aborted",
            reason=reason,
        )


def note_round(
    ledger: Ledger, *, began: float, clients: int | None = None, error: BaseException | None = None
) -> None:
    """Write the event of a round that is saved, or that ended with an error.

    Args:
        ledger: the round's leakage ledger.
        began: `time.perf_counter()` at its beginning.
        clients: how many took part.
        error: why it was aborted.
    """
    received, sent = ledger_bytes(ledger.rows.values())
    note(
        "owner",
        "round",
        round=ledger.round,
        clients=clients,
        bytes_in=received,
        bytes_out=sent,
        seconds=time.perf_counter() - began,
        outcome="done" if error is None else "aborted",
        reason=None if error is None else type(error).__name__,
    )


def ledger_bytes(rows: Any) -> tuple[int, int]:
    """Return the bytes that the server received and sent, from rows of a leakage ledger."""
    received = sent = 0
    for row in rows:
        if row["to"] != "server":
            sent += row["bytes"]
        elif not row.get("computed"):  # no message contained a computed sum
            received += row["bytes"]
    return received, sent


def payload_bytes(content: Mapping[str, Any]) -> int:
    """Return the bytes of the values in a message's records; a number counts as 8."""
    return sum(_bytes_of(value) for record in content.values() for value in record.values())


def _bytes_of(value: Any) -> int:
    if isinstance(value, list):
        return sum(_bytes_of(v) for v in value)
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, bytes):
        return len(value)
    data = getattr(value, "data", None)  # an array's, as Flower carries it
    return len(data) if isinstance(data, bytes) else _NUMBER_BYTES


def _received(message: Message) -> int:
    return payload_bytes(message.content) if message.has_content() else 0


def _round_of(group: str) -> int | None:
    """Return the round in the name of a group of messages, which the server chose; None without one."""
    match = _GROUP.fullmatch(group)
    return int(match[1]) if match else None
