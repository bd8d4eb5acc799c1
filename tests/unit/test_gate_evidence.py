"""A gate opens only for evidence: intervals decide, and nothing missing passes."""

from dataclasses import replace

import pytest

from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.gate.judge import Verdict, compare, judge
from fedproxy_secure.gate.rules import limit_names, limit_of
from fedproxy_secure.gate.table import measured_text
from fedproxy_secure.report.trilemma import Configuration
from tests.support.gate_samples import (
    SAFE,
    SEEDS,
    SIGNED,
    estimate,
    measure,
    policy,
    release_policy,
    report,
    verdicts,
)


@pytest.fixture
def release():
    """As shipped, with the signer's key put in as its first lines ask for."""
    return release_policy()


@pytest.mark.parametrize(
    ("side", "bound", "verdict"),
    [
        ("max", 0.54, Verdict.PASSED),  # the unfavourable end stands on the bound
        ("max", 0.53, Verdict.INCONCLUSIVE),
        ("max", 0.50, Verdict.INCONCLUSIVE),  # the value is over, the favourable end is not
        ("max", 0.49, Verdict.FAILED),
        ("min", 0.50, Verdict.PASSED),
        ("min", 0.51, Verdict.INCONCLUSIVE),
        ("min", 0.54, Verdict.INCONCLUSIVE),
        ("min", 0.55, Verdict.FAILED),
    ],
)
def test_the_unfavourable_end_of_the_interval_decides(side, bound, verdict):
    assert compare(estimate(0.52, 0.50, 0.54), side, bound)[0] == verdict


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "- max_token_auc: 0.6",
            "the whole interval lies beyond the bound; its unfavourable end exceeds the bound by 0.226",
        ),
        (
            "- max_token_auc: 0.7",
            "the interval includes the bound; its unfavourable end exceeds the bound by 0.126",
        ),
    ],
)
def test_how_far_beyond_a_bound_a_number_is_says_that_an_end_of_its_interval_is_meant(tmp_path, rule, said):
    found = replace(SAFE, measures=(measure("token_auc", 0.755, 0.6541, 0.826),))
    (row,) = judge(report(found), policy(tmp_path, rule)).rows
    assert row.why.startswith(f"token_auc: {said}")


def test_an_exact_number_is_never_inconclusive():
    exact = counted(3, metric="m", unit="clients", seeds=[0])
    assert compare(exact, "min", 3) == (Verdict.PASSED, 0)
    assert compare(exact, "min", 4) == (Verdict.FAILED, 1)


@pytest.mark.parametrize("value", [0.1, 0.9])
def test_a_number_without_an_interval_shows_nothing(value):
    assert compare(estimate(value), "max", 0.5) == (Verdict.INCONCLUSIVE, None)


def test_an_interval_without_width_of_a_number_that_was_sampled_shows_nothing():
    collapsed = estimate(0.0, 0.0, 0.0)
    assert compare(collapsed, "max", 0) == (Verdict.INCONCLUSIVE, None)
    assert measured_text(collapsed) == "0, no interval, n = 3"


def test_an_exact_epsilon_is_never_shown_below_itself_and_a_lower_bound_never_above():
    spent = counted(8.00049, metric="m", unit="epsilon", seeds=[0])
    assert measured_text(spent) == "8.001, exact, n = 1"
    audited = replace(spent, value=2.91359, low=2.91359, high=2.91359, nature="lower bound")
    assert measured_text(audited) == "at least 2.913, n = 1"


def test_of_two_numbers_under_one_key_both_are_judged(tmp_path):
    twice = replace(SAFE, measures=(*SAFE.measures, measure("verbatim_share", 1.0, exact=True)))
    found = verdicts(tmp_path, "- max_verbatim_share: 0.9", twice)
    assert found == [Verdict.PASSED, Verdict.FAILED]


# --- what is missing


@pytest.mark.parametrize("name", sorted(limit_names()))
def test_what_was_not_measured_never_passes(tmp_path, name):
    bound = min(1, limit_of(name).high)
    empty = Configuration(name="empty", scheme="masking", settings={}, seeds=SEEDS)
    for unit in ("none", "record"):
        found = verdicts(tmp_path, f"- {name}: {bound}", replace(empty, privacy_unit=unit))
        assert found
        assert Verdict.PASSED not in found


def test_a_report_without_configurations_does_not_pass(release):
    assert judge(report(), release, signed=SIGNED).exit_code == 3


def test_a_rule_that_no_configuration_answers_to_does_not_pass(tmp_path):
    rules = "- max_verbatim_share: 0.9\n  applies_to: {protection: masking_dp1}"
    assert verdicts(tmp_path, rules, SAFE) == [Verdict.MISSING]


def test_a_rule_for_some_settings_leaves_the_others_alone(tmp_path):
    bare = replace(SAFE, name="bare", settings={"protection": "unsafe_plaintext"}, unsafe=("stamp",))
    top = "applies_to: {protection: [masking_dp8]}"
    assert verdicts(tmp_path, "- forbid_unsafe: true", SAFE, bare, top=top) == [Verdict.PASSED]
    own = "- forbid_unsafe: true\n  applies_to: {}"
    assert verdicts(tmp_path, own, SAFE, bare, top=top) == [Verdict.PASSED, Verdict.FAILED]


def test_a_rule_for_a_pattern_is_asked_of_every_epsilon(tmp_path):
    swept = [
        replace(SAFE, name=name, settings={"protection": name}, unsafe=("stamp",))
        for name in ("masking", "masking_dp0.5", "masking_client_dp4", "ckks_dp2", "unsafe_plaintext")
    ]
    rules = '- forbid_unsafe: true\n  applies_to: {protection: "masking*"}'
    assert verdicts(tmp_path, rules, *swept) == [Verdict.FAILED] * 3
    nothing = "- forbid_unsafe: true\n  applies_to: {no_such_setting: '*'}"
    assert verdicts(tmp_path, nothing, *swept) == [Verdict.MISSING]


def test_a_ratio_in_a_policy_is_the_text_of_the_report(tmp_path):
    rules = "- forbid_unsafe: true\n  applies_to: {remove_ratio: 0.50}"
    assert verdicts(tmp_path, rules, SAFE) == [Verdict.PASSED]


def test_failed_seeds_are_missing_evidence_unless_allowed(tmp_path):
    lame = replace(SAFE, failed=("seed 3: did not finish",))
    assert verdicts(tmp_path, "- forbid_unsafe: true", lame) == [Verdict.PASSED, Verdict.MISSING]
    allowed = verdicts(tmp_path, "- forbid_unsafe: true", lame, top="allow_failed_seeds: true")
    assert allowed == [Verdict.PASSED]


def test_too_few_seeds_are_missing_evidence(tmp_path):
    assert verdicts(tmp_path, "- min_seeds: 4", SAFE) == [Verdict.MISSING]
    assert verdicts(tmp_path, "- min_seeds: 3", SAFE) == [Verdict.PASSED]
