"""The leakage ledger: which messages were sent, to whom, and what they reveal.

`ledger.jsonl` has one JSON line for each round and kind of message: `round`, `message`, `to`, `count`,
`bytes` (of payload), `reveals`; `computed: true` for a sum that the server computed and no message
contained; `vector: true` for a message that carries weights or updates, sealed or open (other messages are
keys, shares, names and signatures); `aborted: true` if the round did not finish. Protections with secure
sums note each of their messages. Where a client sends one message per round, the protection states its size
and what it reveals.

The ledger lacks the messages of a round during which the server's process was killed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import LEAKAGE


@dataclass(kw_only=True)
class Ledger:
    """The counts of one round, by kind of message."""

    round: int
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def note(
        self,
        message: str,
        *,
        to: str,
        reveals: str,
        payload_bytes: int,
        computed: bool = False,
        vector: bool = False,
    ) -> None:
        """Count one message of this kind.

        Args:
            message: the kind of message.
            to: who received it.
            reveals: what it reveals to them.
            payload_bytes: its size.
            computed: whether `to` computed it, and no message contained it.
            vector: whether it carries weights or updates.
        """
        marks = {name: True for name, set_ in (("computed", computed), ("vector", vector)) if set_}
        new = {"message": message, "to": to, "reveals": reveals, "count": 0, "bytes": 0, **marks}
        row = self.rows.setdefault((message, to), new)
        row["count"] += 1
        row["bytes"] += payload_bytes

    def write(self, folder: RunFolder, *, aborted: bool = False) -> None:
        """Append the round's lines. `aborted`: these messages were sent, but the round did not finish."""
        mark = {"aborted": True} if aborted else {}
        for row in self.rows.values():
            folder.append_jsonl(LEAKAGE, {"round": self.round, **row, **mark})
