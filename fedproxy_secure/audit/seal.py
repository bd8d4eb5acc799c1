"""`report.sig`: the report of a run, signed over the head of the audit log.

    signature = Ed25519("fedproxy-secure report 1", head, then name and SHA-256 of every file of the report)

`report.json` holds the same head as `audit_head`. Whoever cuts lines off the end of the log must make a new
signature, which takes the key.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedproxy_secure.audit.chain import from_hex, is_hash
from fedproxy_secure.crypto.primitives import digest, sign, signing_public, verify
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError, ProtocolAborted
from fedproxy_secure.runtime.artifacts import RunFolder, json_bytes
from fedproxy_secure.runtime.files import digests
from fedproxy_secure.runtime.files.names import (
    ATTACKS,
    AUDIT_LOG,
    BASELINES,
    CELLS,
    ENVIRONMENT,
    MANIFEST,
    RUNNING,
    SEED_PREFIX,
    SETTINGS_FILE,
    SIGNATURE,
    TRACKING,
)
from fedproxy_secure.runtime.files.whole import PARTIAL
from fedproxy_secure.runtime.untrusted import parse_json, read_plain_file

SCHEMA_VERSION = 1
DOMAIN = b"fedproxy-secure report 1"
MOST_BYTES = 2**24  # largest `report.sig` that is read; it has about 100 bytes per file
# what lies beside a report in the folder of a run or a matrix; the log vouches for it, or nothing does
SETTINGS = (MANIFEST, SETTINGS_FILE, ENVIRONMENT)
KEY = ".key"
OWN_FOLDERS = (ATTACKS, BASELINES, CELLS, TRACKING)  # their content is checked separately
OTHERS = (*OWN_FOLDERS, AUDIT_LOG, SIGNATURE, RUNNING, *SETTINGS)


@dataclass(frozen=True, kw_only=True)
class Seal:
    """A report's signature, with the hashes of the files that it covers.

    Attributes:
        head: the hash of the log's last line, hex.
        public_key: the signer's, hex.
        files: path -> SHA-256, hex, of each file of the report; paths are relative to its folder.
        signature: over `head` and `files`, hex.
    """

    head: str
    public_key: str
    files: Mapping[str, str]
    signature: str
    schema_version: int = SCHEMA_VERSION


def everything_below(folder: Path, *names: str) -> Iterator[str]:
    """Yield the paths of everything but folders at or below these names, sorted and relative to `folder`.

    Hidden files, keys, unfinished writes and links are included; links are not followed. A folder that
    cannot be listed, or lies too deep for a path, is included itself, as it may hold anything, and so is a
    name in a folder that may be listed but not searched.
    """
    for name in names:
        path = folder / name
        if os.path.islink(path) or not os.path.isdir(path):  # neither raises for an impossible name
            yield from [name] if _may_be_there(path) else []
            continue
        errors: list[OSError] = []
        paths: list[str | Path] = []
        for current, folders, files in os.walk(path, onerror=errors.append):
            links = [f for f in folders if os.path.islink(os.path.join(current, f))]
            paths += [os.path.join(current, f) for f in (*files, *links)]
        paths += [error.filename or path for error in errors]
        yield from sorted(Path(p).relative_to(folder).as_posix() for p in paths)


def _may_be_there(path: Path) -> bool:
    """Return False only if nothing can be at this path, True if it cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the latter for a name with a null byte
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def names_in(folder: Path) -> list[str]:
    """Return the names of everything in a folder. Raises `AuditError` if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise AuditError(f"{folder}: cannot be listed: {error.strerror}") from error


def files_below(folder: Path, *names: str) -> Iterator[str]:
    """Yield the paths, relative to `folder`, of the files at or below these names that a log vouches for.

    Unfinished writes, links and keys are left out, the latter because they are removed before a folder is
    passed on.
    """
    for name in everything_below(folder, *names):
        file = folder / name
        plain = os.path.isfile(file) and not os.path.islink(file)
        if plain and not (_is_key(name) or file.name.startswith(PARTIAL)):
            yield name


def keys_below(folder: Path, *names: str) -> list[str]:
    """Return the paths, relative to `folder`, of clients' keys below these names; a log only lists them."""
    return [name for name in everything_below(folder, *names) if _is_key(name)]


