"""One client's privacy ledger: each event, written before it happens, and the one result of each round.

    NAME.ledger.jsonl   a header (run, unit, delta, limit), then one event a line
    NAME.ledger.lock    held while a round is judged, written down and computed
    NAME.noise.key      the key of the noise of the round under way; gone when its result is stored
    NAME.result.key     the last round's result, and the line of the ledger that paid for it
    NAME.salt.key       goes into the hash of the records in `run`

`PrivacyLedger.once` takes a round through these steps, under a lock against all threads and processes:

    check the limit, append the event, keep a fresh noise key, compute, store the result, remove the key

A repeated request for a round with the same inputs gets the stored result; nothing is computed. So it gives
the same bytes even if training does not repeat to the bit, and noise is never used for two results. The
files that remain if the process ends between two steps, and what the next call with the same inputs does:

    before the event is whole   nothing          drops an incomplete line; pays as for a first call
    before the key is whole     event            pays again: what was drawn, if anything, is unknown
    before the result is whole  event, key       computes again, same key, for nothing: no result has left
    before the key is removed   event, both      returns the result, removes the key
    after that                  event, result    returns the result

Other inputs make a new event and a new key, which replaces the old one. So there are never fewer events
than results that were returned. An exception of `compute` is also an answer, which the server may see: its
key is removed, its event stays, and another attempt pays for other noise. A process that is interrupted
(`KeyboardInterrupt`, `SystemExit`) has answered nothing and keeps its key.

Guarantees: all events together never exceed the limit, for any number of concurrent processes; every
result's event is on disk before the result is computed; a noise key is deleted from the folder before its
result is returned. All files are mode 0600. Not guaranteed: anything after somebody deletes the ledger or
restores an older copy; that deleted keys are overwritten in free disk blocks (see `runtime.files`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.dp.accounting import Spent, spent
from fedproxy_secure.dp.events import Event, from_fields, to_fields
from fedproxy_secure.dp.guarantees import rounded_up
from fedproxy_secure.dp.noise import KEY_BYTES, fresh_key
from fedproxy_secure.errors import DataError, PrivacyError, RunFolderError
from fedproxy_secure.runtime.artifacts import RunFolder, private_folder
from fedproxy_secure.runtime.files.locks import alone
from fedproxy_secure.runtime.files.names import PRIVACY_LEDGER
from fedproxy_secure.runtime.files.whole import remove_private, write_private
from fedproxy_secure.runtime.quoting import quoted
from fedproxy_secure.runtime.untrusted import parse_json

SCHEMA_VERSION = 1
LOCK_SUFFIX = ".ledger.lock"
KEY_SUFFIX, RESULT_SUFFIX, SALT_SUFFIX = ".noise.key", ".result.key", ".salt.key"
WAIT_S = 3600.0  # for another process that trains the same client's round; as long as a server waits


@dataclass(frozen=True, kw_only=True)
class PrivacyLedger:
    """One client's ledger. `run` names the settings and records of its events; `max_epsilon` is the limit.

    `wait_s`: how long to wait for another process or thread that computes this client's round. Its lock
    ends with it, even after a crash; if it hangs, somebody must end it.
    """

    folder: Path
    client: str
    run: str
    unit: str
    delta: float
    max_epsilon: float
    wait_s: float = WAIT_S

    @property
    def path(self) -> Path:
        """The file that holds the events."""
        return self.folder / f"{self.client}{PRIVACY_LEDGER}"

    def open(self) -> None:
        """Create the file, or check that the existing one belongs to this run.

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
        private_folder(self.folder)
        if not self.path.exists():  # a ledger that is there is only read: no need to wait for a round
            with _locked(self.folder, self.client, self.wait_s):
                if not self.path.exists():
                    write_private(self.path, (json.dumps(header) + "\n").encode())
        stored = self._read()[0][0]
        for name, expected in header.items():
            if stored.get(name) != expected:
                difference = "" if name == "run" else f" ({stored.get(name)!r}); must be {expected!r}"
                raise RunFolderError(f"{self.path}: is of another run: {name} differs{difference}")

    def events(self) -> list[Event]:
        """Return all events so far."""
        return self._read()[1]

    def spent(self) -> Spent:
        """Return the cost of all events so far."""
        return spent(self.events(), delta=self.delta)

    def once(
        self, *, round: int, inputs_sha256: bytes, event: Event, compute: Callable[[bytes], bytes]
    ) -> bytes:
        """Return a round's result for these inputs: the stored one, or that of `compute` with a noise key.

        Args:
            inputs_sha256: hash, 32 bytes, of all that the result depends on besides the key and `run`.
            event: the privacy event of `compute`.
            compute: makes the result from 32 secret bytes. It must not use this ledger.

        Raises `PrivacyError` if the event would exceed `max_epsilon`; nothing is written then. Raises
        `RunFolderError` for files that are damaged or cannot be written, or a lock held too long. What
        `compute` raises is passed on; the event stays spent.
        """
        place = {"round": round, "inputs": inputs_sha256.hex(), "event": to_fields(event)}
        with _locked(self.folder, self.client, self.wait_s):
            lines, events = self._read()
            result = self._kept_result(place, lines)
            if result is None:
                number, key = self._kept_key(place, lines) or self._pay(place, events, event)
                try:
                    result = compute(key)
                except Exception:
                    remove_private(self._file(KEY_SUFFIX))
                    raise
                self._keep_result(place, number, result)
            remove_private(self._file(KEY_SUFFIX))
            return result

    def _pay(self, place: dict[str, Any], events: list[Event], event: Event) -> tuple[int, bytes]:
        """Append the event if the limit allows; return the number of its line and a key kept for it.

        The event comes first: a key kept before it could be mistaken for that of an earlier event with
        these inputs.
        """
        total = spent([*events, event], delta=self.delta)
        if not total.epsilon <= self.max_epsilon:  # also if it is NaN
            raise PrivacyError(
                f"client {self.client}, round {place['round']}: epsilon would become "
                f"{rounded_up(total.epsilon)}; must be <= {self.max_epsilon:g} (privacy.max_epsilon); "
                "raise that limit, or stop here"
            )
        RunFolder(path=self.folder, private=True).append_jsonl(self.path.name, place)
        number = 1 + len(events)  # the header's is 0
        key = fresh_key()
        kept = {"line": number, **place, "key": key.hex()}
        write_private(self._file(KEY_SUFFIX), json.dumps(kept).encode())
        return number, key

    def _read(self) -> tuple[list[dict[str, Any]], list[Event]]:
        """Return the ledger's complete lines, and the events in all of them but the first."""
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be read: {error.strerror}") from error
        try:
            lines = [parse_json(line) for line in raw.split(b"\n")[:-1]]
            if not lines or not isinstance(lines[0], dict):
                raise ValueError("no header")
            return lines, [from_fields(line["event"]) for line in lines[1:]]
        except (ValueError, KeyError, TypeError, DataError) as error:
            raise RunFolderError(f"{self.path}: is damaged: {error}; what was spent is unknown") from error

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.client}{suffix}"

    def _kept_key(self, place: dict[str, Any], lines: list[dict[str, Any]]) -> tuple[int, bytes] | None:
        """Return the key kept for this place and the number of the line that paid for it, or None."""
        try:
            kept = parse_json(self._file(KEY_SUFFIX).read_bytes())
            number, key = kept.pop("line"), bytes.fromhex(kept.pop("key"))
            matches = kept == place == lines[number] and number > 0 and len(key) == KEY_BYTES
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
        return (number, key) if matches else None

    def _kept_result(self, place: dict[str, Any], lines: list[dict[str, Any]]) -> bytes | None:
        """Return the stored result of this place, or None if it must be computed and paid for again."""
        try:
            head, _, result = self._file(RESULT_SUFFIX).read_bytes().partition(b"\n")
            kept = parse_json(head)
            number, sha256 = kept.pop("line"), kept.pop("sha256")
            matches = kept == place == lines[number] and number > 0 and sha256 == _sha256(result)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
        return result if matches else None

    def _keep_result(self, place: dict[str, Any], number: int, result: bytes) -> None:
        head = {"line": number, **place, "sha256": _sha256(result)}
        write_private(self._file(RESULT_SUFFIX), json.dumps(head).encode() + b"\n" + result)


