"""`audit erase`: delete the transcripts of a finished run, and say so in its signed log.

A transcript holds the clients' records and updates in the clear. Whoever must delete them can still show
the rest of the run: the log names the files that were erased and has the hashes they had, and the report is
signed anew.

The log is written first, then the files are deleted, then the report is signed. If the command was killed,
call it again; for a matrix, or where the report was being written, first call the run's or the matrix's own
command with `--resume`, which signs.

Guarantees: a folder that has not finished, or is not as its log and signature have it, loses nothing and is
not signed. Not guaranteed: that no copy is left. Files are unlinked, not overwritten, and backups are not
touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedproxy_secure.audit.examine import examine, read_log
from fedproxy_secure.audit.log import AuditLog
from fedproxy_secure.audit.seal import everything_below, read_seal, sign_report
from fedproxy_secure.audit.verify import still_there, verify_run
from fedproxy_secure.audit.vouched import ERASED, INNER, erased_files, vouched_files
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError
from fedproxy_secure.report.publish import publish, write_texts
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import FEDERATION, REPORT_PAGE, SEED_PREFIX, TRANSCRIPT
from fedproxy_secure.runtime.only_one import only_run_in


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """The transcripts of a run or a matrix: how many files they have, and how many bytes."""

    files: int
    bytes: int


def transcripts_of(folder: Path) -> Transcripts:
    """Return what `erase_transcripts` would delete.

    Raises `AuditError` if there is no log, or if the folder may not be erased: it has not finished, or is
    not as its log and signature have it.
    """
    _check_whole(folder)
    files = [folder / name for place in _folders(folder) for name in everything_below(folder, *place.names)]
    return Transcripts(files=len(files), bytes=sum(f.lstat().st_size for f in files))


def erase_transcripts(folder: Path, key_file: Path) -> str:
    """Delete the transcripts of a run or of a matrix's cells; return the new head of its log, hex.

    Args:
        folder: where `audit.jsonl` lies.
        key_file: the private key that signs the log.

    Raises `AuditError` as `transcripts_of` does, and for another key than the log's; `ConfigError` if the
    key cannot be read; `RunFolderError` if a file cannot be written or another process works in the folder.
    """
    key = read_key(key_file)
    with only_run_in(folder):
        _check_whole(folder)
        logs = {p.log: AuditLog.open(RunFolder(path=folder / p.log), key, {}) for p in _folders(folder)}
        for place in _folders(folder):  # cells first: the log above names their heads
            _erase(folder, place, logs, key)
    return logs[""].head


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A folder with a log of its own, relative to the one that is erased, and its transcripts' folders."""

    log: str
    transcripts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.log}/{name}" if self.log else name for name in self.transcripts)


def _folders(folder: Path) -> list[_Place]:
    """Return the folders with logs, those of a matrix's cells before its own."""
    inner = [str(e.body["folder"]) for e in examine(read_log(folder)).entries if e.event == INNER]
    return [
        _Place(
            log=name,
            transcripts=tuple(
                place.relative_to(folder / name).as_posix()
                for place in sorted((folder / name).glob(f"{SEED_PREFIX}*/{FEDERATION}/{TRANSCRIPT}"))
            ),
        )
        for name in (*dict.fromkeys(inner), "")
    ]


def _check_whole(folder: Path) -> None:
    """Raise `AuditError` unless all is as log and signature have it, apart from a killed erasure."""
    found, log, seal = verify_run(folder), examine(read_log(folder)), read_seal(folder)
    left = {line for place in _folders(folder) for line in _left_of(folder, place.log)}
    lines = [*found.problems, *(line for line in found.unsettled if line not in left)]
    killed = log.entries[-1].event == ERASED and seal is not None and seal.head != log.head
    if len(lines) > killed or found.problems:  # what was killed left one line: that its end is not signed
        raise AuditError(
            f"{folder}: {lines[0]}; nothing was erased; what is only unsigned is signed by the run's or "
            "matrix's own command with --resume"
        )


def _left_of(folder: Path, name: str) -> list[str]:
    """Return what `audit verify` says of erased files that are still in a folder with a log."""
    own = folder / name
    erased = erased_files(examine(read_log(own)).entries)
    here = f"{name}/" if name else ""
    return [here + still_there(file, line) for file, (_, line) in erased.items() if (own / file).exists()]


def _erase(folder: Path, place: _Place, logs: Mapping[str, AuditLog], key: Secret) -> None:
    """Erase what lies under one log, and sign its report; the logs below have been erased."""
    log, own = logs[place.log], folder / place.log
    if place.log == "":
        for name, below in logs.items():
            if name and log.of(INNER, folder=name)[-1].body["head"] != below.head:
                log.add(INNER, folder=name, head=below.head)
    vouched = vouched_files(log.entries)
    if there := [name for name in everything_below(own, *place.transcripts) if name in vouched]:
        log.add(ERASED, files=there)
    for name in place.transcripts:
        shutil.rmtree(own / name)
    report = replace(Report.load(own), audit_head=log.head)
    if (own / REPORT_PAGE).exists():
        publish(report, own)
    else:  # the report of a matrix's cell has no page
        write_texts(report, own)
    sign_report(own, key, log.head)
