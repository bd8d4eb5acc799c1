"""Read a whole chain and list, line by line, what is wrong with it.

A bad line raises nothing, because whoever looks for tampering wants to see all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.audit.chain import (
    OPENED,
    SCHEMA_VERSION,
    START,
    Entry,
    check_hash,
    check_signature,
    parse_line,
)
from fedproxy_secure.crypto.primitives import KEY_BYTES
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.files.names import AUDIT_LOG
from fedproxy_secure.runtime.untrusted import read_plain_file


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The outcome of reading a chain.

    Attributes:
        entries: the lines that could be read, in the order of the file.
        problems: what is wrong, one line each, in the order of the file.
        cut: whether the last line has no end, as a crash leaves it; it is not among the entries.
        public: the public key of the signer that the first line names, 32 bytes; None without one.
    """

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    cut: bool
    public: bytes | None

    @property
    def head(self) -> str:
        """The last line's hash, hex."""
        return self.entries[-1].hash if self.entries else START


def read_log(folder: Path) -> bytes:
    """Return the bytes of a folder's log, unchecked.

    Raises `AuditError` if there is none, or if it is not a plain file or too large.
    """
    raw = log_if_there(folder)
    if raw is None:
        raise AuditError(f"{folder / AUDIT_LOG}: cannot be read: there is no such file")
    return raw


def log_if_there(folder: Path) -> bytes | None:
    """Return what `read_log` returns, or None if there is no log or no folder."""
    try:
        return read_plain_file(folder / AUDIT_LOG)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AuditError(f"{folder / AUDIT_LOG}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AuditError(f"{folder / AUDIT_LOG}: {error}") from None


def examine(raw: bytes) -> Examined:
    """Check each line of a log file: its hash, its signature by the first line's signer, and its order."""
    *lines, unended = raw.split(b"\n")
    parsed: list[tuple[int, Entry]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append((number, parse_line(line)))
        except AuditError as error:
            problems.append((number, str(error)))
    public = _signer(parsed)
    if not parsed or public is None:
        problems.append((1, "does not open a log: it names no signer and version"))
    problems += _order(parsed)
    for number, entry in parsed:
        try:
            check_hash(entry)
            if public is not None:
                check_signature(entry, public)
        except AuditError as error:
            problems.append((number, str(error)))
    return Examined(
        entries=tuple(e for _, e in parsed),
        problems=tuple(f"line {number}: {text}" for number, text in sorted(problems)),
        cut=unended != b"",
        public=public,
    )


def _signer(parsed: Sequence[tuple[int, Entry]]) -> bytes | None:
    if not parsed or parsed[0][1].event != OPENED:
        return None
    body = parsed[0][1].body
    try:
        public = bytes.fromhex(body["public_key"])
    except (KeyError, TypeError, ValueError):
        return None
    return public if len(public) == KEY_BYTES and body.get("schema_version") == SCHEMA_VERSION else None


def _order(parsed: Sequence[tuple[int, Entry]]) -> list[tuple[int, str]]:
    """Return problems with lines that are missing, moved, repeated, or do not follow the one before."""
    problems = []
    present = {entry.seq for _, entry in parsed}
    expected, last = 0, START
    for number, entry in parsed:
        if entry.seq != expected:
            what = (
                "were moved or repeated" if expected in present or entry.seq < expected else "are missing"
            )
            problems.append(
                (number, f"holds event {entry.seq} where event {expected} must be: lines {what}")
            )
        elif entry.previous != last:
            problems.append((number, "does not follow from the line before it"))
        expected, last = entry.seq + 1, entry.hash
    return problems
