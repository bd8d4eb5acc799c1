"""One client's privacy ledger: what it spent, written down before it is spent.

    NAME.ledger.jsonl   a header (run, unit, delta, limit), then one event a round
    NAME.noise.key      the key of the last round's noise, mode 0600
    NAME.salt.key       goes into the hash of the records in `run`, mode 0600

A round asked for again with the same inputs (a run that was killed and goes on) gets the same key, so the
same noise, and gives the same update: nothing new is revealed and nothing is spent twice. Any other input
makes a new key and a new event. The key of the round before is overwritten then: who gets at the files
later can take no noise off earlier rounds.

Guarantees: `authorise` returns only after the event is on disk, and never if all events together would
exceed the limit. Not guaranteed: a ledger that somebody deletes is forgotten; copies of the key file let
the last round's noise be subtracted.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.artifacts import write_bytes
from fedproxy_secure.dp.accounting import Spent, spent
from fedproxy_secure.dp.events import Event, from_fields, to_fields
from fedproxy_secure.dp.noise import KEY_BYTES, fresh_key
from fedproxy_secure.errors import DataError, PrivacyError, RunFolderError

SCHEMA_VERSION = 1
SUFFIX, KEY_SUFFIX, SALT_SUFFIX = ".ledger.jsonl", ".noise.key", ".salt.key"


@dataclass(frozen=True, kw_only=True)
class PrivacyLedger:
    """`run` names the settings and the records that the events belong to; `max_epsilon` is the limit."""

    folder: Path
    client: str
    run: str
    unit: str
    delta: float
    max_epsilon: float

    @property
    def path(self) -> Path:
        """The file of events."""
        return self.folder / f"{self.client}{SUFFIX}"

    def open(self) -> None:
        """Start the file, or check that the one there belongs to this run.

        Raises `RunFolderError` for another run's ledger or a damaged one.
        """
        header = {
            "schema_version": SCHEMA_VERSION,
            "client": self.client,
            "run": self.run,
            "unit": self.unit,
            "delta": self.delta,
            "max_epsilon": self.max_epsilon,
        }
        if not self.path.exists():
            write_bytes(self.path, (json.dumps(header) + "\n").encode())
            return
        found = self._lines()[0]
        for name, own in header.items():
            if found.get(name) != own:
                said = "" if name == "run" else f" ({found.get(name)!r}); must be {own!r}"
                raise RunFolderError(f"{self.path}: is of another run: {name} differs{said}")

    def events(self) -> list[Event]:
        """All that was spent."""
        return [from_fields(line["event"]) for line in self._lines()[1:]]

    def spent(self) -> Spent:
        """Its cost."""
        return spent(self.events(), delta=self.delta)

    def authorise(self, *, round: int, inputs_sha256: bytes, event: Event) -> bytes:
        """The noise key, 32 bytes, for a round that starts from these inputs; spends `event`.

        Raises `PrivacyError` if that would exceed `max_epsilon`; nothing is written then.
        """
        place = {"round": round, "inputs": inputs_sha256.hex(), "event": to_fields(event)}
        lines = self._lines()
        if place in lines[1:] and (key := self._kept_key(place)) is not None:
            return key
        would = spent([*(from_fields(line["event"]) for line in lines[1:]), event], delta=self.delta)
        if would.epsilon > self.max_epsilon:
            raise PrivacyError(
                f"client {self.client}, round {round}: epsilon would be {would.epsilon:.4g}; must be <= "
                f"{self.max_epsilon:.4g} (privacy.max_epsilon)"
            )
        key = fresh_key()
        self._keep_key(place, key)
        self._append(place)
        return key

    def _append(self, line: dict[str, Any]) -> None:
        """After a line that was cut short, a new one begins where it began."""
        whole = b"".join(raw for raw in self._raw() if raw.endswith(b"\n"))
        try:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
                file.seek(len(whole))
                file.write((json.dumps(line) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _raw(self) -> list[bytes]:
        try:
            return self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _lines(self) -> list[dict[str, Any]]:
        """Whole lines; one cut short was never returned from, so nothing was spent on it."""
        try:
            lines = [json.loads(raw) for raw in self._raw() if raw.endswith(b"\n")]
            if not lines:
                raise ValueError("no header")
            for line in lines[1:]:
                from_fields(line["event"])
        except (ValueError, KeyError, TypeError, DataError) as error:
            raise RunFolderError(f"{self.path}: is damaged: {error}; what was spent is unknown") from error
        return lines

    def _kept_key(self, place: dict[str, Any]) -> bytes | None:
        try:
            raw = json.loads((self.folder / f"{self.client}{KEY_SUFFIX}").read_text(encoding="utf-8"))
            key = bytes.fromhex(raw.pop("key"))
        except (OSError, ValueError, KeyError):
            return None
        return key if raw == place and len(key) == KEY_BYTES else None

    def _keep_key(self, place: dict[str, Any], key: bytes) -> None:
        path = self.folder / f"{self.client}{KEY_SUFFIX}"
        part = path.with_suffix(".part")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(json.dumps({**place, "key": key.hex()}).encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}") from error


def own_salt(folder: Path, client: str) -> bytes:
    """32 secret bytes of this client, made once and kept in `folder`, mode 0600."""
    path = folder / f"{client}{SALT_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            suppress(FileExistsError),
            open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        ):
            file.write(fresh_key())
        salt = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read or written: {error.strerror}") from error
    if len(salt) != KEY_BYTES:
        raise RunFolderError(f"{path}: has {len(salt)} bytes; must have {KEY_BYTES}")
    return salt


def read_all(folder: Path) -> dict[str, Spent]:
    """What every client of a run on this machine spent, by name."""
    found = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        header = json.loads(path.read_bytes().splitlines()[0])
        ledger = PrivacyLedger(
            folder=folder,
            **{k: header[k] for k in ("client", "run", "unit", "delta", "max_epsilon")},
        )
        found[ledger.client] = ledger.spent()
    return found
