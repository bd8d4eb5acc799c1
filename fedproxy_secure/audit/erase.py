"""`audit erase`: delete the transcripts of a finished run or matrix, and say so in its signed log.

A transcript holds the clients' records and updates in the clear. Whoever must delete it can still show the
rest of the run: the log names the files that were erased, with the hashes that they had, and the report is
signed again.

Each folder with a log, the cells of a matrix first, goes through these steps: the log names the files, the
files are deleted, `report.json` gets the log's new head, and the report is signed. If the command is killed
after any of them, it goes on when it is called again. Until then, `audit verify` names what is left to do.

Guarantees: a run that has not finished, or differs from its log or signature, loses nothing and is not
signed. Nothing is deleted before all folders have been checked. Not guaranteed: that no copy is left. Files
are unlinked, not overwritten, and backups are not touched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.audit.examine import Examined, examine, read_log
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.seal import Seal, everything_below, read_seal, sign_report
from fedproxy_secure.audit.verify import check_files, check_inner
from fedproxy_secure.audit.vouched import ERASED, INNER, check_file, names_below, vouched_files
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError, RunFolderError
from fedproxy_secure.runtime.artifacts import RunFolder, write_bytes
from fedproxy_secure.runtime.files.names import (
    AUDIT_LOG,
    CELLS,
    FEDERATION,
    REPORT_JSON,
    SEED_PREFIX,
    SIGNATURE,
    TRANSCRIPT,
)
from fedproxy_secure.runtime.only_one import only_run_in
from fedproxy_secure.runtime.untrusted import parse_json, read_plain_file


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """The transcripts of a run or a matrix.

    Args:
        files, bytes: how many files, and of how many bytes, can be erased.
        begun: whether there is anything to erase, or an earlier, killed erasure to finish.
        others: folders of cells that the matrix's log does not name, and whose transcripts stay.
    """

    files: int
    bytes: int
    begun: bool
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A folder with its own log that may be erased; `name` is its path below the whole run, "" for that."""

    name: str
    folder: Path
    log: Examined
    seal: Seal
    report: Mapping[str, Any]  # the values of `report.json`

    @property
    def tail(self) -> Sequence[Entry]:
        """The log's events since the report was signed."""
        return _after(self.log.entries, self.seal.head)

    @property
    def transcripts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{SEED_PREFIX}*/{FEDERATION}/{TRANSCRIPT}"))

    def files(self) -> list[str]:
        """Return the paths of the transcripts' files, relative to the folder."""
        names = [transcript.relative_to(self.folder).as_posix() for transcript in self.transcripts]
        return list(everything_below(self.folder, *names))


def transcripts_of(folder: Path) -> Transcripts:
    """Return what `erase_transcripts` would delete, and what it would leave.

    Raises `AuditError` for a folder without a log, or one that may not be erased.
    """
    places = _places(folder)
    files = [place.folder / name for place in places for name in place.files()]
    new_heads = _new_heads_of_cells(places[-1], {place.name: place.log.head for place in places})
    logged = {place.name for place in places}
    unlogged = {p.relative_to(folder).as_posix() for p in folder.glob(f"{CELLS}/*")} - logged
    return Transcripts(
        files=len(files),
        bytes=sum(file.lstat().st_size for file in files),
        begun=bool(new_heads) or any(place.tail or place.transcripts for place in places),
        others=tuple(
            sorted(n for n in unlogged if any((folder / n).glob(f"{SEED_PREFIX}*/*/{TRANSCRIPT}")))
        ),
    )


def erase_transcripts(folder: Path, key_file: Path) -> str:
    """Delete the transcripts of a run or of a matrix's cells; return the new head of its log, hex.

    Args:
        folder: where `audit.jsonl` lies.
        key_file: the private key that signs the log.

    Raises `AuditError` as `transcripts_of` does, and for another key than the log's; `ConfigError` if the
    key cannot be read; `RunFolderError` if a file cannot be written or deleted, or another process works
    in the folder.
    """
    key = read_key(key_file)
    with ExitStack() as locks:
        for place in _places(folder):  # cells are runs, in which other commands may work
            locks.enter_context(only_run_in(place.folder))
        places = _places(folder)
        logs = {p.name: AuditLog.open(RunFolder(path=p.folder), key, {}) for p in places}
        for place in places:
            _erase(place, logs, key)
    return logs[""].head


