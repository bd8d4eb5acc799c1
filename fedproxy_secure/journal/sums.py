"""What the journal records of a round's sums: whose sum was unmasked, and what this client added.

`Journal` calls each function with a connection to its database, inside a transaction if it writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing

from fedproxy_secure.errors import ProtocolAborted


def check_survivors(
    database: sqlite3.Connection, run: str, round: int, names: list[str], refuse_differencing: bool
) -> None:
    """Raise `ProtocolAborted` if unmasking the round for `names`, sorted, could tell clients apart.

    That is, if the round was unmasked for other clients or, with `refuse_differencing`, if an earlier sum
    of any run and round was over one client more or one client less.
    """
    recorded = survivors(database, run, round)
    if recorded is not None and recorded != names:
        raise ProtocolAborted(f"survivors: must be those that round {round} was unmasked for before")
    if not refuse_differencing:
        return
    with closing(database.execute("SELECT survivors FROM rounds WHERE survivors IS NOT NULL")) as rows:
        for (earlier,) in rows:
            if len(set(names) ^ set(json.loads(earlier))) == 1:
                raise ProtocolAborted(
                    "survivors: must not differ by one client from those of an earlier sum: the two sums "
                    "together would reveal that client's part"
                )


def survivors(database: sqlite3.Connection, run: str, round: int) -> list[str] | None:
    """Return the clients for which the round was unmasked, sorted; None if it was not unmasked."""
    row = database.execute(
        "SELECT survivors FROM rounds WHERE run = ? AND round = ?", (run, round)
    ).fetchone()
    if row is None or row[0] is None:
        return None
    names: list[str] = json.loads(row[0])
    return names


def write_survivors(database: sqlite3.Connection, run: str, round: int, names: list[str]) -> None:
    """Record for whom the round is unmasked. Raises `ProtocolAborted` if it was never begun."""
    written = database.execute(
        "UPDATE rounds SET survivors = ? WHERE run = ? AND round = ?", (json.dumps(names), run, round)
    ).rowcount
    if written != 1:
        raise ProtocolAborted(f"round {round}: was never begun in this run")


def keep_sent(
    database: sqlite3.Connection, run: str, round: int, values: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Store a round's values unless an earlier attempt stored some; return the stored ones.

    Values of rounds before the previous one are deleted.
    """
    database.execute("DELETE FROM sent WHERE run = ? AND round < ?", (run, round - 1))
    stored = sent(database, run, round)
    if stored:
        return stored
    rows = [(run, round, name, value) for name, value in values.items()]
    database.executemany("INSERT INTO sent VALUES (?, ?, ?, ?)", rows)
    return dict(values)


def sent(database: sqlite3.Connection, run: str, round: int) -> dict[str, bytes]:
    """Return the values that `keep_sent` stored for a round; empty if there are none."""
    rows = database.execute("SELECT name, value FROM sent WHERE run = ? AND round = ?", (run, round))
    return dict(rows.fetchall())
