"""The events that a run writes into its audit log, and when.

    opened     settings' hash, environment, command, signer
    inputs     keyed hashes of records, LLM and public text (`experiments.inputs`)
    resumed    another process continues the run; which seeds were finished
    started    a seed begins, or continues after `rounds` rounds
    traced     what a traced proxy's code depends on: the commitment to its key, and the clients' names
    roster     hash and names of those who may take part, where updates are masked
    round      who took part, and what each spent of its privacy (the mechanism's events)
    finished   a seed's epsilon by client, SHA-256 of all its files, models included, names of clients' keys
    files      settings, environment, findings of attacks: whatever else the report depends on
    reopened   files that may change again: the run is attacked again, or a seed is trained again
    erased     files that were deleted after the run: its transcript
    inner      the head of a log below this one: that of a matrix's cell
    aborted    the error that ended the run, and its reason

A round is logged after its state is saved: a round that a kill undid is not in the log, and one that was
saved but not yet logged is logged on resume. A seed's result is logged before it is written: a result that
the log does not have was not written by this run, and is refused. So is any other file that the report
depends on, if it has changed since it was logged and was not reopened: whoever holds the key must not sign
what somebody else altered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.examine import examine, log_if_there, read_log
from fedproxy_secure.audit.keys import own_key_file, run_key
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.seal import (
    SETTINGS,
    file_sha256,
    files_below,
    keys_below,
    read_seal,
    sign_report,
    sweep,
)
from fedproxy_secure.audit.spending import ADDS_UP, check_ledgers, spends_of
from fedproxy_secure.audit.vouched import (
    FILES,
    FINISHED,
    INNER,
    REOPENED,
    TRACED,
    check_begun,
    check_beside_seeds,
    check_file,
    check_finished_seeds,
    check_read_again,
    check_unlogged,
    remedy_for_cell,
    remedy_for_seed,
    vouched_files,
)
from fedproxy_secure.config import Config
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.errors import AuditError, FedProxyError
from fedproxy_secure.evidence.kept import forget_seed
from fedproxy_secure.runtime.artifacts import RunFolder, environment
from fedproxy_secure.runtime.files.names import (
    ATTACK_FILES,
    AUDIT_LOG,
    BASELINES,
    FEDERATION,
    HEALING,
    RESULT,
    ROSTER,
    ROUNDS,
    seed_folder,
)
from fedproxy_secure.secagg.terms import Roster


@dataclass(kw_only=True)
class Witness:
    """Writes the log of one run; `at` is the seed under way, or None.

    `resumed`: what to log before any other event; None in a new log, and once it is logged.
    """

    log: AuditLog
    at: int | None = None
    resumed: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: RunFolder, config: Config, *, command: str) -> Witness:
        """Begin the log of a run or matrix or continue it; files that it vouches for must not have changed.

        Findings and baselines may be missing: they are made again, or left out of the report.

        Raises `AuditError` if the log or a finished seed was altered, `ConfigError` without the key.
        """
        resuming = (folder.path / AUDIT_LOG).exists()
        done = [s for s in config.seeds if (folder.path / seed_folder(s) / RESULT).exists()]
        if not resuming:
            check_unlogged(folder.path)
        key = run_key(folder.path, config.audit.signing_key, make=not resuming)
        invocation = {"command": command, "environment": environment()}
        log = AuditLog.open(folder, key, {"config_sha256": config.sha256(), **invocation})
        witness = cls(log=log, resumed={"finished": done, **invocation} if resuming else None)
        for seed in done:
            check_read_again(folder.path, log.entries, seed, remedy=remedy_for_seed(log.entries, seed))
        check_beside_seeds(folder.path, log.entries)
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

    def once(self, event: str, facts: Mapping[str, Any], **of: Any) -> Mapping[str, Any]:
        """Log facts unless the log has such an event `of` this seed, or of the run; return what it has."""
        if not self.log.of(event, **of):
            self._add(event, **facts)
        return self.log.of(event, **of)[0].body

    def started(self, seed: int) -> None:
        """Log that a seed begins, or continues where it was killed; its earlier findings are forgotten.

        Raises `AuditError` if ledgers lack what the log has, or a seed that had finished was altered.
        """
        name = seed_folder(seed)
        check_ledgers(self.folder, self.log.entries, seed)
        sweep(self.folder, name)
        if gone := check_begun(self.folder, self.log.entries, seed):
            self._add(REOPENED, files=gone)
            (self.folder / name / HEALING).unlink(missing_ok=True)  # a finished seed has none: not its own
        self.at = seed
        self.reopen(*ATTACK_FILES)
        forget_seed(self.folder, name)
        self._add("started", seed=seed, rounds=len(self._rounds(seed)))

    def traced(self, seed: int, facts: Mapping[str, Any]) -> None:
        """Log, once, the facts of a seed's traced proxy. Raises `AuditError` if the log has other facts."""
        if self.once(TRACED, {"seed": seed, **facts}, seed=seed) != {"seed": seed, **facts}:
            raise AuditError(
                f"{AUDIT_LOG}: seed {seed} is traced with another key, proxy or clients than now"
            )

    def unlogged_rounds(self, seed: int) -> list[dict[str, Any]]:
        """Return the lines of metrics of rounds that are saved but not in the log yet, in order."""
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
        spends = spends_of(self.folder, seed, number)
        self._add("round", seed=seed, round=number, participants=line["participants"], spends=spends)

    def finished(
        self, seed: int, result: bytes, *, epsilon: Mapping[str, float], without: Sequence[str] = ()
    ) -> None:
        """Log a finished seed's files and the names of its clients' keys, then write its result.

        `without`: files of the seed's folder that are needed only to resume. They are removed before the
        result is written, so that a finished seed never has them.
        """
        seed_name = seed_folder(seed)
        sweep(self.folder, seed_name)
        name, removed = f"{seed_name}/{RESULT}", {f"{seed_name}/{n}" for n in without}
        files = {
            n: file_sha256(self.folder / n) for n in files_below(self.folder, seed_name) if n not in removed
        }
        files[name] = hashlib.sha256(result).hexdigest()
        keys = keys_below(self.folder, seed_name)
        self._add(FINISHED, seed=seed, epsilon_spent=dict(epsilon), files=files, keys=keys)
        for unneeded in removed:
            (self.folder / unneeded).unlink(missing_ok=True)
        self.log.folder.write_bytes(name, result)
        self.at = None

    def inner(self, name: str) -> None:
        """Log the head of the log in the folder `name` below this one.

        Raises `AuditError` if that log is damaged or has another signer, or if a result differs from it.
        """
        below = self.folder / name
        examined = examine(read_log(below))
        remedy = remedy_for_cell(examined.entries, name)
        if examined.problems:
            raise AuditError(f"{below / AUDIT_LOG}: {examined.problems[0]}; {remedy}")
        if examined.public != self.public:
            raise AuditError(
                f"{below / AUDIT_LOG}: has another signer than this run; delete {name} and resume"
            )
        for seed in dict.fromkeys(e.body["seed"] for e in examined.entries if e.event == FINISHED):
            check_read_again(below, examined.entries, seed, remedy=remedy)
        logged = self.log.of(INNER, folder=name)
        if not logged or logged[-1].body["head"] != examined.head:
            self._add(INNER, folder=name, head=examined.head)

    def check_kept(self, name: str) -> None:
        """Raise `AuditError` if a finished private cell's folder is gone, and its ledgers with it."""
        if self.log.of(INNER, folder=name) and log_if_there(self.folder / name) is None:
            raise AuditError(f"{name}: is gone, and its clients have paid; put it back; {ADDS_UP}")

    def reopen(self, *names: str) -> None:
        """Log that files which the log vouches for may change until it vouches for them again."""
        if vouched := sorted(vouched_files(self.log.entries, by=(FILES,)).keys() & set(names)):
            self._add(REOPENED, files=vouched)

    def settle(self, *more: str, findings: bool = True) -> str:
        """Log the other files that the report depends on, if new, changed or gone; return the log's head.

        `more`: paths of evidence besides the run's own, relative to its folder. `findings`: whether to log
        findings of attacks, too; if not, a log above vouches for them.
        """
        names = files_below(self.folder, *SETTINGS, *(ATTACK_FILES if findings else ()), BASELINES, *more)
        files = {n: file_sha256(self.folder / n) for n in names}
        logged = {n: sha256 for n, (sha256, _) in vouched_files(self.log.entries, by=(FILES,)).items()}
        self.reopen(*(n for n in logged if not (self.folder / n).exists()))
        if changed := {n: s for n, s in files.items() if logged.get(n) != s}:
            self._add(FILES, files=changed)
        return self.log.head

    def has_news(self) -> bool:
        """Return whether anything was logged since the report was last signed."""
        try:
            seal = read_seal(self.folder)
        except AuditError:
            return True  # a damaged signature is written again
        return seal is None or seal.head != self.log.head

    def sign(self) -> Path:
        """Sign the report in the folder over the log's present head; return the signature's file."""
        return sign_report(self.folder, self.log.key, self.log.head)

    @contextmanager
    def aborts(self) -> Iterator[None]:
        """Log and re-raise what the block raises; only errors of this project are logged with text."""
        try:
            yield
        except BaseException as error:
            reason = str(error) if isinstance(error, FedProxyError) else ""
            with suppress(FedProxyError):  # a full disk, a damaged file: the first error says more
                where = {} if self.at is None else {"seed": self.at, "round": len(self._rounds(self.at))}
                self._add("aborted", error=type(error).__name__, reason=reason, **where)
            raise

    def _add(self, event: str, **body: Any) -> None:
        if self.resumed is not None:
            self.log.add("resumed", **self.resumed)
            self.resumed = None
        self.log.add(event, **body)

    def _rounds(self, seed: int) -> list[dict[str, Any]]:
        return RunFolder(path=self.folder / seed_folder(seed) / FEDERATION).read_jsonl(ROUNDS)

    def _roster(self, seed: int) -> None:
        file = self.folder / seed_folder(seed) / FEDERATION / ROSTER
        if not file.exists():
            return
        roster = Roster.load(file)
        sha256 = roster.sha256().hex()
        logged = self.log.of("roster", seed=seed)
        if not logged or logged[-1].body["sha256"] != sha256:
            self._add("roster", seed=seed, sha256=sha256, clients=sorted(roster.members))


def reopen_findings(run: Path) -> None:
    """Log that findings of attacks on a signed run may change, if the run's own key lies beside it.

    Without that key, nothing is logged, and findings that change are refused when the run is resumed.

    Raises `AuditError` if a finished seed's file was altered, or, with the key, a logged finding.
    """
    check_finished_seeds(run)
    key = own_key_file(run)
    if not (key.exists() and (run / AUDIT_LOG).exists()):
        return
    log = AuditLog.open(RunFolder(path=run), read_key(key), {})
    for name, (sha256, line) in vouched_files(log.entries, by=(FILES,)).items():
        if name in ATTACK_FILES and (run / name).exists():
            check_file(run, name, sha256, f"line {line} of {AUDIT_LOG}")
    Witness(log=log).reopen(*ATTACK_FILES)
