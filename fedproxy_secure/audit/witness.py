"""The events that a run writes into its audit log, and when.

    opened     settings' hash, environment, command, signer
    resumed    another process goes on; which seeds were finished
    started    a seed begins, or goes on after `rounds` rounds
    traced     what a traced proxy's code rests on: the commitment of its key, and the clients' names
    roster     hash and names of those who may take part, where updates are masked
    round      who took part, and what each spent of its privacy (the mechanism's events)
    finished   a seed's epsilon by client, the SHA-256 of every file of it, models included, and the names
               of clients' keys that lie there
    files      settings, environment, findings of attacks: whatever else the report rests on
    inner      the head of a log below this one: of a matrix's cell
    aborted    what was raised, and the reason

A round is logged once its state is saved: a round that a kill undid is not in the log, and one that was
saved but not yet logged is logged on resume. A seed's result is logged before it is written: a result that
the log does not have was not written by this run, and is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.chain import NAME
from fedproxy_secure.audit.examine import examine
from fedproxy_secure.audit.keys import run_key
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.seal import (
    EVIDENCE,
    SETTINGS,
    file_sha256,
    files_below,
    keys_below,
    read_seal,
    sign_report,
    sweep,
)
from fedproxy_secure.audit.verify import FILES, FINISHED, INNER
from fedproxy_secure.config import Config
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.errors import AuditError, FedProxyError
from fedproxy_secure.runtime.artifacts import RunFolder, environment
from fedproxy_secure.secagg.provision import ROSTER
from fedproxy_secure.secagg.terms import Roster

FEDERATION, ROUNDS, PRIVACY, RESULT = "federation", "rounds.jsonl", "privacy", "result.json"
LEDGERS = ".ledger.jsonl"
# files that a report reads of a seed that finished in an earlier process
READ_AGAIN = (RESULT, f"{FEDERATION}/{ROUNDS}", f"{FEDERATION}/ledger.jsonl")


@dataclass(kw_only=True)
class Witness:
    """Writes the log of one run; `at` is the seed under way.

    `resumed`: what to log before any other event; None in a new log, and once it is logged.
    """

    log: AuditLog
    at: int | None = None
    resumed: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: RunFolder, config: Config, *, command: str) -> Witness:
        """Begin the folder's log or go on with it; seeds that finished before must be as the log has them.

        Raises `AuditError` if log or seeds are not as they were written, `ConfigError` without the key.
        """
        path = folder.path / NAME
        before = path.exists()
        done = [s for s in config.seeds if (folder.path / f"seed-{s}" / RESULT).exists()]
        if done and not before:
            raise AuditError(f"{path}: is missing, but seed-{done[0]} is finished; choose another --out")
        key = run_key(folder.path, config.audit.signing_key, make=not before)
        here = {"command": command, "environment": environment()}
        log = AuditLog.open(folder, key, {"config_sha256": config.sha256(), **here})
        witness = cls(log=log, resumed={"finished": done, **here} if before else None)
        for seed in done:
            witness._check(seed)
        return witness

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.log.folder.path

    @property
    def run(self) -> str:
        """The random number of the run, hex; the same after a resume."""
        return str(self.log.entries[0].body["run"])

    @property
    def public(self) -> bytes:
        """The signer's key, 32 bytes."""
        return signing_public(self.log.key)

    def started(self, seed: int) -> None:
        """Log that a seed begins, or goes on where it was killed."""
        self.at = seed
        self._tell("started", seed=seed, rounds=len(self._rounds(seed)))

    def traced(self, seed: int, facts: Mapping[str, Any]) -> None:
        """Log what a seed's traced proxy rests on, once. Raises `AuditError` if the log has another."""
        logged = self.log.of("traced", seed=seed)
        if not logged:
            self._tell("traced", seed=seed, **facts)
        elif logged[0].body != {"seed": seed, **facts}:
            raise AuditError(f"{NAME}: seed {seed} is traced with another key, proxy or clients than now")

    def untold_rounds(self, seed: int) -> list[dict[str, Any]]:
        """Return the lines of metrics of rounds that are saved and not in the log yet, in order."""
        logged: set[int] = set()
        for entry in self.log.entries:
            if entry.body.get("seed") == seed and entry.event == "started":
                logged = {r for r in logged if r < entry.body["rounds"]}
            elif entry.body.get("seed") == seed and entry.event == "round":
                logged.add(entry.body["round"])
        return [line for line in self._rounds(seed) if line["round"] not in logged]

    def round(self, seed: int, line: Mapping[str, Any]) -> None:
        """Log that a round has ended; `line` is its line of metrics."""
        self._roster(seed)
        number = line["round"]
        spends = self._spends(seed, number)
        self._tell("round", seed=seed, round=number, participants=line["participants"], spends=spends)

    def finished(self, seed: int, result: bytes, *, epsilon: Mapping[str, float]) -> None:
        """Log a finished seed's files and the names of its clients' keys, then write its result."""
        sweep(self.folder, f"seed-{seed}")
        name = f"seed-{seed}/{RESULT}"
        files = {n: file_sha256(self.folder / n) for n in files_below(self.folder, f"seed-{seed}")}
        files[name] = hashlib.sha256(result).hexdigest()
        keys = keys_below(self.folder, f"seed-{seed}")
        self._tell(FINISHED, seed=seed, epsilon_spent=dict(epsilon), files=files, keys=keys)
        self.log.folder.write_bytes(name, result)
        self.at = None

    def inner(self, name: str) -> None:
        """Log the head of the log in the folder `name` below. Raises `AuditError` if it is damaged."""
        try:
            examined = examine((self.folder / name / NAME).read_bytes())
        except OSError as error:
            raise AuditError(f"{self.folder / name / NAME}: cannot be read: {error.strerror}") from error
        if examined.problems:
            raise AuditError(f"{self.folder / name / NAME}: {examined.problems[0]}")
        logged = self.log.of(INNER, folder=name)
        if not logged or logged[-1].body["head"] != examined.head:
            self._tell(INNER, folder=name, head=examined.head)

    def settle(self, *more: str) -> str:
        """Log the other files that the report will rest on, if new or changed; return the head.

        Args:
            more: paths of evidence besides the run's own, relative to its folder.
        """
        logged: dict[str, str] = {}
        for entry in self.log.of(FILES):
            logged |= entry.body["files"]
        names = files_below(self.folder, *SETTINGS, *EVIDENCE, *more)
        files = {n: file_sha256(self.folder / n) for n in names}
        if changed := {n: s for n, s in files.items() if logged.get(n) != s}:
            self._tell(FILES, files=changed)
        return self.log.head

    def has_news(self) -> bool:
        """Return whether anything was logged since the report was last signed."""
        try:
            seal = read_seal(self.folder)
        except AuditError:
            return True  # what lies there will be written again
        return seal is None or seal.head != self.log.head

    def sign(self) -> Path:
        """Sign the report that lies in the folder over the log as it is now."""
        return sign_report(self.folder, self.log.key, self.log.head)

    @contextmanager
    def aborts(self) -> Iterator[None]:
        """Log whatever is raised inside and raise it again; only texts of our own errors are kept."""
        try:
            yield
        except BaseException as error:
            reason = str(error) if isinstance(error, FedProxyError) else ""
            where = {} if self.at is None else {"seed": self.at, "round": len(self._rounds(self.at))}
            with suppress(FedProxyError):  # a full disk: the first error says more
                self._tell("aborted", error=type(error).__name__, reason=reason, **where)
            raise

    def _tell(self, event: str, **body: Any) -> None:
        if self.resumed is not None:
            self.log.add("resumed", **self.resumed)
            self.resumed = None
        self.log.add(event, **body)

    def _check(self, seed: int) -> None:
        entries = self.log.of(FINISHED, seed=seed)
        for name in (f"seed-{seed}/{part}" for part in READ_AGAIN):
            if not entries or entries[-1].body["files"].get(name) != _sha256_if_there(self.folder / name):
                raise AuditError(f"{self.folder / name}: is not as {NAME} has it; delete it and resume")

    def _rounds(self, seed: int) -> list[dict[str, Any]]:
        return RunFolder(path=self.folder / f"seed-{seed}" / FEDERATION).read_jsonl(ROUNDS)

    def _roster(self, seed: int) -> None:
        file = self.folder / f"seed-{seed}" / FEDERATION / ROSTER
        if not file.exists():
            return
        roster = Roster.load(file)
        sha256 = roster.sha256().hex()
        last = self.log.of("roster", seed=seed)
        if not last or last[-1].body["sha256"] != sha256:
            self._tell("roster", seed=seed, sha256=sha256, clients=sorted(roster.members))

    def _spends(self, seed: int, number: int) -> dict[str, Any]:
        """Return, by client, the event in its ledger for a round; {} without differential privacy."""
        place = RunFolder(path=self.folder / f"seed-{seed}" / FEDERATION / PRIVACY)
        events = {}
        for file in sorted(place.path.glob(f"*{LEDGERS}")):
            for line in place.read_jsonl(file.name):
                if line.get("round") == number:
                    events[file.name.removesuffix(LEDGERS)] = line["event"]
        return events


def _sha256_if_there(file: Path) -> str | None:
    return file_sha256(file) if file.exists() else None
