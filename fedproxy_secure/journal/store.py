"""The journal's file: one SQLite database beside a client's key, and how it is created, read and written.

Guarantees: a `writing` block runs alone among all processes and threads of the machine. When it ends
without an error, all that it wrote is on the disk; if the block or its commit fails, none of it is. A
journal that is missing beside its key, readable by other users, damaged or another client's is refused.

Not guaranteed: that an older copy of the file is noticed here. `writing` records in a second file
(`newest`) how often the journal was written, and `Journal.check_not_older` compares.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.journal import newest
from fedproxy_secure.runtime.files.whole import created_private

SUFFIX = ".journal"
SCHEMA_VERSION = 2
WAIT_S = 60.0  # for the end of another process's transaction, which takes milliseconds

_SCHEMA = (
    "CREATE TABLE journal (schema_version INTEGER, client TEXT, sequence INTEGER) STRICT",
    "CREATE TABLE ledgers (run TEXT PRIMARY KEY, events INTEGER) STRICT",
    "CREATE TABLE agreed (policy BLOB, seed INTEGER, run TEXT, roster_sha256 BLOB,"
    " PRIMARY KEY (policy, seed)) STRICT",
    "CREATE TABLE rounds (run TEXT, round INTEGER, clip REAL, broadcast_sha256 BLOB, cohort TEXT,"
    " survivors TEXT, PRIMARY KEY (run, round)) STRICT",
    "CREATE TABLE attempts (run TEXT, round INTEGER, attempt INTEGER, context BLOB,"
    " PRIMARY KEY (run, round, attempt)) STRICT",
    "CREATE TABLE steps (context BLOB, step TEXT, PRIMARY KEY (context, step)) STRICT",
    "CREATE TABLE current (context BLOB, busy INTEGER) STRICT",
    "CREATE TABLE kept (name TEXT PRIMARY KEY, value BLOB) STRICT",
    "CREATE TABLE sent (run TEXT, round INTEGER, name TEXT, value BLOB,"
    " PRIMARY KEY (run, round, name)) STRICT",
    "CREATE TABLE opened (run TEXT, round INTEGER, PRIMARY KEY (run, round)) STRICT",
    "CREATE TABLE labelled (run TEXT, label TEXT, value BLOB, PRIMARY KEY (run, label)) STRICT",
)


def journal_file(folder: Path, client: str) -> Path:
    """Return the path of a client's journal."""
    return folder / f"{client}{SUFFIX}"


def create_journal(folder: Path, client: str) -> Path:
    """Write a new, empty journal, mode 0600, for a key that has answered nothing yet; return its path.

    Raises `ConfigError` if there is a journal already or the folder cannot be written.
    """
    file = journal_file(folder, client)
    newest.begin(file)
    first = ("INSERT INTO journal VALUES (?, ?, 0)", (SCHEMA_VERSION, client))
    return create_database(file, _SCHEMA, first, what="a journal")


def create_database(
    file: Path, schema: Sequence[str], first: tuple[str, tuple[int | str | bytes, ...]], *, what: str
) -> Path:
    """Write a new database, mode 0600, whole or not at all; return its path.

    Args:
        file: its path.
        schema: the statements that create its tables.
        first: the statement and the values of its first row.
        what: what the database is, for the error.

    Raises `ConfigError`, naming `what`, if the file exists or cannot be written.
    """
    try:
        with created_private(file) as partial, connected(partial) as database:
            database.execute("BEGIN IMMEDIATE")
            for statement in schema:
                database.execute(statement)
            database.execute(*first)
            database.execute("COMMIT")
    except FileExistsError:  # raised when the finished file gets its name
        raise ConfigError(f"{file}: is there already; {what} is never overwritten") from None
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{file}: cannot be written: {error}") from error
    return file


def carry_promises(old: Path, new: Path) -> None:
    """Copy the agreements that a client's older journal records into a newer one.

    Copied are the jobs that seeds are bound to, the clients for which rounds were unmasked, the number of
    events in privacy ledgers, and which labels of other packages' protections were used. Where both
    journals have an entry, the newer journal's stays, except that the larger number of events is kept.

    Without this, a client with a new key would agree again to a job that it has answered with other
    clients, and two sums that differ by one client reveal that client's update.

    Raises `ProtocolAborted` if one of the journals cannot be used.
    """
    with reading(old) as database:
        agreed = database.execute("SELECT policy, seed, run, roster_sha256 FROM agreed").fetchall()
        rounds = database.execute(
            "SELECT run, round, clip, broadcast_sha256, cohort, survivors FROM rounds"
            " WHERE survivors IS NOT NULL"
        ).fetchall()
        ledgers = database.execute("SELECT run, events FROM ledgers").fetchall()
        labels = database.execute("SELECT run, label FROM labelled").fetchall()
    with writing(new) as database:
        database.executemany("INSERT OR IGNORE INTO agreed VALUES (?, ?, ?, ?)", agreed)
        database.executemany(
            "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (run, round) DO UPDATE SET survivors = coalesce(survivors, excluded.survivors)",
            rounds,
        )
        database.executemany(
            "INSERT INTO ledgers VALUES (?, ?)"
            " ON CONFLICT (run) DO UPDATE SET events = max(events, excluded.events)",
            ledgers,
        )
        database.executemany("INSERT OR IGNORE INTO labelled VALUES (?, ?, NULL)", labels)


def check_journal(file: Path, client: str) -> None:
    """Raise `ConfigError` unless the journal exists, is this client's, and only its owner may read it.

    Raises `ProtocolAborted` if it is damaged.
    """
    try:
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}; it is the only record of what {client}'s key has "
            "answered: restore it, or make a new key with `provision`"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"{file}: has mode {mode:o}; must be 600, readable by its owner alone")
    with reading(file) as database:
        row = database.execute("SELECT schema_version, client FROM journal").fetchone()
    if row != (SCHEMA_VERSION, client):
        raise ConfigError(f"{file}: is not the journal of {client}, schema {SCHEMA_VERSION}")


@contextmanager
def reading(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a connection for queries; each reads the last committed state.

    Queries that must read the same state need a transaction. Raises `ProtocolAborted` for a damaged file.
    """
    with _aborting(file), connected(file) as database:
        yield database


@contextmanager
def writing(file: Path) -> Iterator[sqlite3.Connection]:
    """Run the block in one transaction that no other overlaps; an error in the block undoes it.

    When the block has ended without an error, the transaction is on the disk, and in a second file the
    number of times that the journal was written. The second file is written last, because the process may
    be killed in between, and the second number must never be above the journal's.

    Raises `ProtocolAborted` for a damaged file, a full disk, or another process that keeps it locked. If
    only the second file cannot be written, the transaction is on the disk nevertheless.
    """
    with _aborting(file), connected(file) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("UPDATE journal SET sequence = sequence + 1")
            (sequence,) = database.execute("SELECT sequence FROM journal").fetchone()
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
        newest.note(file, sequence)


@contextmanager
def _aborting(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ProtocolAborted(f"{file}: cannot be used: {error}; what was answered is unknown") from error


@contextmanager
def connected(file: Path) -> Iterator[sqlite3.Connection]:
    """Open an existing database; a transaction is on the disk when its COMMIT returns."""
    database = sqlite3.connect(
        f"{file.resolve().as_uri()}?mode=rw", timeout=WAIT_S, isolation_level=None, uri=True
    )
    try:
        database.execute("PRAGMA synchronous = EXTRA")
        database.execute("PRAGMA secure_delete = ON")  # secrets of ended attempts are overwritten
        yield database
    finally:
        database.close()