def own_salt(folder: Path, client: str) -> bytes:
    """Return 32 secret bytes of this client, drawn once and kept in `folder`, mode 0600."""
    path = private_folder(folder) / f"{client}{SALT_SUFFIX}"
    try:
        if not path.exists():
            with _locked(folder, client, WAIT_S):
                if not path.exists():
                    write_private(path, fresh_key())
        salt = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    if len(salt) != KEY_BYTES:
        raise RunFolderError(f"{path}: has {len(salt)} bytes; must have {KEY_BYTES}")
    return salt


def read_all(folder: Path) -> dict[str, Spent]:
    """Return the spending of every client of a run on this machine, by name.

    Raises `RunFolderError` for a damaged ledger, `DataError` for events that cannot be added up.
    """
    return {ledger.client: ledger.spent() for ledger in _ledgers(folder)}


def all_events(folder: Path) -> dict[str, tuple[Event, ...]]:
    """Return the events of every client of a run on this machine, by name.

    Raises `RunFolderError` for a damaged ledger.
    """
    return {ledger.client: tuple(ledger.events()) for ledger in _ledgers(folder)}


def _ledgers(folder: Path) -> Iterator[PrivacyLedger]:
    for path in sorted(folder.glob(f"*{PRIVACY_LEDGER}")):
        try:
            header = parse_json(path.read_bytes().splitlines()[0])
            fields = {k: header[k] for k in ("client", "run", "unit", "delta", "max_epsilon")}
            if fields["client"] != (name := path.name.removesuffix(PRIVACY_LEDGER)):
                raise ValueError(f"its client is {quoted(fields['client'])}; must be {quoted(name)}")
            if not all(isinstance(fields[k], int | float) for k in ("delta", "max_epsilon")):
                raise ValueError("its delta and max_epsilon must be numbers")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunFolderError(f"{path}: is damaged: {error}; what was spent is unknown") from error
        yield PrivacyLedger(folder=folder, **fields)


def _locked(folder: Path, client: str, wait_s: float) -> AbstractContextManager[None]:
    return alone(folder / f"{client}{LOCK_SUFFIX}", wait_s=wait_s)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
