"""The number of writes to a client's journal, in a second file that reveals an older copy of the journal.

    NAME.sequence    20 digits, mode 0600, beside NAME.journal

`begin` creates the file, `note` records a write, and `remembered` returns the number, which
`Journal.check_not_older` compares with the journal's own.

Guarantees: the number never falls, whichever processes write it. It is on the disk when `note` returns,
which is before an answer leaves. It is above the journal's own number only if an older copy has replaced
the journal. Not guaranteed: anything after both files are replaced together, such as with their folder.

Why a file: Flower's state remembers the same number, but a server can start any number of Flower runs, each
with an empty state. All runs share this file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.runtime.files.whole import created_private

SUFFIX = ".sequence"
DIGITS = 20


def sequence_file(journal: Path) -> Path:
    """Return the path of the file that holds a journal's sequence number."""
    return journal.with_suffix(SUFFIX)


def begin(journal: Path) -> None:
    """Create a new journal's file with the number 0; leave a file that exists as it is.

    Raises `ConfigError` if the folder cannot be written.
    """
    file = sequence_file(journal)
    try:
        with created_private(file) as partial:
            partial.write_bytes(b"%0*d" % (DIGITS, 0))
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error


def note(journal: Path, sequence: int) -> None:
    """Record that the journal was written `sequence` times; keep the recorded number if it is larger.

    Raises `ProtocolAborted` if the file is missing or damaged, or cannot be written.
    """
    file = sequence_file(journal)
    with _aborting(file), file.open("r+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        if _number(opened.read()) < sequence:
            os.pwrite(opened.fileno(), b"%0*d" % (DIGITS, sequence), 0)
            os.fsync(opened.fileno())


def remembered(journal: Path) -> int:
    """Return how many times the journal was written, according to this file.

    Raises `ProtocolAborted` if the file is missing or damaged.
    """
    file = sequence_file(journal)
    with _aborting(file):
        return _number(file.read_bytes())


def _number(raw: bytes) -> int:
    if len(raw) != DIGITS or not raw.isdigit():
        raise ValueError("is damaged")
    return int(raw)


@contextmanager
def _aborting(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ProtocolAborted(
            f"{file}: cannot be used: {reason}; without it nobody knows whether the journal is an older "
            "copy: put it back, or make new keys"
        ) from error
