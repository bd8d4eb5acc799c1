"""This project's in-toto predicate: a report's results on trilemma, epsilon and attacks.

The form is `findings.schema.json`, which ships beside this module. Everything in it follows from the
report and from the clients' statements on epsilon, so anybody who has both can compute and compare it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.report.report import Report

PREDICATE = "urn:fedproxy-secure:findings:v0.1"
SCHEMA_VERSION = 1
SCHEMA = Path(__file__).parent / "findings.schema.json"


def findings(report: Report, spent: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the predicate of a report and of the clients' spending (`Source.spent`), as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "name": report.name,
            "config_sha256": report.config_sha256,
            "audit_head": report.audit_head,
            "seeds": list(report.seeds),
        },
        "trilemma": [
            {
                "configuration": c.name,
                "settings": dict(c.settings),
                "seeds": list(c.seeds),
                "privacy_unit": c.privacy_unit,
                "unsafe": list(c.unsafe),
                "failed": list(c.failed),
                "guarantees": list(c.guarantees),
                "measures": [
                    {
                        "axis": m.axis,
                        "key": m.key,
                        "better": m.better,
                        "estimate": _plain(m.estimate),
                        "source": m.source,
                    }
                    for m in c.measures
                ],
            }
            for c in report.configurations
        ],
        "epsilon": [dict(line) for line in spent],
        "total_epsilon": _plain(report.total_epsilon),
        "attacks": [
            {
                "configuration": c.name,
                "id": f.id,
                "attack": f.attack,
                "view": f.view,
                "seed_folder": f.seed_folder,
                "profile": f.profile,
                "outcome": f.outcome.value,
                "reason": f.reason,
                "headline": _plain(f.headline),
                "mapping": [list(entry) for entry in f.mapping],
            }
            for c in report.configurations
            for f in c.findings
        ],
        "notes": list(report.notes),
        "not_measured": list(report.not_measured),
    }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else {**asdict(estimate), "seeds": list(estimate.seeds)}
