"""The files that an audit log vouches for, and whether they are on the disk as it has them.

A log vouches for a file by the SHA-256 in its last `finished` or `files` event that names the file. After a
`reopened` event, the file may change, and nothing vouches for it until the next such event; of a seed that
begins again, the log reopens only files that are gone. A file that an `erased` event names must not exist
any more.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.audit.examine import examine, log_if_there
from fedproxy_secure.audit.seal import SETTINGS, everything_below, file_sha256
from fedproxy_secure.audit.spending import ADDS_UP, has_spent
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.files.names import (
    ATTACK_FILES,
    ATTACKS,
    AUDIT_LOG,
    CELLS,
    FEDERATION,
    HEALING,
    LEAKAGE,
    RESULT,
    ROUNDS,
    SEED_PREFIX,
    seed_folder,
)

FINISHED, FILES, INNER, TRACED = "finished", "files", "inner", "traced"  # events
REOPENED, ERASED = "reopened", "erased"
# files of a finished seed that a report of a later process reads
READ_AGAIN = (RESULT, f"{FEDERATION}/{ROUNDS}", f"{FEDERATION}/{LEAKAGE}")
# ends of names of files that are removed once the log has a seed's end, before its result is written
LEFT_BY_A_KILL = (f"/{HEALING}", ".failed.jsonl")
_Records = dict[str, tuple[str, int]]  # path -> (SHA-256 in hex, line of the log from 1)


def vouched_files(entries: Sequence[Entry], *, by: Sequence[str] = (FINISHED, FILES)) -> _Records:
    """Return path -> (SHA-256 in hex, line of the log from 1) of the files that events `by` name."""
    return _replayed(entries, by)[0]


def erased_files(entries: Sequence[Entry]) -> _Records:
    """Return path -> (the SHA-256 that it had, line of the log from 1) of the files that were erased."""
    return _replayed(entries, (FINISHED, FILES))[1]


def _replayed(entries: Sequence[Entry], by: Sequence[str]) -> tuple[_Records, _Records]:
    """Return what `vouched_files` and `erased_files` do; linear in time, as a log may be hostile."""
    vouched: _Records = {}
    erased: _Records = {}
    for number, entry in enumerate(entries, start=1):
        files = entry.body.get("files")
        if entry.event in by and isinstance(files, dict):
            vouched |= {str(name): (str(sha256), number) for name, sha256 in files.items()}
        elif entry.event in (REOPENED, ERASED) and isinstance(files, list):
            for name in map(str, files):
                before = vouched.pop(name, None)
                if before is not None and entry.event == ERASED:
                    erased[name] = (before[0], number)
    return vouched, {name: record for name, record in erased.items() if name not in vouched}


def names_below(names: Sequence[str], folder: str) -> set[str]:
    """Return the paths, relative to a folder, of those of the sorted `names` that lie below it.

    >>> sorted(names_below(["a", "a/b/c", "a/d", "a0", "b"], "a"))
    ['b/c', 'd']
    """
    first, end = (bisect_left(names, f"{folder}{sign}") for sign in "/0")  # `0` follows `/`
    return {name.removeprefix(f"{folder}/") for name in names[first:end]}


def check_file(folder: Path, name: str, sha256: str, where: str) -> None:
    """Raise `AuditError` unless the file `name` in a folder has this SHA-256, in hex.

    `where` names the record that has the hash, such as a line of the log, for the message. The name may
    come from an attacker: one that no file can have raises `AuditError`, too.
    """
    try:
        if is_outside(name):
            raise AuditError(f"{name}: lies outside the folder ({where})")
        if link := link_on_the_way(folder, name):
            raise AuditError(f"{link}: is a link ({where} has {name} itself)")
        if not (folder / name).is_file():
            raise AuditError(f"{name}: is missing ({where} has it)")
        if file_sha256(folder / name) != sha256:
            raise AuditError(f"{name}: was altered: its SHA-256 is not that of {where}")
    except (OSError, ValueError) as error:
        raise AuditError(f"{name[:200]}: cannot be read ({where} has it)") from error


def check_finished_seeds(folder: Path) -> None:
    """Raise `AuditError` unless all files of finished seeds are as the folder's log has them.

    Attacks on a run must not read files that were altered since as the run's own, so an altered log is
    refused, too. A folder without a log passes, because nothing vouches for it.
    """
    raw = log_if_there(folder)
    if raw is None:
        return
    log = examine(raw)
    if log.problems:
        raise AuditError(f"{folder / AUDIT_LOG}: {log.problems[0]}")
    for name, (sha256, line) in vouched_files(log.entries, by=(FINISHED,)).items():
        check_file(folder, name, sha256, f"line {line} of {AUDIT_LOG}")


def check_read_again(folder: Path, entries: Sequence[Entry], seed: int, *, remedy: str) -> None:
    """Raise `AuditError` unless the files that a report reads of a finished seed are as the log has them.

    Unlike `check_finished_seeds`, this reads no model, and refuses a file that the log does not have.
    """
    logged = [e.body["files"] for e in entries if e.event == FINISHED and e.body["seed"] == seed]
    for name in (f"{seed_folder(seed)}/{part}" for part in READ_AGAIN):
        if not logged or logged[-1].get(name) != sha256_if_there(folder / name):
            raise AuditError(f"{folder / name}: is not as {AUDIT_LOG} has it; {remedy}")


def check_begun(folder: Path, entries: Sequence[Entry], seed: int) -> list[str]:
    """Check what is left of a seed that had finished, before it goes on; return its files that are gone.

    If only the result is gone, as after a kill before it was written, all else must be as the log has it;
    if the whole folder is gone, the seed begins anew. Without this check, whoever deletes a result could
    alter what the next process computes it from. Once the seed went on, it may write the files that were
    gone.

    Raises `AuditError` if a file was altered, added, or, unlike the result, deleted alone.
    """
    name = seed_folder(seed)
    result = f"{name}/{RESULT}"
    logged = {n: r for n, r in vouched_files(entries, by=(FINISHED,)).items() if n.startswith(f"{name}/")}
    present = set(everything_below(folder, name))
    gone = sorted(logged.keys() - present)
    if not present:
        return gone
    try:
        for file, (sha256, line) in logged.items():
            if file in present or (result in logged and file != result):
                check_file(folder, file, sha256, f"line {line} of {AUDIT_LOG}")
        if result in logged:
            lists = [e.body["keys"] for e in entries if e.event == FINISHED and e.body["seed"] == seed]
            for file in sorted(present.difference(logged, *lists)):
                if not file.endswith(LEFT_BY_A_KILL):
                    raise AuditError(f"{file}: was added: {AUDIT_LOG} does not have it")
    except AuditError as error:
        raise AuditError(f"{error}; {remedy_for_seed(entries, seed)}") from error
    return gone


def check_beside_seeds(folder: Path, entries: Sequence[Entry]) -> None:
    """Raise `AuditError` if settings or findings are not as the log has them; findings may be gone."""
    for name, (sha256, _) in vouched_files(entries, by=(FILES,)).items():
        present_sha256 = sha256_if_there(folder / name)
        if present_sha256 != sha256 and (present_sha256 is not None or name in SETTINGS):
            raise AuditError(f"{folder / name}: is not as {AUDIT_LOG} has it; {remedy_for(folder, name)}")


def check_unlogged(folder: Path) -> None:
    """Raise `AuditError` if a folder without a log has seeds or cells: nothing says who wrote them."""
    found = sorted(p.relative_to(folder) for p in folder.glob(f"{SEED_PREFIX}*"))
    found += sorted(p.relative_to(folder) for p in folder.glob(f"{CELLS}/*"))
    if found:
        raise AuditError(
            f"{folder / AUDIT_LOG}: is missing, but {found[0]} is there; put the log back, or choose "
            "another --out"
        )


def remedy_for_seed(entries: Sequence[Entry], seed: int) -> str:
    """Return what to do about an altered file of a finished seed, as a phrase."""
    if any(e.event == TRACED and e.body["seed"] == seed for e in entries):
        return "put it back, or choose another --out"  # the key of its copies lies in the seed's folder
    if has_spent(entries, seed):
        return f"put it back; {ADDS_UP}"
    return f"put it back, or delete the whole folder {seed_folder(seed)} and resume"


def remedy_for_cell(entries: Sequence[Entry], name: str) -> str:
    """Return what to do about an altered file of the cell `name`, whose log has `entries`, as a phrase."""
    if any(has_spent(entries, seed) for seed in [e.body.get("seed") for e in entries]):
        return f"put it back; {ADDS_UP}"
    return f"put it back, or delete {name} and resume"


def remedy_for(folder: Path, name: str) -> str:
    """Return what to do about an altered file beside the seeds of a folder, as a phrase."""
    if name in SETTINGS:
        return "put it back, or choose another --out"
    # a cell of a matrix that has findings is run again as a whole
    below = ATTACKS if name in ATTACK_FILES else name.partition(f"/{ATTACKS}/")[0]
    return remedy_for_cell(examine(log_if_there(folder / below) or b"").entries, below)


def sha256_if_there(file: Path) -> str | None:
    """Return a file's hex digest, or None if there is no file. Raises `AuditError` if it is unreadable."""
    return file_sha256(file) if file.exists() else None


def is_outside(name: str) -> bool:
    """Return whether a relative path leaves its folder, or is the folder itself."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).is_absolute() or ".." in parts or not parts


def link_on_the_way(folder: Path, name: str) -> str | None:
    """Return the first part of a relative path that is a link, whose target can be changed elsewhere."""
    parts = PurePosixPath(name).parts
    paths = ("/".join(parts[: i + 1]) for i in range(len(parts)))
    return next((path for path in paths if os.path.islink(folder / path)), None)
