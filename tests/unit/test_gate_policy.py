"""Policies: who must have signed, which files are none, and those that are shipped."""

from dataclasses import replace

import pytest

from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.measure import MEASURES
from fedproxy_secure.gate.judge import Verdict, judge
from fedproxy_secure.gate.policy import find_policy, load_policy
from fedproxy_secure.gate.rules import OTHERS, limit_names, limit_of
from fedproxy_secure.runtime.untrusted import MOST_BYTES
from tests.support.gate_samples import SAFE, SIGNED, SIGNER, policy, release_policy, report


@pytest.fixture
def release():
    """As shipped, with the signer's key put in as its first lines ask for."""
    return release_policy()


def test_a_policy_that_wants_a_signature_gets_one_or_stays_shut(release):
    shut = {
        "nothing": (None, report(SAFE), 3),
        "no head": (SIGNED, report(SAFE, audit_head=None), 3),
        "unfinished": (replace(SIGNED, unsettled=("open",)), report(SAFE), 3),
        "tampered": (replace(SIGNED, problems=("line 3: was altered",)), report(SAFE), 1),
    }
    for signed, found, code in shut.values():
        judgement = judge(found, release, signed=signed)
        assert judgement.exit_code == code
        assert judgement.rows[0].verdict != Verdict.PASSED


def test_a_signature_by_somebody_whom_nobody_named_opens_no_gate(release):
    """Anybody can forge a whole folder and sign it with a key made for it."""
    judgement = judge(report(SAFE), replace(release, signer=None), signed=SIGNED)
    assert judgement.exit_code == 3
    assert judgement.rows[0].verdict == Verdict.MISSING
    assert "no signer was expected: name the expected key with --key PUB" in judgement.rows[0].why


def test_a_named_signer_must_have_signed(release):
    assert judge(report(SAFE), replace(release, signer=SIGNER), signed=SIGNED).exit_code == 0
    assert judge(report(SAFE), replace(release, signer="cd" * 32), signed=SIGNED).exit_code == 1


# --- the policy file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- max_token_acu: 0.6", "unknown rule; did you mean 'max_token_auc'?"),
        ("- max_token_auc: 60", "max_token_auc=60: must be a number >= 0 and <= 1"),
        ("- max_token_auc: true", "max_token_auc=True: must be a number"),
        ("- max_token_auc: .nan", "must be a number"),
        ("- max_epsilon: .inf", "must be a number"),
        pytest.param(f"- max_epsilon: {10**400}", "at most 64 bits", id="400 digits"),
        pytest.param(
            "- max_epsilon: 3\n  applies_to: {remove_ratio: .inf}",
            "must be of numbers that a float can hold",
            id="an infinite setting",
        ),
        ("- max_token_auc: low", "max_token_auc='low'"),
        ("- max_token_auc: 0.6\n  max_token_auc: 0.9", "line 5: max_token_auc is given twice"),
        ("- max_token_auc: 0.6\n  max_epsilon: 3", "has 2 rules; must have one"),
        ("- applies_to: {protection: masking}", "has 0 rules"),
        ("- forbid_unsafe: false", "forbid_unsafe=False: must be true"),
        ("- require_unit: user", "require_unit='user': must be record or client"),
        ("- resist: A2", "resist='A2': must be attacks"),
        ("- resist: []", "must be attacks"),
        ("- min_seeds: 0", "min_seeds=0"),
        ("- min_seeds: true", "min_seeds=True"),
        ("- max_epsilon: 3\n  not_applicable: pass", "only with a rule on attacks"),
        ("- max_token_auc: 0.6\n  not_applicable: fail", "not_applicable='fail'"),
        ("- max_token_auc: 0.6\n  views: [server]", "only with the rule `resist`"),
        ("- max_token_auc: 0.6\n  applies_to: masking", "applies_to='masking'"),
        ("- max_token_auc: 0.6\n  applies_to: {protection: []}", "a value or a list of values"),
        ("- max_token_auc: 0.6\n  applies_to: {protection: true}", "a value or a list of values"),
        ("- just text", "must be `rule: bound`"),
    ],
)
def test_a_wrong_policy_is_refused_in_one_line(tmp_path, text, line):
    with pytest.raises(ConfigError) as raised:
        policy(tmp_path, text)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is empty; must hold a policy as `key: value`"),
        ("rules: [}", "is not YAML: line 1: expected the node content, but found '}'"),
        ("schema_version: 2", "schema_version=2: must be 1"),
        ("schema_version: 1\nrule: []", "rule: unknown key; did you mean 'rules'?"),
        ("schema_version: 1\nrequire_signed_audit: 1", "require_signed_audit=1: must be true or false"),
        ("schema_version: 1\nsigner: " + "ab" * 32, "with require_signed_audit: true"),
        ("schema_version: 1\nrequire_signed_audit: true\nsigner: no", "must be 64 hex digits"),
        ("schema_version: true\nrules:\n- max_epsilon: 1", "schema_version=True: must be 1"),
        ("schema_version: 1.0\nrules:\n- max_epsilon: 1", "schema_version=1.0: must be 1"),
        ("schema_version: 1", "rules=None"),
        ("schema_version: 1\nrules: []", "rules=[]: must be a list of at least one rule"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_one_line(tmp_path, text, line):
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_policy(tmp_path / "policy.yaml")
    assert line in str(raised.value)


def test_a_policy_that_is_too_large_to_read_is_told_so(tmp_path):
    with (tmp_path / "policy.yaml").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ConfigError, match=r"policy\.yaml: cannot be read: has more than 268,435,456 bytes"):
        load_policy(tmp_path / "policy.yaml")


def test_shipped_policies_are_found_by_name_and_hold():
    for name in ("release", "research"):
        assert load_policy(find_policy(name)).name == name
    with pytest.raises(ConfigError, match="did you mean 'release'"):
        find_policy("relese")


def test_every_rule_names_measures_that_reports_explain():
    assert {key for name in limit_names() for key in limit_of(name).keys} == set(MEASURES.names())


def test_no_rule_is_a_limit_and_something_else():
    assert not set(limit_names()) & OTHERS.keys()
