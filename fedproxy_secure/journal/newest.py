"""The number of writes to a client's journal, in a second file that reveals an older copy of the journal.

    NAME.sequence    20 digits, mode 0600, beside NAME.journal

Flower's state remembers the same number, but a server opens as many of Flower's runs as it likes, each with
a state that remembers nothing. This file is every run's.

Guarantees: the number never falls, whichever processes write it, and it is on the disk when `note` returns,
which is before an answer leaves. It is never above the journal's own, unless an older copy has taken the
journal's place. Not guaranteed: anything after both files are put back together, such as with the folder.
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
    """Create the file with the number 0 for a new journal; keep a file that exists.

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
    """Remember that the journal was written so many times, unless more is remembered.

    Raises `ProtocolAborted` if the file is missing or damaged, or cannot be written.
    """
    file = sequence_file(journal)
    with _aborting(file), file.open("r+b") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        if _number(kept.read()) < sequence:
            os.pwrite(kept.fileno(), b"%0*d" % (DIGITS, sequence), 0)
            os.fsync(kept.fileno())


def remembered(journal: Path) -> int:
    """Return how many times the journal was written, as far as the second file knows.

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
