"""`evidence verify`: check a bundle with the signer's public key, without a network and without the run.

    archive       one form only (`archive`); any other is bad input and raises
    contents      signed by the key; names exactly the other files, with their SHA-256
    statements    signed by the key; their subjects are files of this bundle, their predicates follow
    report        has the SHA-256 in the run's own signature (`report.sig`) over the end of the audit log
    audit log     an unbroken chain by the same key; it names the models' files and the clients' spending
    models        `models.json`, SBOM, model signatures and cards are of the models that the log names

Checks go in this order and stop after the first group that fails, as later groups would repeat its
problems.

Guarantees: a bundle without problems is byte for byte what the owner of the key made, and its statements
agree with its report. Not guaranteed: that what the signer wrote is true, or that there is no other, later
bundle of the run.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fedproxy_secure.audit.chain import OPENED, Entry, check_signature
from fedproxy_secure.audit.examine import examine
from fedproxy_secure.audit.seal import Seal, parse_seal
from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.build import judged
from fedproxy_secure.bundle.envelope import open_envelope
from fedproxy_secure.bundle.findings import findings
from fedproxy_secure.bundle.model_signature import check_model_signature, root_digest
from fedproxy_secure.bundle.source import finished_epsilon, inner_folders, models_of
from fedproxy_secure.bundle.statements import (
    BUNDLE_VERSION,
    CONTENTS_PREDICATE,
    contents_statement,
    findings_statement,
    gate_statement,
    sha256,
)
from fedproxy_secure.errors import AuditError, FedProxyError
from fedproxy_secure.gate.table import json_gate
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.files.names import AUDIT_LOG, SIGNATURE
from fedproxy_secure.runtime.untrusted import parse_json

ALTERED = "was altered: its hash is not that of its content"  # what `examine` says of a redacted line too
COPIES = (archive.REPORT, archive.PAGE)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The outcome: `problems`, one line each; none if the bundle is unchanged.

    `files`, `statements`: their numbers. `head`: the last hash of the bundle's audit log, hex.
    """

    problems: tuple[str, ...]
    files: int
    statements: int
    head: str


def verify_bundle(file: Path, key: bytes) -> Checked:
    """Check a bundle against the signer's public key, Ed25519, 32 bytes.

    Raises `ConfigError` for a file that is no bundle: not an archive, or of a form that no bundle has.
    """
    files = archive.read_archive(file)
    opened = 0
    head = ""
    problems: list[str] = []
    try:
        contents = _open(files, archive.CONTENTS, key)
        opened, head = 1, _head(contents)
        for group in (_contents, _audit, _statements, _models):
            problems += group(files, key, contents)
            if problems:
                break
        else:
            opened = len([n for n in files if n.startswith("statements/")])
    except AuditError as error:
        problems.append(str(error))
    except (FedProxyError, ValueError, LookupError, TypeError, AttributeError) as error:
        # signed, but not in the form that `make_bundle` writes
        first = (str(error).splitlines() or [""])[0]
        problems.append(f"{file}: is signed, but cannot be read: {type(error).__name__}: {first}")
    return Checked(problems=tuple(problems), files=len(files), statements=opened, head=head)


def _contents(files: Mapping[str, bytes], key: bytes, contents: Mapping[str, Any]) -> Iterator[str]:
    """Compare the files with the signed list."""
    predicate = contents["predicate"]
    if contents["predicateType"] != CONTENTS_PREDICATE or predicate["bundle_version"] != BUNDLE_VERSION:
        yield f"{archive.CONTENTS}: is not the list of a bundle of version {BUNDLE_VERSION}"
        return
    listed = {s["name"]: s["digest"]["sha256"] for s in contents["subject"]}
    other_files = {n: c for n, c in files.items() if n != archive.CONTENTS}
    yield from (f"{name}: is missing" for name in sorted(listed.keys() - other_files))
    yield from (
        f"{name}: was added: the signed list does not have it"
        for name in sorted(other_files.keys() - listed)
    )
    for name in sorted(other_files.keys() & listed):
        if sha256(other_files[name]) != listed[name]:
            yield f"{name}: was altered: its SHA-256 is not that of the signed list"
    yield from (
        f"{name}: has no place in a bundle" for name in sorted(listed) if not archive.has_place(name)
    )


