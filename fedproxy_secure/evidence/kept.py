"""What attacks on a run have found so far: `results.json`, and the log `events.jsonl` that is ahead of it.

A suite appends each finding to the log as it comes and joins all in `results.json` when it ends. After a
kill the last findings are in the log alone. Findings are about a seed as it was when it was attacked: they
go when it is trained on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.evidence.finding import Finding, read_findings, write_findings
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_EVENTS, FINDINGS
from fedproxy_secure.runtime.untrusted import parse_json

log = logging.getLogger(__name__)
Key = tuple[str, str, str]  # the seed's folder, threat model, attack


def key_of(found: Finding) -> Key:
    """Return what a finding is the result of."""
    return found.seed_folder, found.view, found.attack


def read_events(run: Path) -> list[Finding]:
    """Return the findings in a run's log, in the order in which they came.

    Lines that are damaged are left out.
    """
    findings = []
    for raw in _lines(run):
        try:
            findings.append(Finding.from_json(raw))
        except (ValueError, FedProxyError):
            continue
    return findings


def kept_findings(run: Path) -> dict[Key, Finding]:
    """Return the last finding of each attack: of `results.json`, and of the log, which has what is newer.

    A `results.json` that cannot be read counts as none; a line of log says so.
    """
    found: list[Finding] = []
    if (run / FINDINGS).exists():
        try:
            found = read_findings(run)
        except RunFolderError as error:
            log.warning("%s; what else it holds is lost", error)
    return {key_of(f): f for f in (*found, *read_events(run))}


def forget_events(run: Path, forgotten: Callable[[Mapping[str, Any]], bool]) -> None:
    """Take lines out of a run's log, and with them those that are damaged."""
    folder = RunFolder(path=run)
    if not (run / ATTACK_EVENTS).exists():
        return
    kept = [json.dumps(raw, sort_keys=True) + "\n" for raw in _lines(run) if not forgotten(raw)]
    folder.write_text(ATTACK_EVENTS, "".join(kept))


def forget_seed(run: Path, seed_folder: str) -> None:
    """Remove all findings about a seed, which is about to be another than they are about.

    Raises `RunFolderError` for a `results.json` that cannot be read: a report would fail on it later.
    """
    findings = read_findings(run) if (run / FINDINGS).exists() else []
    forget_events(run, lambda raw: raw.get("seed_folder") == seed_folder)
    others = [f for f in findings if f.seed_folder != seed_folder]
    if len(others) == len(findings):
        return
    log.warning(
        "%s: %d of %d findings are dropped: they are about an earlier state of %s; attack the run again",
        run / FINDINGS,
        len(findings) - len(others),
        len(findings),
        seed_folder,
    )
    if others:
        write_findings(run, others)
    else:  # else a report would say that a suite of attacks ran
        (run / FINDINGS).unlink()


def _lines(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of the log that are objects; a line of warning tells how many are none."""
    path, lines, damaged = run / ATTACK_EVENTS, list[dict[str, Any]](), 0
    try:
        whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is unfinished
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    for line in whole:
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
