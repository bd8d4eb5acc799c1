"""The progress of the newest run in a client's journal, for the status page and metrics.

This module only reads: it never grants an answer, and nothing that it returns is secret.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fedproxy_secure.errors import DataError
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import reading


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The progress of the run in which a client took part last.

    Attributes:
        round: the last round that was begun, from 0.
        opened: how many rounds of the run were unmasked with this client's help.
        cohort: the number of clients in the last round's cohort.
        complete: whether the last round was unmasked.
    """

    round: int
    opened: int
    cohort: int
    complete: bool


def answered(journal: Journal) -> Answered | None:
    """Return the progress of a journal's newest run, read in one transaction; None before the first round.

    Raises `ProtocolAborted` for a file that is no database, `DataError` for one with contents that no
    journal writes.
    """
    with reading(journal.file) as database:
        database.execute("BEGIN")  # all queries read one state, whatever is written meanwhile
        newest = database.execute("SELECT run, round FROM attempts ORDER BY rowid DESC LIMIT 1").fetchone()
        if newest is None:
            return None
        run, number = newest
        row = database.execute(
            "SELECT cohort, survivors FROM rounds WHERE run = ? AND round = ?", (run, number)
        ).fetchone()
        (opened,) = database.execute(
            "SELECT count(*) FROM rounds WHERE run = ? AND survivors IS NOT NULL", (run,)
        ).fetchone()
    try:
        cohort, survivors = row
        size = len(json.loads(cohort))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{journal.file}: round {number} of its newest run is damaged; put back what was there"
        ) from error
    return Answered(round=number, opened=opened, cohort=size, complete=survivors is not None)
