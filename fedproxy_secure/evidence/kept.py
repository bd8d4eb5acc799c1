"""The findings of attacks on a run so far: `results.json`, and the log `events.jsonl` with newer ones.

A suite appends each finding to the log when it is ready and writes all to `results.json` when the suite
ends. After a kill the last findings are only in the log. Findings are about the state of a seed when it was
attacked, so they are removed when the seed's training goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.evidence.finding import SCHEMA_VERSION, Finding, read_findings, write_findings
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_EVENTS, FINDINGS
from fedproxy_secure.runtime.untrusted import parse_json

log = logging.getLogger(__name__)
Key = tuple[str, str, str]  # the seed's folder, threat model, attack


def key_of(finding: Finding) -> Key:
    """Return the seed's folder, threat model and attack of a finding."""
    return finding.seed_folder, finding.view, finding.attack


def append_event(run: Path, finding: Finding) -> None:
    """Append a finding to a run's log; its line has the schema version, as each line may be of another."""
    line = {"schema_version": SCHEMA_VERSION, **finding.to_json()}
    RunFolder(path=run, private=True).append_jsonl(ATTACK_EVENTS, line)


def read_events(run: Path) -> list[Finding]:
    """Return the findings in a run's log, in order, without damaged lines and those of another version."""
    findings, unlike = [], set[str]()
    for raw in _lines(run):
        if (version := raw.pop("schema_version", None)) != SCHEMA_VERSION:
            unlike.add(str(version))
            continue
        try:
            findings.append(Finding.from_json(raw))
        except (ValueError, FedProxyError):
            continue
    if unlike:
        log.warning(
            "%s: lines of schema_version=%s are left out: must be %d; run their attacks again",
            run / ATTACK_EVENTS,
            ", ".join(sorted(unlike)),
            SCHEMA_VERSION,
        )
    return findings


def kept_findings(run: Path) -> dict[Key, Finding]:
    """Return the last finding of each attack, from `results.json` and the log, which has newer ones.

    A `results.json` that cannot be read is ignored with a warning.
    """
    findings: list[Finding] = []
    if (run / FINDINGS).exists():
        try:
            findings = read_findings(run)
        except RunFolderError as error:
            log.warning("%s; what else it holds is lost", error)
    return {key_of(f): f for f in (*findings, *read_events(run))}


def forget_events(run: Path, forgotten: Callable[[Mapping[str, Any]], bool]) -> None:
    """Remove lines from a run's log, and all damaged lines."""
    folder = RunFolder(path=run, private=True)
    if not (run / ATTACK_EVENTS).exists():
        return
    lines = [json.dumps(raw, sort_keys=True) + "\n" for raw in _lines(run) if not forgotten(raw)]
    folder.write_text(ATTACK_EVENTS, "".join(lines))


def forget_seed(run: Path, seed_folder: str) -> None:
    """Remove all findings about a seed, whose state is about to change.

    Raises `RunFolderError` for a `results.json` that cannot be read, because a report would fail on it.
    """
    findings = read_findings(run) if (run / FINDINGS).exists() else []
    forget_events(run, lambda raw: raw.get("seed_folder") == seed_folder)
    remaining = [f for f in findings if f.seed_folder != seed_folder]
    if len(remaining) == len(findings):
        return
    log.warning(
        "%s: %d of %d findings are dropped: they are about an earlier state of %s; attack the run again",
        run / FINDINGS,
        len(findings) - len(remaining),
        len(findings),
        seed_folder,
    )
    if remaining:
        write_findings(run, remaining)
    else:  # an empty file would mean that a suite of attacks ran
        (run / FINDINGS).unlink()


def _lines(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of the log that are objects, and warn about the others."""
    path, lines, damaged = run / ATTACK_EVENTS, list[dict[str, Any]](), 0
    try:
        complete = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is unfinished
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    for line in complete:
        try:
            raw = parse_json(line)
        except ValueError:
            raw = None
        if isinstance(raw, dict):
            lines.append(raw)
        else:
            damaged += 1
    if damaged:
        log.warning("%s: %d lines are damaged and left out", path, damaged)
    return lines
