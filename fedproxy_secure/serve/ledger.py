"""The query ledger: it counts each customer's texts and tokens on disk before they are answered.

The ledger is one SQLite database, mode 0600, with two tables: a row for each customer, and the secret key
of the noise (`noise`). The key must live as long as the counts, because a new key would draw new noise for
queries that were answered before.

Guarantees: a query is counted on the disk before `spend` returns, or it is refused and nothing of it is
counted. This holds for any number of threads and processes of the machine, and if one is killed at any
moment: never more is answered than is counted. If the ledger is missing, damaged or readable by others,
nothing is answered. Both texts and tokens are counted, so that a text of ten thousand tokens costs more
than a short one. Not guaranteed: that a customer is who it claims to be (the service in front of this must
check that), that two names are two people, or that the file was not replaced by an older copy of itself.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.config import ApiConfig
from fedproxy_secure.crypto.primitives import KEY_BYTES, fresh_secret
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, QueryRefused, RunFolderError
from fedproxy_secure.journal.store import connected, create_database

SUFFIX = ".queries"
SCHEMA_VERSION = 1
MOST_COUNTED = 2**63 - 1  # the largest integer of the database
_CUSTOMER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_SCHEMA = (
    "CREATE TABLE api (schema_version INTEGER, noise_key BLOB) STRICT",
    "CREATE TABLE customers (name TEXT PRIMARY KEY, queries INTEGER, tokens INTEGER) STRICT",
)


def own_ledger_file(run: Path) -> Path:
    """Return the file of a run's ledger: beside the run's folder, so that sharing the folder omits it."""
    folder = run.resolve()
    return folder.with_name(f"{folder.name}{SUFFIX}")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A customer's usage so far: `queries` texts, with `tokens` tokens in total."""

    queries: int = 0
    tokens: int = 0

    def text(self, policy: ApiConfig) -> str:
        """Return the counts beside their limits, such as `3 of 100 queries, 40 of 6,400 tokens`."""
        counts = ((self.queries, policy.queries, "queries"), (self.tokens, policy.token_limit, "tokens"))
        return ", ".join(
            f"{count:,} {what}" if most is None else f"{count:,} of {most:,} {what}"
            for count, most, what in counts
        )


@dataclass(frozen=True, kw_only=True)
class QueryLedger:
    """The ledger of one API, in a file that `create` made."""

    file: Path

    @classmethod
    def create(cls, file: Path) -> QueryLedger:
        """Create an empty ledger with a fresh noise key.

        Raises `ConfigError` if the file already exists, or cannot be written.
        """
        first = ("INSERT INTO api VALUES (?, ?)", (SCHEMA_VERSION, fresh_secret().reveal()))
        return cls(file=create_database(file, _SCHEMA, first, what="a query ledger"))

    def noise_key(self) -> Secret:
        """Return the key of the noise. Raises what `spend` raises for an unusable ledger."""
        with self._opened() as database:
            (key,) = database.execute("SELECT noise_key FROM api").fetchone()
        if len(key) != KEY_BYTES:
            raise RunFolderError(f"{self.file}: its noise key has {len(key)} bytes; must have {KEY_BYTES}")
        return Secret(key)

    def spend(self, customer: str, lengths: Sequence[int], policy: ApiConfig) -> Usage:
        """Count a query whose texts have `lengths` tokens; return the customer's usage, with this query.

        Args:
            customer: the customer's name: 1 to 64 letters, digits and `_.@-`.
            lengths: number of tokens of each text, including the tokens that are written; all >= 1.
            policy: how much a customer may ask.

        Raises `QueryRefused`, with nothing counted, if the query would exceed a limit; `ConfigError` for an
        invalid name, or for a ledger that is missing or readable by others; `RunFolderError` for a ledger
        that is damaged or cannot be written.
        """
        check_customer(customer)
        if not lengths or min(lengths) < 1:
            raise QueryRefused(
                f"{customer}: texts of {list(lengths)} tokens: must be at least one text of >= 1 token"
            )
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                before = _usage(database, customer)
                after = Usage(queries=before.queries + len(lengths), tokens=before.tokens + sum(lengths))
                _check(customer, before, after, policy)
                database.execute(
                    "INSERT OR REPLACE INTO customers VALUES (?, ?, ?)",
                    (customer, after.queries, after.tokens),
                )
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        return after

    def asked(self, customer: str) -> Usage:
        """Return a customer's usage so far. Raises what `spend` raises for an unusable ledger."""
        with self._opened() as database:
            return _usage(database, customer)

    def customers(self) -> dict[str, Usage]:
        """Return each customer's usage by name. Raises what `asked` raises."""
        with self._opened() as database:
            rows = database.execute("SELECT name, queries, tokens FROM customers ORDER BY name").fetchall()
        return {name: Usage(queries=queries, tokens=tokens) for name, queries, tokens in rows}

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            mode = self.file.stat().st_mode & 0o777
        except OSError as error:
            raise ConfigError(
                f"{self.file}: cannot be read: {error.strerror}; without its ledger an API answers "
                "nothing: restore it, or make one (`api open`) if the API has never answered a query"
            ) from error
        if mode & 0o077:
            raise ConfigError(f"{self.file}: has mode {mode:o}; must be 600, readable by its owner alone")
        try:
            with connected(self.file) as database:
                row = database.execute("SELECT schema_version FROM api").fetchone()
                if row != (SCHEMA_VERSION,):
                    raise RunFolderError(f"{self.file}: is no query ledger of schema {SCHEMA_VERSION}")
                yield database
        except sqlite3.Error as error:
            raise RunFolderError(
                f"{self.file}: cannot be used: {error}; so the number of past queries is unknown"
            ) from error


def check_customer(name: str) -> None:
    """Raise `ConfigError` for an invalid customer name."""
    if not _CUSTOMER.fullmatch(name):
        raise ConfigError(
            f"customer={name[:64]!r}: must be 1 to 64 letters, digits and _.@-, a letter or digit first"
        )


def _usage(database: sqlite3.Connection, customer: str) -> Usage:
    row = database.execute("SELECT queries, tokens FROM customers WHERE name = ?", (customer,)).fetchone()
    return Usage() if row is None else Usage(queries=row[0], tokens=row[1])


def _check(customer: str, before: Usage, after: Usage, policy: ApiConfig) -> None:
    limits = (
        ("queries", before.queries, after.queries, policy.queries),
        ("tokens", before.tokens, after.tokens, policy.token_limit),
    )
    for name, count, total, most in limits:
        if total > MOST_COUNTED:
            raise QueryRefused(
                f"{customer}: has asked {count:,} {name} and would have asked over {MOST_COUNTED:,}; "
                "must be less, because the ledger counts no further"
            )
        if most is not None and total > most:
            raise QueryRefused(
                f"{customer}: has asked {count:,} {name} and would have asked {total:,}; "
                f"must be <= {most:,} (api.{name})"
            )
