"""The folder of a finished, signed run, written without training: a made-up report, files as models."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import escape

from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.bundle import archive
from fedproxy_secure.bundle.envelope import seal_statement
from fedproxy_secure.bundle.statements import contents_statement
from fedproxy_secure.config import parse_config
from fedproxy_secure.crypto.key_file import read_key
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.escape import printable
from tests.support.sample_report import sample_report

SPENT = {"epsilon": 7.25, "delta": 1e-05, "accountant": "prv", "prv": 7.25, "rdp": 8.5}
CLIENTS = ("clinic", "bank", "council")


@dataclass(frozen=True, kw_only=True)
class SignedRun:
    """A run's folder, its audit key and the public half of that."""

    folder: Path
    key: Secret

    @property
    def public(self) -> bytes:
        return signing_public(self.key)


def signed_run(
    place: Path,
    *,
    name: str = "run",
    key: Path | None = None,
    command: str = "fedproxy-secure run mine.yaml",
    root: str = "/srv/clients",
    more: dict[str, bytes] | None = None,
    aborted: str | None = None,
    failed: str | None = None,
) -> SignedRun:
    """Write it to `place/name`.

    Args:
        key: a key made by `audit keygen`; None: one of the run's own.
        command: what the log and the report have as the run's command.
        root: `data.root` of the settings.
        more: further files of seed 0, by path below `seed-0`; the log vouches for them, and names keys.
        aborted: text of an error that ended the run once before it was resumed.
        failed: what the report says of a seed that did not finish.
    """
    settings = {
        "name": "mine",
        "seeds": [0],
        "data": {
            "root": root,
            "clients": [
                {"name": c, "task": "x", "source": f"{{data}}/{c}.{{split}}.jsonl"} for c in CLIENTS
            ],
        },
        "privacy": {"unit": "record", "max_epsilon": 8},
        "audit": {} if key is None else {"signing_key": str(key)},
    }
    config = parse_config(settings)
    folder = RunFolder.create(place / name, config.with_signing_key(None))
    witness = Witness.open(folder, config, command=command)
    witness.started(0)
    if aborted is not None:
        with suppress(DataError), witness.aborts():
            raise DataError(aborted)
    for kind in ("proxy", "fused"):
        folder.write_text(f"seed-0/{kind}/config.json", json.dumps({"kind": kind}))
        folder.write_bytes(f"seed-0/{kind}/model.safetensors", f"weights of the {kind}".encode() * 9)
    folder.write_text("seed-0/adapter/adapter_config.json", json.dumps({"base": f"{root}/llm"}))
    folder.write_bytes("seed-0/adapter/adapter_model.safetensors", b"weights of the adapter")
    for path, content in (more or {}).items():
        folder.write_bytes(f"seed-0/{path}", content)
    result = {"seed": 0, "spent": dict.fromkeys(CLIENTS, SPENT), "fused": {c: "101" for c in CLIENTS}}
    epsilon = dict.fromkeys(CLIENTS, SPENT["epsilon"])
    witness.finished(0, (json.dumps(result) + "\n").encode(), epsilon=epsilon)
    report = made_up_report(audit_head=witness.settle(), command=command)
    if failed is not None:
        (configuration,) = report.configurations
        report = replace(report, configurations=(replace(configuration, failed=(failed,)),))
    shown = printable(command, keep="\n")
    script = json.dumps(shown).replace("<", "\\u003c")
    page = f"<!doctype html><code>{escape(shown)}</code><script>{script}</script>"
    folder.write_text("report.html", page)  # the real page takes seconds and holds the same text
    report.write(folder.path)
    witness.sign()
    file = own_key_file(folder.path) if key is None else key
    return SignedRun(folder=folder.path, key=read_key(file))


def made_up_report(**changes: Any) -> Report:
    """One configuration with differential privacy and attacks, of a run that lies in the folder itself."""
    report = sample_report(protections=("masking", "masking_dp8"), ratios=(0.5,), seeds=(0,), rounds=2)
    configurations = tuple(replace(c, folders={"seed-0": "."}) for c in report.configurations[1:])
    return replace(report, configurations=configurations, attack_differences=(), **changes)


def resealed(files: dict[str, bytes], key: Secret) -> dict[str, bytes]:
    """The files with a new list of contents, signed with `key`: what the signer, or another, could make."""
    from fedproxy_secure.bundle.envelope import open_envelope

    others = {n: c for n, c in files.items() if n != archive.CONTENTS}
    try:
        old = open_envelope(files[archive.CONTENTS], signing_public(key))["predicate"]
    except Exception:
        old = {"run": "00" * 16, "audit_head": "00" * 32}
    contents = contents_statement(others, run=old["run"], audit_head=old["audit_head"])
    return {**others, archive.CONTENTS: seal_statement(contents, key)}
