"""Labelled values that a client keeps in its journal between the steps of another package's protection.

A label is used once in a run: `keep_once` grants it, and `take_once` returns its value and deletes that.
Each writes to the disk, in one transaction, before it returns, so of two messages that arrive at once only
one is granted (`journal.rounds` says what else a journal guarantees).

Not guaranteed: anything about the order of labels, or that a label of another run is refused.
"""

from __future__ import annotations

import sqlite3

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import writing


def keep_once(journal: Journal, *, run: str, label: str, value: bytes) -> None:
    """Store a value under a label of a run. Raises `ProtocolAborted` if the label was used before."""
    with writing(journal.file) as database:
        try:
            database.execute("INSERT INTO labelled VALUES (?, ?, ?)", (run, label, value))
        except sqlite3.IntegrityError:
            raise ProtocolAborted(f"{label}: was answered before; each step runs once") from None


def take_once(journal: Journal, *, run: str, label: str) -> bytes:
    """Return the value under a label of a run, and delete it; the label stays used.

    Raises `ProtocolAborted` if nothing was kept under the label, or the value was taken before.
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
