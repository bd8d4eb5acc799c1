"""The files that an audit log vouches for, and whether they are on the disk as it has them.

A log vouches for a file by the SHA-256 in its last event of kind `finished` or `files`, until an event
`reopened` names it: then it may change, and nobody vouches for it until the next `files`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fedproxy_secure.audit.chain import NAME, Entry
from fedproxy_secure.audit.examine import examine
from fedproxy_secure.audit.seal import file_sha256
from fedproxy_secure.errors import AuditError

FINISHED, FILES, INNER, REOPENED = "finished", "files", "inner", "reopened"  # events


def vouched_files(
    entries: Sequence[Entry], *, by: Sequence[str] = (FINISHED, FILES)
) -> dict[str, tuple[str, int]]:
    """Return path -> (SHA-256 in hex, line of the log from 1) of the files that events `by` name."""
    vouched: dict[str, tuple[str, int]] = {}
    for number, entry in enumerate(entries, start=1):
        files = entry.body.get("files")
        if entry.event in by and isinstance(files, dict):
            vouched |= {str(name): (str(sha256), number) for name, sha256 in files.items()}
        elif entry.event == REOPENED and isinstance(files, list):
            vouched = {name: told for name, told in vouched.items() if name not in files}
    return vouched


def check_file(folder: Path, name: str, sha256: str, where: str) -> None:
    """Raise `AuditError` unless the file `name` in a folder has this SHA-256, in hex.

    `where` names the record that has the hash, such as a line of the log, for the message. The name may
    come from somebody hostile: whatever no file system has is an `AuditError`, too.
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

    Whoever attacks a run must not take what was altered since for what the run left. A folder without a log
    passes: nobody vouches for it.
    """
    try:
        entries = examine((folder / NAME).read_bytes()).entries
    except FileNotFoundError:
        return
    except OSError as error:
        raise AuditError(f"{folder / NAME}: cannot be read: {error.strerror}") from error
    for name, (sha256, line) in vouched_files(entries, by=(FINISHED,)).items():
        check_file(folder, name, sha256, f"line {line} of {NAME}")


def is_outside(name: str) -> bool:
    """Return whether a relative path leaves its folder, or is the folder itself."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).is_absolute() or ".." in parts or not parts


def link_on_the_way(folder: Path, name: str) -> str | None:
    """Return the first part of a relative path that is a link: its target can be changed elsewhere."""
    parts = PurePosixPath(name).parts
    ways = ("/".join(parts[: i + 1]) for i in range(len(parts)))
    return next((way for way in ways if os.path.islink(folder / way)), None)
