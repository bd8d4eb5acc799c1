"""Read what a bundle takes from the folder of a finished, signed run or matrix, without clients' paths.

Guarantees: the folder was verified with the public half of the signing key before anything of it was read;
the result holds no private string of any of its settings, and not the text of the error that ended a run,
which may come from any code. Not guaranteed: that nobody changes the folder between the check and the
reading; `evidence verify` would detect it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.audit.examine import examine
from fedproxy_secure.audit.seal import file_sha256
from fedproxy_secure.audit.verify import verify_run
from fedproxy_secure.audit.vouched import FINISHED, INNER, vouched_files
from fedproxy_secure.bundle.redaction import (
    MARK,
    paths_in,
    private_strings,
    redacted_text,
    redacted_value,
)
from fedproxy_secure.crypto.primitives import signing_public
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError, RunFolderError
from fedproxy_secure.report.report import Report, adapter
from fedproxy_secure.runtime.artifacts import json_bytes, read_file
from fedproxy_secure.runtime.files.names import (
    AUDIT_LOG,
    MODEL_FOLDERS,
    REPORT_JSON,
    REPORT_PAGE,
    RESULT,
    SEED_PREFIX,
    SETTINGS_FILE,
    SIGNATURE,
    seed_folder,
)
from fedproxy_secure.runtime.untrusted import parse_json, parse_yaml, read_bytes, read_json

ABORTED, REASON = "aborted", "reason"  # an event that says why a run ended, and the text of the error
MODEL_FILE = re.compile(rf"({SEED_PREFIX}\d+)/({'|'.join(MODEL_FOLDERS)})/(.+)")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of a run, known by its files' digests; weights are in no bundle.

    Args:
        folder: the run's folder relative to the bundled one; empty for the folder itself.
        seed: name of the seed's folder, such as `seed-0`.
        kind: `proxy`, `adapter` or `fused`.
        files: path below the model's folder -> SHA-256, hex.
    """

    folder: str
    seed: str
    kind: str
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        """The path of the model's folder, relative to the bundled one."""
        return "/".join(part for part in (self.folder, self.seed, self.kind) if part)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A verified run, read and redacted.

    Args:
        key, public: the audit key that signed it, and its public half, 32 bytes.
        files: the copied files: path in the bundle -> content.
        redactions: path in the bundle -> the changes to the copy, for `redactions.json`.
        report: the report as the bundle has it.
        entries: the events of each log, by folder; the run's own under "".
        settings: the settings of each folder that holds models, by folder; the run's own under "".
        models: its proxies, adapters and fused LLMs.
        spent: the spending in each client's ledger, one statement per seed and client.
        private: the strings that no file of the bundle may hold.
    """

    key: Secret
    public: bytes
    files: Mapping[str, bytes]
    redactions: Mapping[str, Mapping[str, Any]]
    report: Report
    entries: Mapping[str, Sequence[Entry]]
    settings: Mapping[str, Mapping[str, Any]]
    models: Sequence[Model]
    spent: Sequence[Mapping[str, Any]]
    private: tuple[str, ...]


def read_source(run: Path, key: Secret) -> Source:
    """Read what a bundle takes from `run`, the folder of `run` or `matrix`, which `key` signed.

    Raises `AuditError` if the folder differs from what the owner of the key signed, `RunFolderError` for
    files that cannot be read.
    """
    public = signing_public(key)
    checked = verify_run(run, key=public)
    if not checked.verified:
        first = (*checked.problems, *checked.unsettled)[0]
        raise AuditError(
            f"{run}: {first}; must be a finished run, unchanged since it was signed; see `audit verify`"
        )
    logs = {"": _log(run)} | {f: _log(run / f) for f in inner_folders(_log(run))}
    settings = {folder: _settings(run / folder) for folder in logs}
    strings = {s for each in settings.values() for s in private_strings(each)}
    strings |= set(paths_in(_sentences(parse_json(read_file(run / REPORT_JSON)), logs)))
    private = tuple(sorted(strings, key=lambda s: (-len(s), s)))
    files: dict[str, bytes] = {}
    redactions: dict[str, Mapping[str, Any]] = {}
    for folder, entries in logs.items():
        name = "/".join(part for part in ("audit", folder, AUDIT_LOG) if part)
        files[name], redacted = _without_private(entries, private)
        if redacted:
            redactions[name] = {"lines": redacted}
        files[name.removesuffix(AUDIT_LOG) + SIGNATURE] = read_file(run / folder / SIGNATURE)
    for name, text in _redacted_reports(run, private).items():
        original = read_file(run / name)
        files[f"report/{name}"] = text
        if text != original:
            redactions[f"report/{name}"] = {"sha256": file_sha256(run / name)}
    return Source(
        key=key,
        public=public,
        files=files,
        redactions=redactions,
        report=adapter().validate_python(parse_json(files[f"report/{REPORT_JSON}"])),
        entries=logs,
        settings=settings,
        models=[m for folder, entries in logs.items() for m in models_of(folder, entries)],
        spent=[line for folder in logs for line in _spent(run, folder, logs[folder], settings[folder])],
        private=private,
    )


def inner_folders(entries: Sequence[Entry]) -> list[str]:
    """Return the folders of the logs below this one, such as those of a matrix's cells."""
    return sorted({str(e.body.get("folder")) for e in entries if e.event == INNER})


