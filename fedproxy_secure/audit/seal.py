"""`report.sig`: the report of a run, signed over the head of the audit log.

    signature = Ed25519("fedproxy-secure report 1", head, then name and SHA-256 of every file of the report)

The same head stands in `report.json` as `audit_head`. Who cuts lines off the end of the log must make a new
signature, which takes the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.artifacts import MANIFEST, RunFolder, json_bytes
from fedproxy_secure.audit.chain import NAME, from_hex
from fedproxy_secure.errors import AuditError, ProtocolAborted
from fedproxy_secure.secagg.primitives import digest, sign, signing_public, verify
from fedproxy_secure.secagg.secret import Secret

SCHEMA_VERSION = 1
SIGNATURE = "report.sig"
DOMAIN = b"fedproxy-secure report 1"
# what else lies in the folder of a run or a matrix: the log has it, or nobody vouches for it
SETTINGS = (MANIFEST, "config.yaml", "environment.json")
EVIDENCE = ("attacks/results.json", "baselines")
OTHERS = ("attacks", "baselines", "cells", "tracking", NAME, SIGNATURE, *SETTINGS)


@dataclass(frozen=True, kw_only=True)
class Seal:
    """`head`, `public_key` and `signature` in hex; `files`: SHA-256 by path relative to the folder."""

    head: str
    public_key: str
    files: Mapping[str, str]
    signature: str
    schema_version: int = SCHEMA_VERSION


def files_below(folder: Path, *names: str) -> Iterator[str]:
    """Paths, relative to `folder`, of the files that these names are or hold, sorted.

    Left out are unfinished writes and the keys of clients' noise.
    """
    for name in names:
        place = folder / name
        found = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in found:
            if file.is_file() and not file.name.startswith(".") and not file.name.endswith(".key"):
                yield file.relative_to(folder).as_posix()


def report_files(folder: Path) -> list[str]:
    """Everything in a run's folder that belongs to its report: whatever is no part of the run itself."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith((".", "seed-")))
    return list(files_below(folder, *(n for n in names if n not in OTHERS)))


def file_sha256(file: Path) -> str:
    """Hex digest. Raises `AuditError` if the file cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise AuditError(f"{file}: cannot be read: {error.strerror}") from error


def sign_report(folder: Path, key: Secret, head: str) -> Path:
    """Sign the report that lies in `folder`, all its files, over the head of the log."""
    files = {name: file_sha256(folder / name) for name in report_files(folder)}
    made = Seal(
        head=head,
        public_key=signing_public(key).hex(),
        files=files,
        signature=sign(key, _content(head, files)).hex(),
    )
    return RunFolder(path=folder).write_json(SIGNATURE, vars(made))


def read_seal(folder: Path) -> Seal | None:
    """The signature of the folder's report, its own arithmetic checked; None if there is none.

    Raises `AuditError` if it is damaged or not the named signer's.
    """
    path = folder / SIGNATURE
    try:
        raw = path.read_bytes()
        seal = Seal(**json.loads(raw))
        if json_bytes(vars(seal)) != raw:
            raise ValueError("another form")
        if seal.schema_version != SCHEMA_VERSION:
            raise AuditError(f"{SIGNATURE}: schema_version={seal.schema_version}: must be {SCHEMA_VERSION}")
        verify(
            from_hex(seal.public_key),
            _content(seal.head, seal.files),
            from_hex(seal.signature),
            what="signature",
        )
        return seal
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{SIGNATURE}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, ProtocolAborted) as error:
        raise AuditError(f"{SIGNATURE}: was altered: the signature is not the signer's") from error


def _content(head: str, files: Mapping[str, str]) -> bytes:
    named = [part.encode() for name in sorted(files) for part in (name, files[name])]
    return digest(DOMAIN, head.encode(), *named)