def _places(folder: Path) -> list[_Place]:
    """Return the folders with logs of their own: a matrix's cells first, then the folder itself."""
    whole = _place(folder, "")
    sealed = whole.log.entries[: len(whole.log.entries) - len(whole.tail)]
    heads = {str(e.body.get("folder")): str(e.body.get("head")) for e in sealed if e.event == INNER}
    if any(e.event == INNER and e.body.get("folder") not in heads for e in whole.tail):
        raise AuditError(f"{folder / AUDIT_LOG}: has cells that the report was made without; {_SIGN}")
    vouched = sorted(vouched_files(whole.log.entries))
    cells = []
    for name, head in heads.items():
        check_inner(folder, name, 1)
        cell = _place(folder, name, elsewhere=names_below(vouched, name))
        if any(e.event != ERASED for e in _after(cell.log.entries, head)):
            raise AuditError(f"{name}: its log goes on after the end that the log above has; {_SIGN}")
        cells.append(cell)
    return [*cells, whole]


_SIGN = "nothing was erased; what is only unsigned is signed by its own command with --resume"


def _place(whole: Path, name: str, *, elsewhere: Set[str] = frozenset()) -> _Place:
    """Return a folder once its files match its log and signature, or differ only as a kill leaves them.

    `elsewhere`: files that the log above vouches for.
    """
    folder = whole / name
    log, seal = examine(read_log(folder)), read_seal(folder)
    if log.problems or log.cut or not log.entries:
        raise AuditError(f"{folder / AUDIT_LOG}: {[*log.problems, 'was cut short'][0]}; nothing was erased")
    if seal is None or log.public is None or seal.public_key != log.public.hex():
        raise AuditError(f"{folder / SIGNATURE}: is missing, or of another signer; {_SIGN}")
    files = check_files(folder, log.entries, known={*seal.files, *elsewhere})
    unvouched = [n for n in files.unvouched if name or not n.startswith(f"{CELLS}/")]
    if differences := [*files.problems, *files.unfinished, *files.links, *unvouched]:
        raise AuditError(f"{folder}: {differences[0]}: is not as {AUDIT_LOG} has it; {_SIGN}")
    place = _Place(name=name, folder=folder, log=log, seal=seal, report=_report(folder))
    if any(e.event not in (ERASED, INNER) for e in place.tail):
        raise AuditError(f"{folder / AUDIT_LOG}: goes on after the report was signed; {_SIGN}")
    for file, sha256 in seal.files.items():
        if file == REPORT_JSON:  # a killed erasure may have written it, with another head of the log
            if hashlib.sha256(_with_head(place.report, seal.head)).hexdigest() != sha256:
                raise AuditError(f"{folder / REPORT_JSON}: was altered; nothing was erased")
        else:
            check_file(folder, file, sha256, SIGNATURE)
    return place


def _after(entries: Sequence[Entry], head: str) -> Sequence[Entry]:
    """Return the events after the one with the hash `head`. Raises `AuditError` if there is none."""
    for number, entry in enumerate(entries, start=1):
        if entry.hash == head:
            return entries[number:]
    raise AuditError(f"{AUDIT_LOG}: lines after line {len(entries)} are missing; nothing was erased")


def _erase(place: _Place, logs: Mapping[str, AuditLog], key: Secret) -> None:
    """Erase the transcripts of one log and sign its report, after the logs below were erased."""
    log = logs[place.name]
    if place.name == "":
        for name, head in _new_heads_of_cells(place, {name: below.head for name, below in logs.items()}):
            log.add(INNER, folder=name, head=head)
    vouched = vouched_files(log.entries)
    if files := [name for name in place.files() if name in vouched]:
        log.add(ERASED, files=files)
    try:
        for transcript in place.transcripts:
            shutil.rmtree(transcript)
    except OSError as error:
        raise RunFolderError(
            f"{error.filename}: cannot be deleted: {error.strerror}; call it again"
        ) from error
    if log.head != place.seal.head:
        write_bytes(place.folder / REPORT_JSON, _with_head(place.report, log.head))
        sign_report(place.folder, key, log.head, names=place.seal.files)


def _new_heads_of_cells(whole: _Place, heads: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the cells whose logs have grown since the log above named their heads, with the new heads."""
    logged = {str(e.body.get("folder")): e.body.get("head") for e in whole.log.entries if e.event == INNER}
    return [(name, heads[name]) for name in logged if name in heads and heads[name] != logged[name]]


def _report(folder: Path) -> dict[str, Any]:
    """Return the values of a report; only the log's head among them matters here."""
    try:
        values = parse_json(read_plain_file(folder / REPORT_JSON))
        if isinstance(values, dict):
            return values
    except (OSError, ValueError):
        pass
    raise AuditError(f"{folder / REPORT_JSON}: is missing or damaged; nothing was erased")


def _with_head(report: Mapping[str, Any], head: str) -> bytes:
    """Return a report's JSON, as `Report` writes it, with another head of the log and no other change."""
    return (json.dumps({**report, "audit_head": head}, indent=2, sort_keys=True) + "\n").encode()
