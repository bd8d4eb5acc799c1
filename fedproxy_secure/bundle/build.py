"""`evidence bundle`: pack the evidence of a finished, signed run into one archive.

Equal runs, keys, policies and installed packages give equal bytes: no file has a time of bundling, and all
signatures are deterministic. `archive.MAY_HOLD` lists what a bundle may hold; it excludes records,
transcripts, weights, private keys, clients' paths and clients' own ledgers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from fedproxy_secure.audit.chain import OPENED
from fedproxy_secure.audit.keys import run_key
from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.claims import claims_files, threat_model_files
from fedproxy_secure.bundle.envelope import seal_statement
from fedproxy_secure.bundle.findings import findings
from fedproxy_secure.bundle.model_card import model_card
from fedproxy_secure.bundle.model_signature import model_key, public_pem, root_digest, sign_model
from fedproxy_secure.bundle.redaction import check_nothing_private
from fedproxy_secure.bundle.sbom import check_installed, sbom
from fedproxy_secure.bundle.source import Source, read_source
from fedproxy_secure.bundle.statements import contents_statement, findings_statement, gate_statement
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.gate.judge import judge
from fedproxy_secure.gate.policy import load_policy, parse_policy
from fedproxy_secure.gate.table import json_gate
from fedproxy_secure.gate.verdict import Judgement, Signed
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.table import markdown_items, markdown_table
from fedproxy_secure.runtime.artifacts import json_bytes
from fedproxy_secure.runtime.untrusted import read_bytes

NOTHING_DECIDED = (Outcome.NOT_APPLICABLE, Outcome.INCONCLUSIVE, Outcome.ERROR)
NEVER = (
    "Weights are not in this bundle: `models.json` and the model signatures name them by digest.",
    "Records, transcripts, clients' keys and clients' own privacy ledgers are in no bundle.",
)
NO_POLICY = "No policy was given, so no gate judged this run."


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """A written bundle: the number of files, the archive's SHA-256 and the signer's public key, hex."""

    files: int
    sha256: str
    signer: str


def make_bundle(run: Path, out: Path, *, policy: Path | None = None, key: Path | None = None) -> Bundled:
    """Write the bundle of a finished run or matrix to `out`, atomically.

    Args:
        run: its folder.
        out: the archive; an existing file is replaced. It must not lie in `run`.
        policy: the policy that judges the report; None: no gate.
        key: file of the audit key that signed the run; None: the run's own key beside the folder.

    Raises `ConfigError` without the extra `evidence`, the folder or the key, and for a policy that cannot
    be read, `AuditError` if the folder differs from what the owner of the key signed, `RunFolderError` if
    the archive cannot be written.
    """
    check_installed()
    if policy is not None:
        load_policy(policy)
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such folder; name that of a finished `run` or `matrix`")
    if out.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"--out {out}: must not be in {run}: the run's signature would no longer match")
    source = read_source(run, run_key(run, None if key is None else str(key), make=False))
    files = bundle_files(source, policy)
    check_nothing_private(files, source.private)
    archive.write_archive(out, files)
    return Bundled(
        files=len(files),
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        signer=source.public.hex(),
    )


def bundle_files(source: Source, policy: Path | None) -> dict[str, bytes]:
    """Return all files of a bundle, path -> content, including envelopes."""
    report, entries = source.report, source.entries[""]
    run = next(str(e.body["run"]) for e in entries if e.event == OPENED)
    signing = model_key(source.key)
    files = {
        **source.files,
        archive.SIGNER: source.public.hex().encode() + b"\n",
        archive.MODEL_SIGNER: public_pem(signing),
        archive.REDACTIONS: json_bytes(source.redactions),
        archive.PRIVACY: privacy_statements(source),
        archive.MODELS: models_file(source),
        archive.SBOM: sbom(
            source.models, run=run, name=report.name, time=entries[-1].time, ran=report.environment
        ),
        **threat_model_files(),
    }
    for model in source.models:
        settings = source.settings[model.folder]
        files[f"model-cards/{model.name}.md"] = model_card(model, report, settings)
        files[f"model-signatures/{model.name}.sig"] = sign_model(model.kind, model.files, signing)
    as_json, as_text = claims_files(report)
    files |= {archive.CLAIMS: as_json, archive.CLAIMS_TABLE: as_text.encode()}
    files[archive.NOT_MEASURED] = not_measured(report, gate=policy is not None)
    files[archive.FINDINGS] = seal_statement(
        findings_statement(findings(report, source.spent), files), source.key
    )
    if policy is not None:
        files[archive.POLICY] = read_bytes(policy)
        judgement = judged(report, files[archive.POLICY], signer=source.public)
        files[archive.VERDICT] = json_gate(judgement).encode()
        files[archive.GATE] = seal_statement(gate_statement(judgement, files), source.key)
    contents = contents_statement(files, run=run, audit_head=str(report.audit_head))
    files[archive.CONTENTS] = seal_statement(contents, source.key)
    return files


def judged(report: Report, policy: bytes, *, signer: bytes) -> Judgement:
    """Return the judgement of a report by a YAML policy; `signer` is the key that signed the report's run.

    Raises `ConfigError` for a policy that cannot be read.
    """
    rules = parse_policy(policy, Path(Path(archive.POLICY).name))
    pinned = replace(rules, signer=rules.signer or signer.hex())
    return judge(report, pinned, signed=Signed(problems=(), unsettled=(), signer=signer.hex()))


def privacy_statements(source: Source) -> bytes:
    """Return `privacy/statements.json`: each client's spending, and each configuration's guarantees."""
    report = source.report
    guarantees = {c.name: list(c.guarantees) for c in report.configurations}
    return json_bytes(
        {
            "schema_version": 1,
            "statements": list(source.spent),
            "guarantees": guarantees,
            "guarantees_of_all": list(report.guarantees),
            "composition": list(report.composition),
        }
    )


def models_file(source: Source) -> bytes:
    """Return `models.json`: each model's files by SHA-256, and its digest as model-signing computes it."""
    models = [
        {"name": m.name, "kind": m.kind, "files": dict(m.files), "digest": f"sha256:{root_digest(m.files)}"}
        for m in source.models
    ]
    return json_bytes({"schema_version": 1, "models": models})


def not_measured(report: Report, *, gate: bool) -> bytes:
    """Return `not-measured.md`: measures without a number, failed seeds, and attacks without a decision."""
    failed = [f"{c.name}: {line}" for c in report.configurations for line in c.failed]
    undecided = [
        (c.name, f"{f.id} {f.attack}", f.view, f.outcome.value, f.reason)
        for c in report.configurations
        for f in c.findings
        if f.outcome in NOTHING_DECIDED
    ]
    parts = [
        "# What was not measured",
        markdown_items((*report.not_measured, *failed, *NEVER, *(() if gate else (NO_POLICY,)))),
    ]
    if undecided:
        headings = ("configuration", "attack", "view", "outcome", "why")
        parts += ["## Attacks that decided nothing", markdown_table(headings, undecided, right=False)]
    return ("\n\n".join(parts) + "\n").encode()
