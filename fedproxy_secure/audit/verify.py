"""`audit verify`: check a run's folder against its audit log and its signature.

Guarantees: a problem is reported if somebody without the signer's key alters, leaves out, moves or repeats
a line, cuts lines off a finished run, alters a file that the log or the report's signature names, or adds
anything to a finished seed (hidden files, keys and links too). Files elsewhere in the folder that nobody
vouches for are listed. A folder that cannot be listed counts as a file, and so does what lies in one that
cannot be searched. Not guaranteed: that what the signer wrote is true; that the folder was not put back to
an earlier signed state (note the head that a run prints); what clients' keys contain; anything in
`tracking/`. Unless the caller has the signer's public key from elsewhere, anybody may have signed the
folder again: it is then consistent, but not `verified`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.audit.examine import Examined, examine, read_log
from fedproxy_secure.audit.seal import OWN_FOLDERS, everything_below, is_seed, names_in, read_seal
from fedproxy_secure.audit.vouched import (
    FINISHED,
    INNER,
    check_file,
    erased_files,
    is_outside,
    link_on_the_way,
    names_below,
    vouched_files,
)
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.files.names import (
    ATTACK_EVENTS,
    AUDIT_LOG,
    CELL_DONE,
    CELLS,
    REPORT_JSON,
    RUNNING,
    SEED_PREFIX,
    SIGNATURE,
    TRACKING,
    seed_folder,
)
from fedproxy_secure.runtime.untrusted import parse_json, read_plain_file

# events of a seed's beginning and end
ENDS = ("started", FINISHED)
MOST_BELOW = 4  # most logs above a log; a matrix's cells have one above them
# files that change without a signature: a suite's notes, a cell's mark, what a run is doing now
EXEMPT = (ATTACK_EVENTS, CELL_DONE, RUNNING)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What checking a run's audit log found.

    Attributes:
        problems: tampering or damage, one line each.
        unsettled: what no signature covers yet, one line each.
        public: the signer's public key, 32 bytes, as the log names it.
        pinned: whether that is the key that the caller named.
        lines, files: how many lines and files were checked, those of logs below included.
        head: the hash of the log's last line, hex.
        sealed: the files that the report's signature names, path -> SHA-256, hex.
    """

    problems: tuple[str, ...]
    unsettled: tuple[str, ...]
    public: bytes | None
    pinned: bool
    lines: int
    files: int
    head: str
    sealed: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong and nothing is unsettled, whoever signed it."""
        return not self.problems and not self.unsettled

    @property
    def verified(self) -> bool:
        """Whether it is whole and signed with the key that the caller named."""
        return self.whole and self.pinned


def verify_run(
    folder: Path, *, key: bytes | None = None, elsewhere: Set[str] = frozenset(), below: int = 0
) -> Verified:
    """Check the log of a run or a matrix, its report's signature, and every file that they name.

    Args:
        folder: where `audit.jsonl` lies.
        key: the signer's public key, 32 bytes, known from elsewhere; None for the one that the log names.
        elsewhere: files that another log vouches for, such as that of the matrix above.
        below: how many logs lie above this one.

    Raises `AuditError` if there is no log.
    """
    log = examine(read_log(folder))
    problems = [f"{AUDIT_LOG}: {line}" for line in log.problems]
    if key is not None and log.public != key:
        problems.append(f"{AUDIT_LOG}: line 1: names another signer than the key asked for")
    unsettled = []
    if log.cut:
        unsettled.append(f"{AUDIT_LOG}: line {len(log.entries) + 1}: was cut short, as a kill leaves it")
    sealed = _check_seal(folder, log, problems, unsettled)
    vouched = vouched_files(log.entries)
    files = check_files(folder, log.entries, known={*sealed, *elsewhere})
    problems += files.problems
    unsettled += [*files.left, *files.unfinished]
    unsettled += [f"{name}: neither {AUDIT_LOG} nor {SIGNATURE} has it" for name in files.unvouched]
    unsettled += [f"{name}: is a link" for name in files.links]
    inner = _inner(folder, log, vouched, key, below=below + 1)
    return Verified(
        problems=(*problems, *(p for v in inner for p in v.problems)),
        unsettled=(*unsettled, *(u for v in inner for u in v.unsettled)),
        public=log.public,
        pinned=key is not None and log.public == key,
        lines=len(log.entries) + sum(v.lines for v in inner),
        files=len(vouched) + len(sealed) + sum(v.files for v in inner),
        head=log.head,
        sealed=sealed,
    )


def _check_seal(
    folder: Path, log: Examined, problems: list[str], unsettled: list[str]
) -> Mapping[str, str]:
    """Check the report's signature against the log and the files; return the files that it names."""
    try:
        seal = read_seal(folder)
    except AuditError as error:
        problems.append(str(error))
        return {}
    if seal is None:
        unsettled.append(f"{SIGNATURE}: is missing: nothing says where the log ends")
        return {}
    if log.public is None or seal.public_key != log.public.hex():
        problems.append(f"{SIGNATURE}: has another signer than {AUDIT_LOG}")
    heads = [e.hash for e in log.entries]
    if seal.head not in heads:
        problems.append(
            f"{AUDIT_LOG}: lines after line {len(heads)} are missing: "
            "the report is signed over a later line"
        )
    elif seal.head != heads[-1]:
        after = heads.index(seal.head) + 2
        unsettled.append(
            f"{AUDIT_LOG}: from line {after} on nothing is signed: the run went on after its report"
        )
    if _audit_head(folder) != seal.head:
        problems.append(f"{REPORT_JSON}: its audit_head is not the one that {SIGNATURE} has")
    for name, sha256 in seal.files.items():
        problems += _problems_of(folder, name, sha256, SIGNATURE)
    return seal.files


