"""The release policy passes a safe configuration, and every regression closes the gate."""

import json
from dataclasses import replace

import pytest

from attacks.statistics import share
from fedproxy_secure.config import parse_config
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.gate.judge import Verdict, judge
from fedproxy_secure.gate.table import json_gate, summary
from fedproxy_secure.report.measured import configuration_of
from tests.support.gate_samples import (
    MEASURED,
    SAFE,
    SIGNED,
    findings,
    measure,
    policy,
    red_rules,
    release_policy,
    report,
    verdicts,
    with_measure,
    without,
)
from tests.support.sample_report import sample_report


@pytest.fixture
def release():
    """As shipped, with the signer's key put in as its first lines ask for."""
    return release_policy()


def test_a_safe_configuration_passes_the_release_policy(release):
    judgement = judge(report(SAFE), release, signed=SIGNED)
    assert {row.verdict for row in judgement.rows} == {Verdict.PASSED}
    assert judgement.exit_code == 0


@pytest.mark.parametrize(("id", "exit_code"), [("A3", 0), ("A2", 3)])
def test_a_release_needs_no_attack_on_sequences_where_clients_use_adamw_and_the_one_on_tokens_always(
    release, id, exit_code
):
    others = tuple(f for f in SAFE.findings if f.id != id)
    frozen = replace(SAFE, findings=(*others, *findings(id, outcome=Outcome.NOT_APPLICABLE)))
    frozen = without(frozen, *MEASURED[id])
    assert judge(report(frozen), release, signed=SIGNED).exit_code == exit_code