def models_of(folder: str, entries: Sequence[Entry]) -> list[Model]:
    """Return the models whose files a log names, ordered by seed and kind."""
    by_model: dict[tuple[str, str], dict[str, str]] = {}
    for name, (sha256, _) in sorted(vouched_files(entries).items()):
        if match := MODEL_FILE.fullmatch(name):
            by_model.setdefault((match[1], match[2]), {})[PurePosixPath(match[3]).as_posix()] = sha256
    return [Model(folder=folder, seed=s, kind=k, files=files) for (s, k), files in by_model.items()]


def _sentences(report: Mapping[str, Any], logs: Mapping[str, Sequence[Entry]]) -> Iterator[str]:
    """Yield the texts that may quote errors, also errors of other parties' machines."""
    yield from (*report["notes"], *report["not_measured"])
    for configuration in report["configurations"]:
        yield from configuration["failed"]
        yield from (finding["reason"] for finding in configuration["findings"])
    for entries in logs.values():
        yield from (str(e.body.get(REASON, "")) for e in entries if e.event == ABORTED)


def _log(folder: Path) -> Sequence[Entry]:
    return examine(read_file(folder / AUDIT_LOG)).entries


def _without_private(entries: Sequence[Entry], private: tuple[str, ...]) -> tuple[bytes, list[int]]:
    """Return the log's bytes, and the numbers of the lines whose body had to be changed.

    A changed line keeps its hash and signature, so the chain holds and the change is visible.
    """
    lines, changed = [], []
    for number, entry in enumerate(entries, start=1):
        body = redacted_value(entry.body, private)
        if entry.event == ABORTED and body.get(REASON):
            body[REASON] = MARK
        if body != entry.body:
            changed.append(number)
        lines.append(replace(entry, body=body).line())
    return b"".join(line + b"\n" for line in lines), changed


def _redacted_reports(run: Path, private: tuple[str, ...]) -> dict[str, bytes]:
    """Return both forms of the report; one without a private string is returned byte for byte."""
    raw, page = read_file(run / REPORT_JSON), read_file(run / REPORT_PAGE)
    value = parse_json(raw)
    clean = redacted_value(value, private)
    text = page.decode("utf-8", errors="strict")
    return {
        REPORT_JSON: raw if clean == value else json_bytes(clean),
        REPORT_PAGE: redacted_text(text, private).encode(),
    }


def _settings(folder: Path) -> Mapping[str, Any]:
    path = folder / SETTINGS_FILE
    try:
        raw = parse_yaml(read_bytes(path))
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RunFolderError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise RunFolderError(f"{path}: is damaged: must hold `key: value`")
    return raw


def _spent(
    run: Path, folder: str, entries: Sequence[Entry], settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the spending of each client of each finished seed, from the result that the log vouches for."""
    privacy = settings.get("privacy") or {}
    unit = str(privacy.get("unit", "none"))
    limit = privacy.get("max_epsilon") or privacy.get("target_epsilon")
    for seed in sorted({int(e.body["seed"]) for e in entries if e.event == FINISHED}):
        path = run / folder / seed_folder(seed) / RESULT
        try:
            spent = read_json(path).get("spent") or {}
        except (OSError, ValueError, AttributeError) as error:
            raise RunFolderError(f"{path}: is damaged: {error}") from error
        for client, cost in sorted(spent.items()):
            yield {
                "folder": folder,
                "seed": seed,
                "client": client,
                "unit": unit,
                "epsilon": cost["epsilon"],
                "delta": cost["delta"],
                "accountant": cost["accountant"],
                "limit": limit,
            }


def finished_epsilon(entries: Sequence[Entry]) -> dict[tuple[int, str], float]:
    """Return the epsilon that a log's `finished` events name, by seed and client."""
    return {
        (int(e.body["seed"]), str(client)): float(epsilon)
        for e in entries
        if e.event == FINISHED
        for client, epsilon in (e.body.get("epsilon_spent") or {}).items()
    }
