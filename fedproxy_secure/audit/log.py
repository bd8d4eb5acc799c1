"""The audit log of one run folder, open for writing; a run that was killed goes on in the same chain."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fedproxy_secure.audit.chain import OPENED, SCHEMA_VERSION, START, Entry, make_entry
from fedproxy_secure.audit.examine import examine, log_if_there
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import AUDIT_LOG


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class AuditLog:
    """Appends signed events to a folder's log; each is on the disk before `add` returns.

    Only one process may write at a time (`runtime.only_one`). `entries` holds the events so far.
    """

    folder: RunFolder
    key: Secret
    entries: list[Entry] = field(default_factory=list)
    clock: Callable[[], str] = _now

    @classmethod
    def open(cls, folder: RunFolder, key: Secret, about: Mapping[str, Any]) -> AuditLog:
        """Continue the folder's log; without one, begin it with `about` in its first event.

        Raises `AuditError` if the log was altered or has another signer; then nothing is added to it.
        """
        log = cls(folder=folder, key=key)
        public = signing_public(key)
        path = folder.path / AUDIT_LOG
        raw = log_if_there(folder.path) or b""
        if b"\n" not in raw:  # nothing, or a first line that a crash cut short
            log.add(
                OPENED,
                schema_version=SCHEMA_VERSION,
                run=secrets.token_hex(16),
                public_key=public.hex(),
                **about,
            )
            return log
        examined = examine(raw)
        if examined.problems:
            raise AuditError(f"{path}: {examined.problems[0]}")
        if examined.public != public:
            raise AuditError(
                f"{path}: is signed by another key; go on with the one it began with (audit.signing_key)"
            )
        log.entries += examined.entries
        return log

    @property
    def head(self) -> str:
        """The last line's hash, hex."""
        return self.entries[-1].hash if self.entries else START

    def add(self, event: str, **body: Any) -> Entry:
        """Append one event. Raises `RunFolderError` if it cannot be written; the log is then unchanged."""
        entry = make_entry(
            self.key,
            previous=self.head,
            seq=len(self.entries),
            time=self.clock(),
            event=event,
            body=body,
        )
        self.folder.append_jsonl(AUDIT_LOG, vars(entry))
        self.entries.append(entry)
        return entry

    def of(self, event: str, **body: Any) -> list[Entry]:
        """Return the log's entries of one event whose bodies hold all the given keys and values."""
        values = body.items()
        return [e for e in self.entries if e.event == event and values <= e.body.items()]
