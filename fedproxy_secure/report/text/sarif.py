"""Findings and unsafe settings in SARIF 2.1.0, for dashboards of code scanners (`report.sarif`).

Every result has a physical location: the `config.yaml` of the run that the finding is about. Levels follow
the outcome, and only a success is an error:

    SUCCEEDED               fail, error
    INCONCLUSIVE, ERROR     fail, warning: missing evidence never passes
    RESISTED                pass, none
    NOT_APPLICABLE          notApplicable, none
    an unsafe setting       fail, warning
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.page_words import attacks_in_order
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.artifacts import write_bytes
from fedproxy_secure.runtime.escape import printable
from fedproxy_secure.runtime.files.names import REPORT_SARIF, SETTINGS_FILE

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
UNSAFE_RULE = "unsafe-setting"
LEVELS = {
    Outcome.SUCCEEDED: ("fail", "error"),
    Outcome.INCONCLUSIVE: ("fail", "warning"),
    Outcome.ERROR: ("fail", "warning"),
    Outcome.RESISTED: ("pass", "none"),
    Outcome.NOT_APPLICABLE: ("notApplicable", "none"),
}
Json = dict[str, Any]


def write_sarif(report: Report, folder: Path) -> Path:
    """Write `report.sarif` into `folder`, atomically, and return its path.

    Raises `RunFolderError` if the folder cannot be written.
    """
    text = json.dumps(sarif(report), indent=2, allow_nan=False) + "\n"
    write_bytes(folder / REPORT_SARIF, text.encode())
    return folder / REPORT_SARIF


def sarif(report: Report) -> Json:
    """Return the log: one run of one tool, one rule per attack, one result per finding."""
    findings = [f for c in report.configurations for f in c.findings]
    rules = _rules(findings)
    positions = {rule["id"]: i for i, rule in enumerate(rules)}
    results = [
        _result(c, f, positions[_rule_id(f.id, f.attack)])
        for c in report.configurations
        for f in c.findings
    ]
    results += [
        _stamp(c, stamp, positions[UNSAFE_RULE]) for c in report.configurations for stamp in c.unsafe
    ]
    results += [
        _stamp_of_methods(report, stamp, names, positions[UNSAFE_RULE])
        for stamp, names in report.unsafe.items()
    ]
    failed = [f"{c.name}: {line}" for c in report.configurations for line in c.failed]
    failed += [f"{report.name}: not finished: {line}" for line in report.unfinished]
    run = {
        "tool": {
            "driver": {
                "name": "fedproxy-secure",
                "version": metadata.version("fedproxy-secure"),
                "rules": rules,
                "supportedTaxonomies": [
                    {"name": name, "index": i} for i, (name, _) in enumerate(_frameworks(findings))
                ],
            }
        },
        "taxonomies": _taxonomies(findings),
        "automationDetails": {"id": f"fedproxy-secure/{report.name}/"},
        "invocations": [
            {
                "commandLine": report.command,
                "executionSuccessful": not failed,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": line}} for line in failed
                ],
            }
        ],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {
            "config_sha256": report.config_sha256,
            "audit_head": report.audit_head,
            "seeds": list(report.seeds),
            "not_measured": list(report.not_measured),
        },
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [_plain(run)]}


def _rules(findings: Sequence[Finding]) -> list[Json]:
    """Return one rule per attack, tagged with its items of frameworks, and one for unsafe settings."""
    rules: list[Json] = []
    for id, name in attacks_in_order(findings):
        first = next(f for f in findings if (f.id, f.attack) == (id, name))
        rules.append(
            {
                "id": _rule_id(id, name),
                "name": "".join(part.capitalize() for part in name.split("_")),
                "shortDescription": {"text": f"{id} {name.replace('_', ' ')}: {first.title}"},
                "defaultConfiguration": {"level": "error"},
                "relationships": [
                    {
                        "target": {"id": item, "toolComponent": {"name": framework}},
                        "kinds": ["relevant"],
                    }
                    for framework, _, item in first.mapping
                ],
                "properties": {
                    "tags": ["security", "privacy", *(" ".join(triple) for triple in first.mapping)]
                },
            }
        )
    unsafe = {
        "id": UNSAFE_RULE,
        "name": "UnsafeSetting",
        "shortDescription": {"text": "A setting that gives up protection; it is stamped on every report."},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["security"]},
    }
    return [*rules, unsafe]


def _result(configuration: Configuration, finding: Finding, rule: int) -> Json:
    kind, level = LEVELS[finding.outcome]
    numbers = [
        f"{label}{Number(e, '').short} ({e.metric}, n = {e.n})"
        for label, e in (
            ("", finding.headline),
            ("positive control ", finding.positive),
            ("negative control ", finding.negative),
        )
        if e is not None
    ]
    text = (
        f"{finding.attack} from {finding.view} in {configuration.name}, {finding.seed_folder}: "
        f"{finding.outcome}: {finding.reason}."
    )
    who = (configuration.name, finding.attack, finding.view, finding.seed_folder)
    return {
        "ruleId": _rule_id(finding.id, finding.attack),
        "ruleIndex": rule,
        "kind": kind,
        "level": level,
        "message": {"text": " ".join([text, *([("; ".join(numbers)) + "."] if numbers else [])])},
        "locations": [_location(configuration.file_of(finding, SETTINGS_FILE))],
        "partialFingerprints": {"finding/v1": _digest(who)},
        "properties": {
            "outcome": str(finding.outcome),
            "configuration": configuration.name,
            "view": finding.view,
            "surfaces": list(finding.surfaces),
            "seed": finding.seed,
            "profile": finding.profile,
            "source": configuration.source_of(finding),
        },
    }


def _stamp(configuration: Configuration, stamp: str, rule: int) -> Json:
    folder = next(iter(configuration.folders.values()), ".")
    path = SETTINGS_FILE if folder in ("", ".") else f"{folder}/{SETTINGS_FILE}"
    return _unsafe(configuration.name, stamp, rule, path) | {
        "properties": {"configuration": configuration.name}
    }


def _stamp_of_methods(report: Report, stamp: str, names: Sequence[str], rule: int) -> Json:
    made = _unsafe(", ".join(names), stamp, rule, SETTINGS_FILE)
    return made | {"properties": {"comparison": report.name, "methods": list(names)}}


def _unsafe(whose: str, stamp: str, rule: int, path: str) -> Json:
    return {
        "ruleId": UNSAFE_RULE,
        "ruleIndex": rule,
        "kind": "fail",
        "level": "warning",
        "message": {"text": f"{whose}: {stamp}"},
        "locations": [_location(path)],
        "partialFingerprints": {"finding/v1": _digest((whose, stamp))},
    }


def _plain(value: Any) -> Any:
    """Return all texts without control characters and without `](`, which makes a link in a message."""
    if isinstance(value, str):
        return printable(value).replace("](", "] (")
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _location(path: str) -> Json:
    from urllib.parse import quote

    return {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(path)},
            "region": {"startLine": 1},
        }
    }


def _frameworks(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return (framework, version) of all frameworks that findings map to."""
    return list(dict.fromkeys((name, version) for f in findings for name, version, _ in f.mapping))


def _taxonomies(findings: Sequence[Finding]) -> list[Json]:
    return [
        {
            "name": name,
            "version": version,
            "taxa": [
                {"id": item}
                for item in dict.fromkeys(
                    i for f in findings for n, v, i in f.mapping if (n, v) == (name, version)
                )
            ],
        }
        for name, version in _frameworks(findings)
    ]


def _rule_id(id: str, name: str) -> str:
    return f"{id}-{name.replace('_', '-')}"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
