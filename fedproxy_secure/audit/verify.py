"""`audit verify`: is what lies in a run's folder what its audit log and its signature say?

Guarantees: without the signer's key nobody can alter, leave out, move or repeat a line, cut lines off a
finished run, or alter a file that the log or the report's signature names, without a problem being found.
Not guaranteed: that what the signer wrote is true; that a folder was not put back to how it was signed
earlier (note the head that a run prints). If the signer's public key is not known from elsewhere, anybody
may have signed the folder anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedproxy_secure.audit.chain import NAME, Entry
from fedproxy_secure.audit.examine import Examined, examine
from fedproxy_secure.audit.seal import SIGNATURE, file_sha256, files_below, read_seal
from fedproxy_secure.errors import AuditError

FINISHED, FILES, INNER = "finished", "files", "inner"  # events that vouch for files and for logs below
REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found. `problems`: tampering or damage. `unsettled`: what nothing is signed over yet.

    `public`: the signer, 32 bytes, as the log names it; `pinned`: whether it is the one that was asked for.
    """

    problems: tuple[str, ...]
    unsettled: tuple[str, ...]
    public: bytes | None
    pinned: bool
    lines: int
    files: int
    head: str

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong and nothing is left open."""
        return not self.problems and not self.unsettled


def verify_run(folder: Path, *, key: bytes | None = None) -> Verified:
    """Check the log of a run or a matrix, its report's signature, and every file that they name.

    Args:
        folder: where `audit.jsonl` lies.
        key: the signer's public key, 32 bytes, known from elsewhere; None: whoever the log names.

    Raises `AuditError` if there is no log.
    """
    try:
        raw = (folder / NAME).read_bytes()
    except OSError as error:
        raise AuditError(f"{folder / NAME}: cannot be read: {error.strerror}") from error
    found = examine(raw)
    problems = [f"{NAME}: {line}" for line in found.problems]
    if key is not None and found.public != key:
        problems.append(f"{NAME}: line 1: names another signer than the key asked for")
    unsettled = []
    if found.cut:
        unsettled.append(f"{NAME}: line {len(found.entries) + 1}: was cut short, as a kill leaves it")
    sealed = _check_seal(folder, found, problems, unsettled)
    vouched = _vouched(found.entries)
    for name, (sha256, where) in vouched.items():
        problems += _check_file(folder, name, sha256, f"line {where} of {NAME}")
    problems += _strangers(folder, found.entries, vouched)
    unsettled += _unfinished(folder, found.entries)
    inner = _inner(folder, found, key)
    return Verified(
        problems=(*problems, *(p for v in inner for p in v.problems)),
        unsettled=(*unsettled, *(u for v in inner for u in v.unsettled)),
        public=found.public,
        pinned=key is not None and found.public == key,
        lines=len(found.entries) + sum(v.lines for v in inner),
        files=len(vouched) + sealed + sum(v.files for v in inner),
        head=found.head,
    )


def _check_seal(folder: Path, found: Examined, problems: list[str], unsettled: list[str]) -> int:
    """The signature of the report against log and files; how many files it names."""
    try:
        seal = read_seal(folder)
    except AuditError as error:
        problems.append(str(error))
        return 0
    if seal is None:
        unsettled.append(f"{SIGNATURE}: is missing: nothing says where the log ends")
        return 0
    if found.public is None or seal.public_key != found.public.hex():
        problems.append(f"{SIGNATURE}: has another signer than {NAME}")
    heads = [e.hash for e in found.entries]
    if seal.head not in heads:
        problems.append(
            f"{NAME}: lines are missing after line {len(heads)}: the report is signed over a later one"
        )
    elif seal.head != heads[-1]:
        after = heads.index(seal.head) + 2
        unsettled.append(
            f"{NAME}: from line {after} on nothing is signed: the run went on after its report"
        )
    if _audit_head(folder) != seal.head:
        problems.append(f"{REPORT}: its audit_head is not the one that {SIGNATURE} has")
    for name, sha256 in seal.files.items():
        problems += _check_file(folder, name, sha256, SIGNATURE)
    return len(seal.files)


def _audit_head(folder: Path) -> object:
    try:
        return json.loads((folder / REPORT).read_text(encoding="utf-8"))["audit_head"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _vouched(entries: Sequence[Entry]) -> dict[str, tuple[str, int]]:
    """Files that the log names: the last SHA-256 of each, and the line it stands on."""
    made: dict[str, tuple[str, int]] = {}
    for number, entry in enumerate(entries, start=1):
        files = entry.body.get("files")
        if entry.event in (FINISHED, FILES) and isinstance(files, dict):
            made |= {name: (str(sha256), number) for name, sha256 in files.items()}
    return made


def _check_file(folder: Path, name: str, sha256: str, where: str) -> list[str]:
    if _outside(name):
        return [f"{name}: lies outside the folder ({where})"]
    if not (folder / name).is_file():
        return [f"{name}: is missing ({where} has it)"]
    if file_sha256(folder / name) != sha256:
        return [f"{name}: was altered: its SHA-256 is not that of {where}"]
    return []


def _outside(name: str) -> bool:
    """Whether a relative path leaves its folder, or is the folder itself."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).is_absolute() or ".." in parts or not parts


def _finished(entries: Sequence[Entry]) -> set[str]:
    return {f"seed-{e.body.get('seed')}" for e in entries if e.event == FINISHED}


def _strangers(folder: Path, entries: Sequence[Entry], vouched: Mapping[str, object]) -> list[str]:
    """Files in the folders of finished seeds that the log does not know."""
    below = files_below(folder, *sorted(_finished(entries)))
    return [f"{name}: was added: {NAME} does not have it" for name in below if name not in vouched]


def _unfinished(folder: Path, entries: Sequence[Entry]) -> list[str]:
    found = sorted(p.name for p in folder.glob("seed-*") if p.is_dir())
    return [f"{name}: did not finish" for name in found if name not in _finished(entries)]


def _inner(folder: Path, found: Examined, key: bytes | None) -> list[Verified]:
    """The logs below this one, such as those of a matrix's cells; their messages name their folders."""
    heads = {str(e.body.get("folder")): str(e.body.get("head")) for e in found.entries if e.event == INNER}
    made = []
    for name, head in heads.items():
        problems: list[str] = []
        try:
            if _outside(name):
                raise AuditError(f"{name}: lies outside the folder")
            inner = verify_run(folder / name, key=key)
        except AuditError as error:
            nothing = Verified(
                problems=(str(error),), unsettled=(), public=None, pinned=False, lines=0, files=0, head=head
            )
            made.append(nothing)
            continue
        if inner.public != found.public:
            problems.append(f"{name}: has another signer than the log above it")
        if head != inner.head:
            problems.append(f"{name}: its log does not end where the log above says")
        made.append(
            Verified(
                **{
                    **vars(inner),
                    "problems": (*(f"{name}/{p}" for p in inner.problems), *problems),
                    "unsettled": tuple(f"{name}/{u}" for u in inner.unsettled),
                }
            )
        )
    return made
