"""The in-toto Statements of a bundle (specification v1), and their predicates.

contents   the list of all files; its subjects are all files except its own, by SHA-256
findings   trilemma, epsilon and attacks (`findings`); its subjects are the report and clients' epsilon
gate       in-toto's test-result v0.1; its subjects are the report and the verdict
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from fedproxy_secure import __version__
from fedproxy_secure.bundle.archive import POLICY, PRIVACY, REPORT, VERDICT
from fedproxy_secure.bundle.envelope import STATEMENT_TYPE
from fedproxy_secure.bundle.findings import PREDICATE as FINDINGS_PREDICATE
from fedproxy_secure.gate.verdict import Judgement, Verdict, worst_of

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
CONTENTS_PREDICATE = "urn:fedproxy-secure:bundle-contents:v0.1"
BUNDLE_VERSION = 1


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content, hex."""
    return hashlib.sha256(content).hexdigest()


def statement(
    predicate_type: str, predicate: Mapping[str, Any], files: Mapping[str, bytes], subjects: Iterable[str]
) -> dict[str, Any]:
    """Return a Statement about some of the files, named by their paths in the bundle."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": sha256(files[n])}} for n in sorted(subjects)],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }


def contents_statement(files: Mapping[str, bytes], *, run: str, audit_head: str) -> dict[str, Any]:
    """Return the statement that lists all other files of a bundle.

    Args:
        files: all other files, including envelopes.
        run: the run's random number, hex, as its audit log has it.
        audit_head: the audit log's last hash, hex.
    """
    predicate = {
        "bundle_version": BUNDLE_VERSION,
        "fedproxy_secure": __version__,
        "run": run,
        "audit_head": audit_head,
    }
    return statement(CONTENTS_PREDICATE, predicate, files, files)


def findings_statement(predicate: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the statement on trilemma, epsilon and attacks."""
    return statement(FINDINGS_PREDICATE, predicate, files, (REPORT, PRIVACY))


def gate_statement(judgement: Judgement, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the gate's verdict as a test result.

    PASSED: every rule is kept. FAILED: a rule is broken. WARNED: evidence is missing or inconclusive, which
    the gate does not let pass either. A rule of several rows, such as one for several attacks, is one test
    with the worst of their verdicts.
    """
    rows: dict[str, Verdict] = {}
    for row in judgement.rows:
        name = f"{row.configuration}: {row.rule}"
        rows[name] = worst_of([row.verdict, rows.get(name, row.verdict)])
    undecided = (Verdict.MISSING, Verdict.INCONCLUSIVE)
    predicate = {
        "result": {0: "PASSED", 1: "FAILED"}.get(judgement.exit_code, "WARNED"),
        "configuration": [{"name": POLICY, "digest": {"sha256": sha256(files[POLICY])}}],
        "passedTests": [name for name, verdict in rows.items() if verdict is Verdict.PASSED],
        "warnedTests": [name for name, verdict in rows.items() if verdict in undecided],
        "failedTests": [name for name, verdict in rows.items() if verdict is Verdict.FAILED],
    }
    return statement(TEST_RESULT, predicate, files, (REPORT, VERDICT))
