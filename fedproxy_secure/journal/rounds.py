"""The rounds and steps that a client may still answer: each step once, each round on one set of terms.

A **run** is what server and clients agreed on (`FederationJob.agreed_sha256`), a **round** one step of its
training, an **attempt** one try at a round. The newest attempt is the one under way; beginning another
attempt ends it. A client calls these methods of `Journal` before it answers, and answers only if they
return:

    begin    grants an attempt that is newer than all before it in its run, with the clip, broadcast and
             cohort of the round's first attempt
    take     grants a step of the attempt under way that was never taken, while no other step is computed
    put      ends a step; grants its answer if the attempt is still under way
    release  grants the last step, if the round was unmasked for the same survivors or not at all, and ends
             the attempt

Guarantees, as long as the file is kept: a client answers each step of an attempt once. All attempts at a
round have the same clip, broadcast adapter and cohort, and this client sends the same values in all of
them. All sums of a round that this client helped to unmask have the same survivors. With one policy and one
seed there is one run.

Not guaranteed: anything after the file is replaced by an older copy together with the second file, which
records how often it was written (`check_not_older`).

Why this holds: a method that grants something writes that to the disk, in one transaction, before it
returns. So of two messages that arrive at once only one is granted, whichever processes read them, in
whichever order.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.journal import newest, sums
from fedproxy_secure.journal.store import check_journal, journal_file, reading, writing


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A server's request to begin an attempt; `context` is the hash of its terms, 32 bytes."""

    run: str
    round: int
    attempt: int
    context: bytes
    clip: float
    broadcast_sha256: bytes
    cohort: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Journal:
    """One client's journal, in the folder of its key.

    Raises `ConfigError` if the file is missing, readable by other users or another client's, and
    `ProtocolAborted` if it is damaged.
    """

    folder: Path
    client: str

    def __post_init__(self) -> None:
        check_journal(self.file, self.client)

    @property
    def file(self) -> Path:
        """The database file."""
        return journal_file(self.folder, self.client)

    def sequence(self) -> int:
        """Return how often the journal was written; a newer state has a larger number."""
        with reading(self.file) as database:
            return int(database.execute("SELECT sequence FROM journal").fetchone()[0])

    def check_not_older(
        self, *, sequence: int = 0, run: str = "", ledger_events: Callable[[], int] = lambda: 0
    ) -> None:
        """Raise `ProtocolAborted` if the journal or the privacy ledger was replaced by an older copy.

        Args:
            sequence: the last `sequence` that Flower's state saw. The journal's must not be below it, nor
                below the number in the file beside the journal.
            run: whose privacy ledger is checked.
            ledger_events: counts the events in that ledger, which must not be fewer than the journal
                recorded. It is called after the journal was read, because both may grow meanwhile.
        """
        # read before the journal's own number, which may grow meanwhile
        sequence = max(sequence, newest.remembered(self.file))
        with reading(self.file) as database:
            own = database.execute("SELECT sequence FROM journal").fetchone()[0]
            row = database.execute("SELECT events FROM ledgers WHERE run = ?", (run,)).fetchone()
        events = 0 if row is None else row[0]
        if own < sequence:
            raise ProtocolAborted(
                f"journal: was written {own} times; must be >= {sequence}: an older copy was restored"
            )
        if (counted := ledger_events()) < events:
            raise ProtocolAborted(
                f"privacy ledger: has {counted} events; must be >= {events}: an old copy was restored"
            )

    def note_ledger(self, *, run: str, events: int) -> None:
        """Record how many events the privacy ledger of a run has; a larger recorded number stays."""
        with writing(self.file) as database:
            database.execute(
                "INSERT INTO ledgers VALUES (?, ?)"
                " ON CONFLICT (run) DO UPDATE SET events = max(events, excluded.events)",
                (run, events),
            )

    def agree(self, *, policy: bytes, seed: int, run: str, roster_sha256: bytes) -> None:
        """Bind a policy and a seed to the first run and roster that are asked for under them.

        Raises `ProtocolAborted` for another run, because each would give a server extra rounds, and for
        another roster, because new members could outnumber the honest clients in the middle of a run.
        """
        with writing(self.file) as database:
            database.execute(
                "INSERT OR IGNORE INTO agreed VALUES (?, ?, ?, ?)", (policy, seed, run, roster_sha256)
            )
            first, roster = database.execute(
                "SELECT run, roster_sha256 FROM agreed WHERE policy = ? AND seed = ?", (policy, seed)
            ).fetchone()
            if first != run:
                raise ProtocolAborted(
                    f"run {run[:12]}: must be {first[:12]}, to which this policy's seed {seed} is bound; "
                    "for another proxy or plan, use another seed or policy"
                )
            if roster != roster_sha256:
                raise ProtocolAborted(
                    f"roster: must be the one that run {run[:12]} began with; a run's roster is fixed"
                )

    def begin(self, asked: Attempt) -> None:
        """Grant an attempt, with its first step being computed, and end the attempt under way.

        Raises `ProtocolAborted` unless it is newer than all attempts of its run and has the clip, broadcast
        adapter and cohort of the round's first attempt.
        """
        with writing(self.file) as database:
            seen = database.execute(
                "SELECT round, attempt FROM attempts WHERE run = ?"
                " ORDER BY round DESC, attempt DESC LIMIT 1",
                (asked.run,),
            ).fetchone()
            if seen is not None and (asked.round, asked.attempt) <= seen:
                raise ProtocolAborted(
                    f"round {asked.round}, attempt {asked.attempt}: must come after {seen[0]}, {seen[1]}, "
                    "which this key has answered"
                )
            cohort = json.dumps(sorted(asked.cohort))
            database.execute(
                "INSERT OR IGNORE INTO rounds VALUES (?, ?, ?, ?, ?, NULL)",
                (asked.run, asked.round, asked.clip, asked.broadcast_sha256, cohort),
            )
            clip, broadcast, first_cohort = database.execute(
                "SELECT clip, broadcast_sha256, cohort FROM rounds WHERE run = ? AND round = ?",
                (asked.run, asked.round),
            ).fetchone()
            if clip != asked.clip:
                raise ProtocolAborted(f"clip {asked.clip:g}: must be {clip:g}, as asked for in this round")
            if broadcast != asked.broadcast_sha256:
                raise ProtocolAborted(
                    f"broadcast adapter: round {asked.round} was asked for with another one"
                )
            if first_cohort != cohort:
                raise ProtocolAborted(f"cohort: round {asked.round} was asked for with other clients")
            database.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, ?)",
                (asked.run, asked.round, asked.attempt, asked.context),
            )
            _end(database)
            database.execute("INSERT INTO current VALUES (?, 1)", (asked.context,))

    def put(self, context: bytes, kept: Mapping[str, bytes]) -> None:
        """Store what the next step needs; after that, the answer to the current step may leave.

        Raises `ProtocolAborted` if the attempt is no longer under way; the answer must then not leave.
        """
        with writing(self.file) as database:
            changed = database.execute(
                "UPDATE current SET busy = 0 WHERE context = ? AND busy = 1", (context,)
            ).rowcount
            if changed != 1:
                raise ProtocolAborted("attempt: ended while this step was computed")
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", kept.items())

    def take(self, step: str) -> dict[str, bytes]:
        """Grant a step of the attempt under way; return what `put` stored for it, and delete that.

        Raises `ProtocolAborted` if no attempt is under way, another step is being computed, or this step
        was taken before.
        """
        with writing(self.file) as database:
            row = database.execute("SELECT context, busy FROM current").fetchone()
            if row is None:
                raise ProtocolAborted(f"client {self.client}: has no attempt under way")
            context, busy = row
            if busy:
                raise ProtocolAborted(
                    f"{step}: asked while another step is answered; each runs once, alone"
                )
            try:
                database.execute("INSERT INTO steps VALUES (?, ?)", (context, step))
            except sqlite3.IntegrityError:
                raise ProtocolAborted(f"{step}: was asked for before; each step runs once") from None
            database.execute("UPDATE current SET busy = 1")
            kept = dict(database.execute("SELECT name, value FROM kept").fetchall())
            database.execute("DELETE FROM kept")
            return kept

    def check_survivors(
        self, *, run: str, round: int, survivors: Sequence[str], refuse_differencing: bool
    ) -> None:
        """Raise `ProtocolAborted` if `release` would now refuse these survivors."""
        with reading(self.file) as database:
            sums.check_survivors(database, run, round, sorted(survivors), refuse_differencing)

    def release(
        self,
        context: bytes,
        *,
        run: str,
        round: int,
        survivors: Sequence[str],
        refuse_differencing: bool,
        once: bool = False,
    ) -> None:
        """Record for whom the round is unmasked, and end the attempt; after that, the answer may leave.

        Args:
            context: of the attempt.
            run: of the attempt.
            round: of the attempt.
            survivors: the clients whose vectors are in the sum.
            refuse_differencing: whether to refuse survivors that differ by one client from those of any
                earlier sum.
            once: whether to refuse a round that was unmasked before: its weights may differ between
                attempts, and so its sums.

        Raises `ProtocolAborted` if the attempt is no longer under way, the round was unmasked for other
        survivors, or one of the refusals applies.
        """
        names = sorted(survivors)
        with writing(self.file) as database:
            _check_under_way(database, context, "this step")
            sums.check_survivors(database, run, round, names, refuse_differencing)
            if once and sums.survivors(database, run, round) is not None:
                raise ProtocolAborted(f"round {round}: was unmasked before; its weights may be others now")
            sums.write_survivors(database, run, round, names)
            _end(database)

    def open_once(self, *, run: str, round: int) -> None:
        """Grant the decryption of a round's cosines, once.

        Raises `ProtocolAborted` if they were decrypted before. Whether products that a server made up
        can be decrypted tells something about the vectors in them.
        """
        with writing(self.file) as database:
            try:
                database.execute("INSERT INTO opened VALUES (?, ?)", (run, round))
            except sqlite3.IntegrityError:
                raise ProtocolAborted(f"round {round}: its cosines were opened before") from None

    def keep_sent(
        self, context: bytes, *, run: str, round: int, values: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """Store what this client adds to a round's sums, and return what it must add in every attempt.

        Values that an earlier attempt stored stay and are returned. Training may not repeat to the bit, and
        a second set of values would show in the difference of two sums. Values of rounds before the
        previous one are deleted.

        Raises `ProtocolAborted` if the attempt is no longer under way.
        """
        with writing(self.file) as database:
            _check_under_way(database, context, "its update")
            return sums.keep_sent(database, run, round, values)

    def sent(self, *, run: str, round: int) -> dict[str, bytes]:
        """Return the values that `keep_sent` stored for a round; empty if there are none."""
        with reading(self.file) as database:
            return sums.sent(database, run, round)


def _check_under_way(database: sqlite3.Connection, context: bytes, what: str) -> None:
    """Raise `ProtocolAborted` unless this attempt is under way and a step of it is being computed."""
    row = database.execute("SELECT busy FROM current WHERE context = ?", (context,)).fetchone()
    if row != (1,):
        raise ProtocolAborted(f"attempt: ended while {what} was computed")


def _end(database: sqlite3.Connection) -> None:
    """End the attempt under way, and delete what was stored for its next step."""
    database.execute("DELETE FROM current")
    database.execute("DELETE FROM kept")
