"""Labelled values that a client keeps in its journal between the steps of another package's protection.

A label's value is taken once in a run. Until then a newer value takes its place, because a round that was
aborted is asked for again. Each call writes to the disk, in one transaction, before it returns, so of two
messages that arrive at once only one takes the value. `journal.rounds` says what else a journal guarantees.

Not guaranteed: anything about the order of labels, or that a label of another run is refused.
"""

from __future__ import annotations

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import writing


def keep_until_taken(journal: Journal, *, run: str, label: str, value: bytes) -> None:
    """Store a value under a label of a run, in place of one that was not taken.

    Raises `ProtocolAborted` if a value under this label was taken.
    """
    with writing(journal.file) as database:
        stored = database.execute(
            "INSERT INTO labelled VALUES (?, ?, ?) ON CONFLICT (run, label)"
            " DO UPDATE SET value = excluded.value WHERE value IS NOT NULL",
            (run, label, value),
        ).rowcount
        if not stored:
            raise ProtocolAborted(f"{label}: was taken before; each step runs once")


def take_once(journal: Journal, *, run: str, label: str) -> bytes:
    """Return the value under a label of a run, and delete it; the label stays used.

    Raises `ProtocolAborted` if nothing was kept under the label, or a value was taken before.
    """
    with writing(journal.file) as database:
        row = database.execute(
            "SELECT value FROM labelled WHERE run = ? AND label = ?", (run, label)
        ).fetchone()
        if row is None:
            raise ProtocolAborted(f"{label}: nothing is kept under it")
        if row[0] is None:
            raise ProtocolAborted(f"{label}: was taken before; each step runs once")
        database.execute("UPDATE labelled SET value = NULL WHERE run = ? AND label = ?", (run, label))
        return bytes(row[0])
