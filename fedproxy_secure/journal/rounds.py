"""The rounds and steps that a client may still answer: each step once, each round on one set of terms.

A **run** is what server and clients agreed on (`FederationJob.agreed_sha256`), a **round** one step of its
training, an **attempt** one try at a round. The newest attempt is the one under way; beginning another ends
it. Every method that grants something writes it to the disk, in one transaction, before it returns. So of
two messages that arrive at once only one is granted, whichever processes read them, in whichever order.

    begin    (run, round, attempt) is newer than all before; the round's clip, broadcast and cohort are
             those it was first asked with
    take     a step of the attempt under way that was never taken, while no other step is being answered
    put      the attempt is still the one under way: only then may the answer leave
    release  the round was unmasked for these survivors or for none; the attempt is over

Guarantees, as long as the file is kept: a client answers each step of an attempt once; all attempts at a
round share its clip, its broadcast adapter, its cohort and what this client sends; all its sums that this
client helped to unmask have the same survivors. With one policy and one seed there is one run. Not
guaranteed: anything after the file is replaced by an older copy together with the second file that
remembers how new it was (`check_not_older`).
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
    """The request by which a server begins an attempt; `context` is the terms' hash, 32 bytes."""

    run: str
    round: int
    attempt: int
    context: bytes
    clip: float
    broadcast_sha256: bytes
    cohort: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Journal:
    """One client's journal. Raises `ConfigError` if the file is missing, open to others or not its own."""

    folder: Path
    client: str

    def __post_init__(self) -> None:
        check_journal(self.file, self.client)

    @property
    def file(self) -> Path:
        """The database file."""
        return journal_file(self.folder, self.client)

    def sequence(self) -> int:
        """Return how many times the journal was written; a newer state has a larger number."""
        with reading(self.file) as database:
            return int(database.execute("SELECT sequence FROM journal").fetchone()[0])

    def check_not_older(
        self, *, sequence: int = 0, run: str = "", ledger_events: Callable[[], int] = lambda: 0
    ) -> None:
        """Raise `ProtocolAborted` if the journal or the privacy ledger was replaced by an older copy.

        The journal's own number must not be smaller than the one in the file beside it, nor than
        `sequence`, the last one that Flower's state saw.
        `ledger_events`: counts the events in the privacy ledger of `run`; there must not be fewer than the
        journal remembers. It is called after the journal was read, since both may grow meanwhile.
        """
        # before the journal's own, which may grow meanwhile
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
        """Remember how many events the privacy ledger of a run has."""
        with writing(self.file) as database:
            database.execute(
                "INSERT INTO ledgers VALUES (?, ?)"
                " ON CONFLICT (run) DO UPDATE SET events = max(events, excluded.events)",
                (run, events),
            )

    def agree(self, *, policy: bytes, seed: int, run: str, roster_sha256: bytes) -> None:
        """Bind a policy and a seed to the run and the roster that are first asked for under them.

        Raises `ProtocolAborted` for another run, which would give a server any number of extra rounds, or
        another roster, whose new members could outnumber the honest clients in the middle of a run.
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
        """Grant an attempt and end the one before.

        Raises `ProtocolAborted` unless it is newer than all attempts of its run, and the round's clip,
        broadcast adapter and cohort are those of the round's first attempt.
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
        """Keep what the next step needs; the answer of this one may leave when this has returned.

        Raises `ProtocolAborted` if the attempt is not under way any more: the answer must not leave.
        """
        with writing(self.file) as database:
            changed = database.execute(
                "UPDATE current SET busy = 0 WHERE context = ? AND busy = 1", (context,)
            ).rowcount
            if changed != 1:
                raise ProtocolAborted("attempt: ended while this step was computed")
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", kept.items())

    def take(self, step: str) -> dict[str, bytes]:
        """Consume a step of the attempt under way and return what was kept for it, which is forgotten.

        Raises `ProtocolAborted` if no attempt is under way, another step is being answered, or this one
        was asked for before.
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
        """Raise `ProtocolAborted` if `release` would be refused now."""
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
        """Write down for whom the round is unmasked, and end the attempt; the answer may leave after it.

        Raises `ProtocolAborted` if the round was unmasked for others, if the attempt is not under way any
        more, with `refuse_differencing` if any earlier sum was over one client more or one less, and with
        `once` if the round was unmasked at all: where weights differ between attempts, so do their sums.
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
        """Consume the one opening of a round's cosines.

        Raises `ProtocolAborted` if they were opened in an earlier attempt: whether products that a server
        made up can be opened tells something of the vectors in them.
        """
        with writing(self.file) as database:
            try:
                database.execute("INSERT INTO opened VALUES (?, ?)", (run, round))
            except sqlite3.IntegrityError:
                raise ProtocolAborted(f"round {round}: its cosines were opened before") from None

    def keep_sent(
        self, context: bytes, *, run: str, round: int, values: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """Keep what this client adds to a round's sums, the same in all attempts; return what is kept.

        What an earlier attempt kept stays: a second set of values, from training that does not repeat to
        the bit, would show in the difference of two sums. Rounds before the last are forgotten.

        Raises `ProtocolAborted` if the attempt is not under way any more.
        """
        with writing(self.file) as database:
            _check_under_way(database, context, "its update")
            return sums.keep_sent(database, run, round, values)

    def sent(self, *, run: str, round: int) -> dict[str, bytes]:
        """Return what `keep_sent` kept for a round; empty if nothing is left."""
        with reading(self.file) as database:
            return sums.sent(database, run, round)


def _check_under_way(database: sqlite3.Connection, context: bytes, what: str) -> None:
    """Raise `ProtocolAborted` unless this attempt is the one under way, and a step of it is computed."""
    row = database.execute("SELECT busy FROM current WHERE context = ?", (context,)).fetchone()
    if row != (1,):
        raise ProtocolAborted(f"attempt: ended while {what} was computed")


def _end(database: sqlite3.Connection) -> None:
    """Forget the attempt under way and everything that was kept for its next step."""
    database.execute("DELETE FROM current")
    database.execute("DELETE FROM kept")