def _audit(files: Mapping[str, bytes], key: bytes, contents: Mapping[str, Any]) -> Iterator[str]:
    """Check the logs, their seals, and the report's hash in the seal."""
    redactions = parse_json(files[archive.REDACTIONS])
    if files[archive.SIGNER].decode().strip() != key.hex():
        yield f"{archive.SIGNER}: is another key than --key"
    entries = yield from _log(files, "", key, redactions)
    opened = [e.body.get("run") for e in entries if e.event == OPENED]
    if opened != [contents["predicate"]["run"]]:
        yield f"{archive.CONTENTS}: is of another run than the audit log"
    seal = _seal(files, "")
    if seal.head != _head(contents) or seal.head != _report(files).audit_head:
        yield f"audit/{SIGNATURE}: is not over the end of the log that statement and report name"
    for name in COPIES:
        original = redactions.get(name, {}).get("sha256", sha256(files[name]))
        if seal.files.get(PurePosixPath(name).name) != original:
            yield f"{name}: is not the report that audit/{SIGNATURE} has"
    heads = {str(e.body["folder"]): str(e.body["head"]) for e in entries if e.event == "inner"}
    for folder in inner_folders(entries):
        inner = yield from _log(files, folder, key, redactions)
        if not inner or inner[-1].hash != heads[folder]:
            yield f"audit/{folder}/{AUDIT_LOG}: does not end where the log above says"


def _statements(files: Mapping[str, bytes], key: bytes, contents: Mapping[str, Any]) -> Iterator[str]:
    """Compute each statement again from its files, and compare."""
    report = _report(files)
    spent = parse_json(files[archive.PRIVACY])["statements"]
    expected = {archive.FINDINGS: findings_statement(findings(report, spent), files)}
    gate = [name for name in (archive.POLICY, archive.VERDICT, archive.GATE) if name in files]
    if len(gate) not in (0, 3):
        yield f"{gate[0]}: policy, verdict and the gate's statement must be there together"
    elif gate:
        judgement = judged(report, files[archive.POLICY], signer=key)
        if json_gate(judgement).encode() != files[archive.VERDICT]:
            yield f"{archive.VERDICT}: is not what the policy makes of the report"
        expected[archive.GATE] = gate_statement(judgement, files)
    for name, statement in expected.items():
        yield from _differences(name, _open(files, name, key), _plain(statement))
    other_files = {n: c for n, c in files.items() if n != archive.CONTENTS}
    predicate = contents["predicate"]
    expected_contents = contents_statement(
        other_files, run=predicate["run"], audit_head=predicate["audit_head"]
    )
    expected_contents["predicate"]["fedproxy_secure"] = predicate["fedproxy_secure"]
    yield from _differences(archive.CONTENTS, contents, _plain(expected_contents))
    logged: dict[tuple[str, int, str], float] = {}
    for folder, entries in _entries(files).items():
        logged |= {(folder, *place): value for place, value in finished_epsilon(entries).items()}
    if {(s["folder"], s["seed"], s["client"]): s["epsilon"] for s in spent} != logged:
        yield f"{archive.PRIVACY}: what clients spent is not what the audit log has"


