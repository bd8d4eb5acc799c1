"""The log of a party's events: lines of JSON in a file that keeps its size.

    events.jsonl          one event a line; the first line may carry the totals of rotated lines
    events.jsonl.1        the lines before those
    events.jsonl.lock     held while a line is written

The environment variable `FEDPROXY_EVENTS` names the file; without it nothing is written. Several processes
may write at once: a SuperNode that was not started by `deploy` handles each message in one of its own.

Guarantees: a line is whole in the file or, after a kill or on a full disk, skipped by readers and dropped
by the next writer. Totals never fall, even when lines are rotated away. Files are mode 0600. For any
content of the file, `EventLog.read` returns events whose every field was checked, or raises
`RunFolderError`. Not
guaranteed: that nobody who can write the file changed it; the audit log protects against that.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.monitor.events import Event, Totals
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.locks import alone
from fedproxy_secure.runtime.untrusted import parse_json

VARIABLE = "FEDPROXY_EVENTS"
MOST_BYTES = 2**20  # of a file, about 5000 events; a line more may fit in
MOST_LINE_BYTES = 4096
CARRIED = "carried"  # the key of the line with the totals of lines that were rotated away
WAIT_S = 10.0  # for another process's line, which takes milliseconds


@dataclass(frozen=True, kw_only=True)
class Events:
    """A log's content: its latest events, oldest first, totals over all, and the number of bad lines."""

    events: tuple[Event, ...] = ()
    totals: Totals = field(default_factory=Totals)
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """A party's log of events; `most_bytes` bounds the file, and the one before it."""

    file: Path
    most_bytes: int = MOST_BYTES

    @classmethod
    def from_environment(cls) -> EventLog | None:
        """Return the log that `FEDPROXY_EVENTS` names, or None."""
        name = os.environ.get(VARIABLE)
        return cls(file=Path(name)) if name else None

    def append(self, event: Event) -> None:
        """Write one event. Raises `RunFolderError` if the file cannot be written."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.file}: cannot be written: {error.strerror}") from error
        folder = RunFolder(path=self.file.parent, private=True)
        with alone(self._lock, wait_s=WAIT_S):
            try:  # totals are right after each step, so a kill between two steps loses nothing
                if self.file.exists() and self.file.stat().st_size >= self.most_bytes:
                    os.replace(self.file, self._before)
                if not _has_line(self.file) and self._before.exists():
                    folder.append_jsonl(
                        self.file.name, {CARRIED: asdict(_parsed(_raw(self._before)).totals)}
                    )
            except OSError as error:
                raise RunFolderError(f"{self.file}: cannot be written: {error.strerror}") from error
            folder.append_jsonl(self.file.name, event.fields())

    def read(self) -> Events:
        """Return the log's content; it is empty if there is no file.

        Raises `RunFolderError` if it cannot be read, or is no log by its size.
        """
        if not self.file.parent.is_dir():
            return Events()
        try:
            if not self.file.exists() and not self._before.exists():
                return Events()
            with alone(self._lock, wait_s=WAIT_S):
                before, current = (_raw(f, most=4 * self.most_bytes) for f in (self._before, self.file))
        except OSError as error:
            raise RunFolderError(f"{self.file}: cannot be read: {error.strerror}") from error
        old, new = _parsed(before), _parsed(current)
        carried = bool(_lines(current))
        return Events(
            events=(*old.events, *new.events),
            totals=new.totals if carried else old.totals,
            skipped=old.skipped + new.skipped,
        )

    @property
    def _lock(self) -> Path:
        return self.file.with_name(f"{self.file.name}.lock")

    @property
    def _before(self) -> Path:
        return self.file.with_name(f"{self.file.name}.1")


def _raw(file: Path, *, most: int = 4 * MOST_BYTES) -> bytes:
    try:
        with file.open("rb") as opened:
            raw = opened.read(most + 1)
    except FileNotFoundError:
        return b""
    if len(raw) > most:
        raise RunFolderError(f"{file}: has more than {most:,} bytes; a log of events is never so large")
    return raw


def _has_line(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return b"\n" in opened.read(MOST_LINE_BYTES)
    except FileNotFoundError:
        return False


def _lines(raw: bytes) -> list[bytes]:
    """Return the complete lines; bytes after the last newline are an incomplete line."""
    return raw.split(b"\n")[:-1]


def _parsed(raw: bytes) -> Events:
    events: list[Event] = []
    totals, skipped = Totals(), 0
    for line in _lines(raw):
        try:
            if len(line) > MOST_LINE_BYTES:
                raise DataError("event: is too long")
            fields = parse_json(line)
            if isinstance(fields, dict) and set(fields) == {CARRIED}:
                totals = totals.joined(Totals.from_fields(fields[CARRIED]))
                continue
            event = Event.from_fields(fields)
        except (DataError, ValueError):
            skipped += 1
            continue
        events.append(event)
        totals = totals.plus(event)
    return Events(events=tuple(events), totals=totals, skipped=skipped)