def test_masks_off_is_caught_by_its_stamp_and_by_the_cohort(release):
    bare = replace(SAFE, unsafe=("unsafe_plaintext: the server sees every client's update.",))
    bare = with_measure(bare, measure("effective_cohort", 1, exact=True))
    judgement = judge(report(bare), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert red_rules(judgement) == {"forbid_unsafe", "min_cohort"}


def test_masks_off_without_a_stamp_is_caught_by_what_the_attacks_read(release):
    leaking = with_measure(
        SAFE, measure("token_auc", 0.97, 0.95, 0.99), measure("exact_sequence_recall", 0.7, 0.6, 0.8)
    )
    others = tuple(f for f in SAFE.findings if f.id not in ("A2", "A3"))
    leaking = replace(leaking, findings=(*others, *findings("A2", "A3", outcome=Outcome.SUCCEEDED)))
    judgement = judge(report(leaking), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert red_rules(judgement) == {"max_token_auc", "max_exact_sequence_recall", "resist"}


@pytest.mark.torch
@pytest.mark.parametrize(("profile", "exit_code"), [("smoke", 3), ("standard", 3), ("full", 0)])
def test_the_release_policy_s_bound_of_sequences_is_kept_with_the_full_profile_and_undecided_with_less(
    release, profile, exit_code
):
    from attacks.reconstruction.sequences import MOST

    sums = max(1, MOST[profile] - 1)  # the first round may hold nothing
    none = share(0, 10 * sums, metric="exact recall", groups=sums)
    found = with_measure(SAFE, measure("exact_sequence_recall", 0.0, 0.0, none.high))
    assert judge(report(found), release, signed=SIGNED).exit_code == exit_code


def test_halved_noise_is_caught_by_the_audit_against_the_claim(release):
    weak = with_measure(SAFE, measure("epsilon_audited", 9.5, exact=True))
    judgement = judge(report(weak), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert red_rules(judgement) == {"require_audit_within_claim"}
    (row,) = (r for r in judgement.rows if r.verdict == Verdict.FAILED)
    assert row.excess == pytest.approx(1.5)


def test_halved_noise_that_the_accountant_sees_is_caught_by_epsilon(release):
    weak = with_measure(SAFE, measure("epsilon_spent", 21.0, exact=True))
    judgement = judge(report(weak), release, signed=SIGNED)
    assert (judgement.exit_code, red_rules(judgement)) == (1, {"max_epsilon"})


def test_a_proxy_that_is_the_whole_llm_is_caught_by_the_verbatim_share(release):
    whole = with_measure(
        SAFE, measure("verbatim_share", 1.0, exact=True), measure("owners_edge", -0.01, -0.02, -0.001)
    )
    judgement = judge(report(whole), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert red_rules(judgement) == {"max_verbatim_share", "min_owners_edge"}
    (row,) = (r for r in judgement.rows if r.rule.startswith("max_verbatim"))
    assert "exceeds the bound by 0.1" in row.why


def test_a_near_copy_is_caught_by_what_is_left_also_of_a_proxy_that_is_near_the_llm_itself(release):
    """Of a proxy that is nearly the LLM, R is small: little was left to extract."""
    near = with_measure(
        SAFE, measure("extraction_R", 0.1, 0.05, 0.15), measure("kl_left_nats", 0.02, 0.01, 0.03)
    )
    judgement = judge(report(replace(near, name="near"), SAFE), release, signed=SIGNED)
    failed = [
        (row.rule.split(":")[0], row.configuration)
        for row in judgement.rows
        if row.verdict == Verdict.FAILED
    ]
    assert failed == [("min_kl_left_nats", "near")]


def test_a_nearly_complete_extraction_is_caught_also_where_the_proxy_was_far_from_the_llm(release):
    """Of a proxy that is far from the LLM, much may be left in nats after nearly all was extracted."""
    stolen = with_measure(
        SAFE, measure("extraction_R", 0.86, 0.84, 0.87), measure("kl_left_nats", 0.06, 0.055, 0.065)
    )
    judgement = judge(report(stolen), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert red_rules(judgement) == {"max_extraction_R"}


def test_no_differential_privacy_breaks_every_rule_on_epsilon(release):
    bare = replace(SAFE, privacy_unit="none")
    for key in ("epsilon_claimed", "epsilon_spent", "delta", "epsilon_audited"):
        bare = without(bare, key)
    assert red_rules(judge(report(bare), release, signed=SIGNED)) == {
        "require_unit",
        "max_epsilon",
        "max_delta",
    }


def test_noise_that_follows_from_the_seed_breaks_every_rule_on_epsilon(tmp_path):
    config = parse_config(
        {"privacy": {"unit": "record", "target_epsilon": 8, "randomness": "unsafe_simulated"}}
    )
    made = configuration_of([], config, name="x", settings={})
    simulated = replace(SAFE, simulated_noise=made.simulated_noise)
    rules = "- max_epsilon: 100\n- max_epsilon_spent: 100\n- max_delta: 0.9\n- max_total_epsilon: 100"
    rows = judge(report(simulated), policy(tmp_path, rules)).rows
    assert [r.verdict for r in rows] == [Verdict.FAILED] * 4
    assert all("follows from the seed" in r.why for r in rows)
    assert set(verdicts(tmp_path, rules, SAFE)) == {Verdict.PASSED}


def test_one_bad_configuration_among_good_ones_closes_the_gate(release):
    bad = replace(with_measure(SAFE, measure("verbatim_share", 1.0, exact=True)), name="bad")
    judgement = judge(report(SAFE, bad, replace(SAFE, name="third")), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert {r.configuration for r in judgement.rows if r.verdict != Verdict.PASSED} == {"bad"}


# --- the command


def test_the_made_up_sample_is_stopped_for_the_right_reasons(release):
    judgement = judge(sample_report(), release)
    assert judgement.exit_code == 1
    bare = [r for r in judgement.rows if r.configuration.startswith("no protection")]
    assert {"forbid_unsafe", "max_token_auc", "min_cohort"} <= {
        r.rule.split(":")[0] for r in bare if r.verdict == Verdict.FAILED
    }
    assert "FAILED" in summary(judgement)
    json.loads(json_gate(judgement))