def _audit_head(folder: Path) -> object:
    try:
        return parse_json(read_plain_file(folder / REPORT_JSON))["audit_head"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _problems_of(folder: Path, name: str, sha256: str, where: str) -> list[str]:
    try:
        check_file(folder, name, sha256, where)
    except AuditError as error:
        return [str(error)]
    return []


def _finished(entries: Sequence[Entry]) -> set[str]:
    """Return the folders of seeds that have finished and were not begun again afterwards."""
    last = {e.body["seed"]: e.event for e in entries if e.event in ENDS and type(e.body.get("seed")) is int}
    return {seed_folder(seed) for seed, event in last.items() if event == FINISHED}


@dataclass(frozen=True, kw_only=True)
class Files:
    """How the files of a folder differ from its own log.

    Args:
        problems: lines about files that were altered, added or are missing.
        left: lines about files that the log erased and that are still there.
        unfinished: lines about seeds that did not finish.
        unvouched: names of files beside the seeds that nobody vouches for.
        links: names of links in the place of folders.
    """

    problems: Sequence[str]
    left: Sequence[str]
    unfinished: Sequence[str]
    unvouched: Sequence[str]
    links: Sequence[str]


def check_files(folder: Path, entries: Sequence[Entry], *, known: Set[str]) -> Files:
    """Compare a folder's files with its log.

    `known`: files beside the seeds that something else vouches for, such as the report's signature.
    """
    vouched, erased = vouched_files(entries), erased_files(entries)
    problems, left = [], []
    for name, (sha256, line) in vouched.items():
        problems += _problems_of(folder, name, sha256, f"line {line} of {AUDIT_LOG}")
    lists = [e.body.get("keys") for e in entries if e.event == FINISHED]
    keys = {str(name) for names in lists if isinstance(names, list) for name in names}
    for name in everything_below(folder, *sorted(_finished(entries))):
        if name in vouched or name in keys:
            continue
        if name in erased and not _problems_of(folder, name, erased[name][0], ""):
            line = erased[name][1]
            left.append(
                f"{name}: was erased by line {line} of {AUDIT_LOG} and is still there; see `audit erase`"
            )
        else:
            what = "a link was added" if os.path.islink(folder / name) else "was added"
            problems.append(f"{name}: {what}: {AUDIT_LOG} does not have it")
    inner = {str(e.body.get("folder")) for e in entries if e.event == INNER}
    return Files(
        problems=problems,
        left=left,
        unfinished=_unfinished(folder, entries),
        unvouched=_unvouched(folder, {*vouched, *known}, inner),
        links=sorted(n for n in (*OWN_FOLDERS, *inner) if not is_outside(n) and os.path.islink(folder / n)),
    )


def _unvouched(folder: Path, known: Set[str], inner: Set[str]) -> list[str]:
    """Return the files beside the seeds that are not known, and the cells whose logs no log names."""
    links = {name for name in (*OWN_FOLDERS, *EXEMPT) if os.path.islink(folder / name)}
    exempt = {AUDIT_LOG, SIGNATURE, *(n for n in EXEMPT if os.path.isfile(folder / n))} - links
    exempt |= links.intersection(OWN_FOLDERS)  # `check_files` names them
    candidates = [name for name in names_in(folder) if not is_seed(folder / name)]
    for subfolder in set(OWN_FOLDERS) - links:
        with suppress(AuditError):  # what cannot be listed is a candidate itself
            names = names_in(folder / subfolder)
            candidates += [f"{subfolder}/{name}" for name in names if subfolder != TRACKING]
            exempt.add(subfolder)
    unvouched: list[str] = []
    for name in sorted(set(candidates) - exempt - known - inner):
        is_cell = name.startswith(f"{CELLS}/")
        unvouched += [name] if is_cell else sorted({*everything_below(folder, name)} - known)
    return unvouched


def _unfinished(folder: Path, entries: Sequence[Entry]) -> list[str]:
    seeds = {p.name for p in folder.glob(f"{SEED_PREFIX}*") if is_seed(p)}
    return [f"{name}: did not finish" for name in sorted(seeds - _finished(entries))]


def _inner(
    folder: Path, log: Examined, vouched: Mapping[str, object], key: bytes | None, *, below: int
) -> list[Verified]:
    """Verify the logs below this one, such as those of a matrix's cells; their lines name their folders."""
    heads = {str(e.body.get("folder")): str(e.body.get("head")) for e in log.entries if e.event == INNER}
    above, verified = sorted(vouched), []
    for name, head in heads.items():
        problems: list[str] = []
        try:
            check_inner(folder, name, below)
            inner = verify_run(folder / name, key=key, elsewhere=names_below(above, name), below=below)
        except AuditError as error:
            unreadable = Verified(
                problems=(str(error),), unsettled=(), public=None, pinned=False, lines=0, files=0, head=head
            )
            verified.append(unreadable)
            continue
        if inner.public != log.public:
            problems.append(f"{name}: has another signer than the log above it")
        if head != inner.head:
            problems.append(f"{name}: its log does not end where the log above says")
        verified.append(
            replace(
                inner,
                problems=(*(f"{name}/{p}" for p in inner.problems), *problems),
                unsettled=tuple(f"{name}/{u}" for u in inner.unsettled),
            )
        )
    return verified


def check_inner(folder: Path, name: str, below: int) -> None:
    """Raise `AuditError` for a log below that must not be read: outside, misspelt, a link, or too deep."""
    if is_outside(name):
        raise AuditError(f"{name}: lies outside the folder")
    if PurePosixPath(name).as_posix() != name:
        raise AuditError(f"{name}: is another spelling of a folder's name")
    if link := link_on_the_way(folder, name):
        raise AuditError(f"{link}: is a link; a log below must lie in a folder")
    if below > MOST_BELOW:
        raise AuditError(f"{name}: lies below {below} logs; must be <= {MOST_BELOW}")
