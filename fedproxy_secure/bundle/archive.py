"""The archive of a bundle: a ZIP file of allowed files, whose bytes follow from the files.

Entries are sorted by name, dated 1980-01-01, and stored without compression. So the bytes do not depend on
the version of zlib, and no entry expands when it is read. Reading accepts exactly what writing makes: no
links, no folders, no paths outside the archive, no name twice, nothing before, between or after the files.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.files.names import (
    AUDIT_LOG,
    CELLS,
    MODEL_FOLDERS,
    REPORT_JSON,
    REPORT_PAGE,
    SEED_PREFIX,
    SIGNATURE,
)
from fedproxy_secure.runtime.untrusted import MOST_BYTES

REPORT, PAGE = f"report/{REPORT_JSON}", f"report/{REPORT_PAGE}"
POLICY, VERDICT = "policy/policy.yaml", "policy/verdict.json"
SIGNER, MODEL_SIGNER = "keys/audit.pub", "keys/models.pem"
PRIVACY, MODELS, SBOM = "privacy/statements.json", "models.json", "sbom.cdx.json"
CLAIMS, CLAIMS_TABLE = "claims.json", "claims.md"
NOT_MEASURED, REDACTIONS = "not-measured.md", "redactions.json"
CONTENTS, FINDINGS, GATE = (f"statements/{n}.dsse.json" for n in ("contents", "findings", "gate"))
# the only files that a bundle may hold: no record, transcript, weights, ledger or private key
MAY_HOLD = tuple(
    re.compile(pattern)
    for pattern in (
        *map(re.escape, (REPORT, PAGE, POLICY, VERDICT, SIGNER, MODEL_SIGNER, PRIVACY, MODELS, SBOM)),
        *map(re.escape, (CLAIMS, CLAIMS_TABLE, NOT_MEASURED, REDACTIONS, CONTENTS, FINDINGS, GATE)),
        rf"audit/({CELLS}/[^/]+/)?({re.escape(AUDIT_LOG)}|{re.escape(SIGNATURE)})",
        r"threat-models/[a-z0-9_-]+\.yaml",
        rf"model-cards/({CELLS}/[^/]+/)?{SEED_PREFIX}\d+/({'|'.join(MODEL_FOLDERS)})\.md",
        rf"model-signatures/({CELLS}/[^/]+/)?{SEED_PREFIX}\d+/({'|'.join(MODEL_FOLDERS)})\.sig",
    )
)
MOST_FILES = 10_000
# the end of an archive: mark, three numbers, files, bytes and place of their list, length of a comment
END = struct.Struct("<4s4H2LH")
ENTRY = 46  # bytes of an entry of that list before its name
# what `zipfile` raises for bytes that are no archive, or a broken one
BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, EOFError, OSError),
    *(NotImplementedError, OverflowError, RuntimeError, ValueError),
)
DATE = (1980, 1, 1, 0, 0, 0)
MODE = stat.S_IFREG | 0o644
PART = re.compile(r"[A-Za-z0-9_+=,][A-Za-z0-9_.+=,-]*")  # of a path: never empty, `.` or `..`


def archive_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of these files, path -> content."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system, entry.create_version, entry.extract_version = 3, 20, 20
            entry.external_attr = MODE << 16
            archive.writestr(entry, files[name])
    return out.getvalue()


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Write an archive atomically.

    Raises `ConfigError` for files that have no place in a bundle (`MAY_HOLD`) or that `read_archive` would
    refuse, `RunFolderError` if the archive cannot be written.
    """
    for name in files:
        if not (safe_name(name) and has_place(name)):
            raise ConfigError(f"{name!r}: has no place in a bundle")
    raw = archive_bytes(files)
    if len(raw) > MOST_BYTES or len(files) > MOST_FILES:
        raise ConfigError(
            f"{path}: would have {len(raw):,} bytes in {len(files):,} files; must have at most "
            f"{MOST_BYTES:,} in {MOST_FILES:,}"
        )
    write_bytes(path, raw)


def read_archive(path: Path) -> dict[str, bytes]:
    """Return the files of an archive, path -> content.

    At most `MOST_BYTES` are read, and nothing is written. Raises `ConfigError` for a file that cannot be
    read, is larger, or is not what `write_archive` makes.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"{path}: has more than {MOST_BYTES:,} bytes; is no bundle")
    _check_end(path, raw)
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            _check_entries(path, entries, len(raw))
            for entry in entries:
                files[entry.filename] = archive.read(entry)
    except BROKEN as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: is no bundle: {why[:200]}") from error
    if archive_bytes(files) != raw:
        raise _other(path)
    return files


def has_place(name: str) -> bool:
    """Return whether a bundle may hold a file of this name."""
    return any(pattern.fullmatch(name) for pattern in MAY_HOLD)


def safe_name(name: str) -> bool:
    """Return whether a name is a relative path in plain characters that does not leave its folder."""
    return len(name) <= 512 and all(PART.fullmatch(part) for part in name.split("/"))


def _check_end(path: Path, raw: bytes) -> None:
    """Raise `ConfigError` unless the end record has a bundle's form and lists at most `MOST_FILES` files.

    `zipfile` makes an object of several hundred bytes for every entry, and does not stop at the number in
    the end record. So the entries are counted before `zipfile` reads any.
    """
    at = len(raw) - END.size
    if at < 0:
        raise _other(path)
    mark, _, _, _, count, size, start, comment = END.unpack_from(raw, at)
    # a second record before it, for archives above 4 GB, would take precedence
    has_zip64 = raw[max(0, at - 20) : at].startswith(b"PK\x06\x07")
    if mark != b"PK\x05\x06" or comment or has_zip64 or start + size != at:
        raise _other(path)
    if count > MOST_FILES:
        raise ConfigError(f"{path}: has {count:,} files; must have at most {MOST_FILES:,}")
    for _ in range(count):
        if not raw.startswith(b"PK\x01\x02", start) or start + ENTRY > at:
            raise _other(path)
        start += ENTRY + sum(struct.unpack_from("<3H", raw, start + 28))  # its name, and optional fields
    if start != at:
        raise _other(path)


def _other(path: Path) -> ConfigError:
    return ConfigError(f"{path}: is no bundle: it holds something besides its files, or in another form")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Raise `ConfigError` for an entry that no bundle may have, before any entry is read."""
    seen: set[str] = set()
    total = 0
    for entry in entries:
        name = entry.filename
        # `filename` ends at a zero byte; the mode shows links and folders
        if entry.orig_filename != name or not safe_name(name):
            raise ConfigError(f"{path}: {entry.orig_filename!r}: is no name for a file of a bundle")
        if name in seen:
            raise ConfigError(f"{path}: {name}: is there twice")
        seen.add(name)
        if not stat.S_ISREG(entry.external_attr >> 16):
            raise ConfigError(f"{path}: {name}: is a link, a folder or a device; must be a file")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ConfigError(f"{path}: {name}: is compressed; files of a bundle are stored as they are")
        total += entry.file_size
        if total > size:
            raise ConfigError(f"{path}: {name}: files together claim more bytes than the archive has")