def _is_key(name: str) -> bool:
    """Return whether a file is a key, which is for its owner alone."""
    return name.endswith(KEY)


def sweep(folder: Path, *names: str) -> None:
    """Remove what interrupted writes have left in the folder itself and below these names."""
    unfinished = [p.name for p in folder.iterdir() if p.name.startswith(PARTIAL)]
    for name in (*unfinished, *everything_below(folder, *names)):
        if PurePosixPath(name).name.startswith(PARTIAL):
            (folder / name).unlink(missing_ok=True)


def is_seed(place: Path) -> bool:
    """Return whether a path is a folder named `seed-...`, and neither a file nor a link."""
    return place.name.startswith(SEED_PREFIX) and place.is_dir() and not place.is_symlink()


def report_files(folder: Path) -> list[str]:
    """Return the paths of all files in a run's folder that belong to its report, not to the run itself."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and not is_seed(p))
    return list(files_below(folder, *(n for n in names if n not in OTHERS)))


def file_sha256(file: Path) -> str:
    """Return a file's hex digest. Raises `AuditError` if the file cannot be read."""
    try:
        return digests.file_sha256(file)
    except OSError as error:
        raise AuditError(f"{file}: cannot be read: {error.strerror}") from error


def sign_report(folder: Path, key: Secret, head: str, *, names: Iterable[str] | None = None) -> Path:
    """Sign the report in `folder` over the head of the log; return the signature's file.

    `names`: the files of the report; None for all that are there.
    """
    sweep(folder)
    files = {n: file_sha256(folder / n) for n in (report_files(folder) if names is None else sorted(names))}
    seal = Seal(
        head=head,
        public_key=signing_public(key).hex(),
        files=files,
        signature=sign(key, _content(head, files)).hex(),
    )
    return RunFolder(path=folder).write_json(SIGNATURE, vars(seal))


def read_seal(folder: Path) -> Seal | None:
    """Return the signature of the folder's report once it is verified; None if there is none.

    Raises `AuditError` if it is damaged, not a plain file, or not by the signer that it names.
    """
    try:
        raw = read_plain_file(folder / SIGNATURE, most=MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{SIGNATURE}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AuditError(f"{SIGNATURE}: {error}") from error
    return parse_seal(raw)


def parse_seal(raw: bytes) -> Seal:
    """Return the signature in these bytes once it is verified.

    Raises `AuditError` if it is damaged, too large, or not by the signer that it names.
    """
    if len(raw) > MOST_BYTES:
        raise AuditError(f"{SIGNATURE}: has more than {MOST_BYTES:,} bytes")
    try:
        seal = Seal(**parse_json(raw))
        if json_bytes(vars(seal)) != raw:
            raise ValueError("another form")
        if seal.schema_version != SCHEMA_VERSION:
            raise AuditError(f"{SIGNATURE}: schema_version={seal.schema_version}: must be {SCHEMA_VERSION}")
        if not is_hash(seal.head):
            raise ValueError("its head is no hash")
        verify(
            from_hex(seal.public_key),
            _content(seal.head, seal.files),
            from_hex(seal.signature),
            subject="signature",
        )
        return seal
    except (ValueError, TypeError, AttributeError, ProtocolAborted) as error:
        raise AuditError(f"{SIGNATURE}: was altered: the signature is not the signer's") from error


def _content(head: str, files: Mapping[str, str]) -> bytes:
    named = [part.encode() for name in sorted(files) for part in (name, files[name])]
    return digest(DOMAIN, head.encode(), *named)