def _models(files: Mapping[str, bytes], key: bytes, contents: Mapping[str, Any]) -> Iterator[str]:
    """Compare models, signatures and SBOM with the files that the logs name."""
    models = [m for folder, entries in _entries(files).items() for m in models_of(folder, entries)]
    stated = {
        m["name"]: (m["kind"], m["files"], m["digest"]) for m in parse_json(files[archive.MODELS])["models"]
    }
    if stated != {m.name: (m.kind, dict(m.files), f"sha256:{root_digest(m.files)}") for m in models}:
        yield f"{archive.MODELS}: is not what the audit log has"
    for model in models:
        name = f"model-signatures/{model.name}.sig"
        try:
            check_model_signature(files[name], files[archive.MODEL_SIGNER], model.kind, model.files)
        except AuditError as error:
            yield f"{name}: {error}"
        if f"model-cards/{model.name}.md" not in files:
            yield f"model-cards/{model.name}.md: is missing"
    components = parse_json(files[archive.SBOM])["components"]
    listed = {c["name"]: _hashes(c) for c in components if c["type"] == "machine-learning-model"}
    if listed != {m.name: dict(m.files) for m in models}:
        yield f"{archive.SBOM}: its models are not those that the audit log has"


def _log(
    files: Mapping[str, bytes], folder: str, key: bytes, redactions: Mapping[str, Any]
) -> Generator[str, None, Sequence[Entry]]:
    """Yield the problems of a log, and return its events; a redacted line may differ from its hash."""
    name = _path(folder, AUDIT_LOG)
    examined = examine(files[name])
    redacted = redactions.get(name, {}).get("lines", [])
    allowed = {f"line {number}: {ALTERED}" for number in redacted}
    yield from (f"{name}: {p}" for p in examined.problems if p not in allowed)
    for number in redacted:
        try:
            check_signature(examined.entries[number - 1], key)
        except AuditError as error:
            yield f"{name}: line {number}: {error}"
    if examined.cut or examined.public != key:
        yield f"{name}: has another signer than --key, or is cut short"
    seal = _seal(files, folder)
    if seal.public_key != key.hex() or seal.head != examined.head:
        yield f"{_path(folder, SIGNATURE)}: is not by --key over the end of the log beside it"
    return examined.entries


def _seal(files: Mapping[str, bytes], folder: str) -> Seal:
    name = _path(folder, SIGNATURE)
    try:
        return parse_seal(files[name])
    except AuditError as error:
        raise AuditError(f"{name}: {error}") from None


def _report(files: Mapping[str, bytes]) -> Report:
    return Report.parse(files[archive.REPORT], Path(archive.REPORT))


def _entries(files: Mapping[str, bytes]) -> dict[str, tuple[Entry, ...]]:
    own = examine(files[_path("", AUDIT_LOG)]).entries
    return {"": own} | {f: examine(files[_path(f, AUDIT_LOG)]).entries for f in inner_folders(own)}


def _path(folder: str, name: str) -> str:
    return "/".join(part for part in ("audit", folder, name) if part)


def _open(files: Mapping[str, bytes], name: str, key: bytes) -> dict[str, Any]:
    if name not in files:
        raise AuditError(f"{name}: is missing")
    try:
        return open_envelope(files[name], key)
    except AuditError as error:
        raise AuditError(f"{name}: {error}") from None


def _differences(name: str, stated: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line, naming the part, if a statement differs from the one that the bundle's files give."""
    if stated == expected:
        return
    inside = ("predicate", "subject", "predicateType", "_type")
    part = next((p for p in inside if stated.get(p) != expected.get(p)), "form")
    if part == "predicate" and isinstance(stated.get("predicate"), dict):
        stated_part, expected_part = stated["predicate"], expected["predicate"]
        part = next(
            (
                k
                for k in sorted({*stated_part, *expected_part})
                if stated_part.get(k) != expected_part.get(k)
            ),
            part,
        )
    yield f"{name}: does not agree with the report and the files that it is about: {part}"


def _hashes(component: Mapping[str, Any]) -> dict[str, str]:
    return {c["name"]: c["hashes"][0]["content"] for c in component.get("components", ())}


def _head(contents: Mapping[str, Any]) -> str:
    return str(contents["predicate"]["audit_head"])


def _plain(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(value))
