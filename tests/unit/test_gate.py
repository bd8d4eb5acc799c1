"""A gate opens only for evidence: every rule catches its regression, and nothing missing passes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from attacks.judging.measured import plain
from attacks.judging.power import could_show
from attacks.statistics import tpr_estimates
from fedproxy_secure.cli.app import app
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.measure import MEASURES
from fedproxy_secure.gate.judge import Signed, Verdict, compare, judge
from fedproxy_secure.gate.policy import find_policy, load_policy
from fedproxy_secure.gate.resolution import documents_needed, remedy
from fedproxy_secure.gate.rules import OTHERS, limit_names, limit_of
from fedproxy_secure.gate.table import cells, json_gate, markdown_gate, summary
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.trilemma import Configuration, Measure
from tests.support.sample_report import sample_report

SEEDS = (0, 1, 2)
SIGNER = "ab" * 32
SIGNED = Signed(problems=(), unsettled=(), signer=SIGNER)
SHIPPED = Path(__file__).parents[2] / "configs" / "policies"


def estimate(value, low=None, high=None, unit="share"):
    return Estimate(
        metric="m", value=value, low=low, high=high, n=3, unit=unit, seeds=SEEDS, how="Student t 95 %"
    )


def measure(key, value, low=None, high=None, *, exact=False):
    made = counted(value, metric=key, unit="count", seeds=SEEDS) if exact else estimate(value, low, high)
    return Measure(axis="privacy", key=key, better="lower", estimate=made, source="result.json#x")


# id -> the measures that the attack is for
MEASURED = {
    "A2": ("token_auc",),
    "A3": ("exact_sequence_recall",),
    "A5": ("tpr_at_1pct_fpr", "membership_auc"),
    "A6": ("tpr_at_1pct_fpr", "membership_auc"),
    "A7": ("canary_exposure_bits",),
    "A8": ("epsilon_audited", "audited_over_claimed"),
    "A9": ("audited_over_claimed",),
    "A12": ("extraction_R",),
}


def finding(id, outcome=Outcome.RESISTED, *, seed=0, view="server"):
    return Finding(
        attack=f"attack_{id}",
        id=id,
        title="t",
        view=view,
        surfaces=("AGG",),
        seed_folder=f"seed-{seed}",
        profile="smoke",
        outcome=outcome,
        reason="because",
        estimates=(),
        measures={key: () for key in MEASURED.get(id, ())},
        positive=None,
        negative=None,
        seconds=1.0,
        seed=0,
        mapping=(),
    )


def findings(*ids, outcome=Outcome.RESISTED):
    return tuple(finding(id, outcome, seed=s) for s in SEEDS for id in ids)


SAFE = Configuration(
    name="masking + DP 8",
    settings={"protection": "masking_dp8", "remove_ratio": "0.5"},
    seeds=SEEDS,
    privacy_unit="record",
    measures=(
        measure("gap_closed", 0.7, 0.65, 0.75),
        measure("epsilon_claimed", 8.0, exact=True),
        measure("epsilon_spent", 7.9, exact=True),
        measure("delta", 1e-5, exact=True),
        measure("epsilon_audited", 1.2, exact=True),
        measure("effective_cohort", 4, exact=True),
        measure("token_auc", 0.52, 0.5, 0.54),
        measure("exact_sequence_recall", 0.0, 0.0, 0.01),
        measure("tpr_at_1pct_fpr", 0.01, 0.0, 0.03),
        measure("canary_exposure_bits", 1.3, 0.9, 1.8),
        measure("verbatim_share", 0.72, exact=True),
        measure("owners_edge", 0.2, 0.15, 0.25),
        measure("extraction_R", 0.3, 0.25, 0.35),
    ),
    findings=findings("A2", "A3", "A5", "A7", "A8", "A12"),
)


def report(*configurations, **changes):
    made = Report(
        name="r",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=SEEDS,
        configurations=configurations,
        audit_head="c3" * 32,
        total_epsilon=counted(7.9, metric="epsilon", unit="epsilon", seeds=SEEDS),
    )
    return replace(made, **changes)


def with_measure(configuration, *changed):
    keys = {m.key for m in changed}
    kept = tuple(m for m in configuration.measures if m.key not in keys)
    return replace(configuration, measures=(*kept, *changed))


def without(configuration, key):
    return replace(configuration, measures=tuple(m for m in configuration.measures if m.key != key))


def policy(tmp_path, rules, top=""):
    file = tmp_path / "policy.yaml"
    file.write_text(f"schema_version: 1\n{top}\nrules:\n{rules}\n")
    return load_policy(file)


def verdicts(tmp_path, rules, *configurations, top=""):
    return [r.verdict for r in judge(report(*configurations), policy(tmp_path, rules, top)).rows]


@pytest.fixture
def release():
    """As shipped, with the signer's key put in as its first lines ask for."""
    return replace(load_policy(SHIPPED / "release.yaml"), signer=SIGNER)


def red_rules(judgement):
    return {row.rule.split(":")[0] for row in judgement.rows if row.verdict == Verdict.FAILED}


# --- what must pass, and the regressions that must not


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


def test_no_differential_privacy_breaks_every_rule_on_epsilon(release):
    bare = replace(SAFE, privacy_unit="none")
    for key in ("epsilon_claimed", "epsilon_spent", "delta", "epsilon_audited"):
        bare = without(bare, key)
    assert red_rules(judge(report(bare), release, signed=SIGNED)) == {
        "require_unit",
        "max_epsilon",
        "max_delta",
    }


def test_one_bad_configuration_among_good_ones_closes_the_gate(release):
    bad = replace(with_measure(SAFE, measure("verbatim_share", 1.0, exact=True)), name="bad")
    judgement = judge(report(SAFE, bad, replace(SAFE, name="third")), release, signed=SIGNED)
    assert judgement.exit_code == 1
    assert {r.configuration for r in judgement.rows if r.verdict != Verdict.PASSED} == {"bad"}


# --- intervals


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


def test_an_exact_number_is_never_inconclusive():
    exact = counted(3, metric="m", unit="clients", seeds=[0])
    assert compare(exact, "min", 3) == (Verdict.PASSED, 0)
    assert compare(exact, "min", 4) == (Verdict.FAILED, 1)


@pytest.mark.parametrize("value", [0.1, 0.9])
def test_a_number_without_an_interval_shows_nothing(value):
    assert compare(estimate(value), "max", 0.5) == (Verdict.INCONCLUSIVE, None)


def test_of_two_numbers_under_one_key_both_are_judged(tmp_path):
    twice = replace(SAFE, measures=(*SAFE.measures, measure("verbatim_share", 1.0, exact=True)))
    found = verdicts(tmp_path, "- max_verbatim_share: 0.9", twice)
    assert found == [Verdict.PASSED, Verdict.FAILED]


# --- what is missing


@pytest.mark.parametrize("name", sorted(limit_names()))
def test_what_was_not_measured_never_passes(tmp_path, name):
    bound = min(1, limit_of(name).high)
    empty = Configuration(name="empty", settings={}, seeds=SEEDS)
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


# --- attacks


@pytest.mark.parametrize("outcome", [Outcome.INCONCLUSIVE, Outcome.ERROR])
def test_a_good_number_of_an_attack_that_could_not_tell_is_inconclusive(tmp_path, outcome):
    doubtful = replace(SAFE, findings=(*SAFE.findings, finding("A2", outcome, seed=1)))
    assert verdicts(tmp_path, "- max_token_auc: 0.6", doubtful) == [Verdict.INCONCLUSIVE]


def test_an_undecided_attack_beside_a_successful_one_is_no_evidence(tmp_path):
    some = replace(
        SAFE, findings=(*findings("A5", outcome=Outcome.SUCCEEDED), finding("A6", Outcome.ERROR))
    )
    assert verdicts(tmp_path, "- max_tpr_at_1pct_fpr: 0.5", some) == [Verdict.INCONCLUSIVE]


def rated(there, others, seed, *, rate=0.01):
    """A5's finding on so many members and others that all look alike, as the attack would judge them."""
    scores = np.random.default_rng(seed).normal(size=there + others)
    positive = np.arange(there + others) < there
    (tpr,) = tpr_estimates(scores, positive, seed=seed, rates=(rate,))
    could = could_show(tpr, tpr.chance, tpr.power)
    made = finding("A5", seed=seed)
    return replace(made, estimates=(plain(tpr),), measures={"tpr_at_1pct_fpr": (0,)}, detectable=(could,))


def test_a_lower_bound_on_epsilon_breaks_a_rule_but_never_passes_one(tmp_path):
    shown = measure("epsilon_audited", 3.0, exact=True)
    audited = replace(
        with_measure(SAFE, shown),
        findings=tuple(
            replace(finding("A8", seed=s), estimates=(shown.estimate,), measures={"epsilon_audited": (0,)})
            for s in SEEDS
        ),
    )
    assert judged(tmp_path, audited, "- max_audited_epsilon: 2").verdict == Verdict.FAILED
    row = judged(tmp_path, audited, "- max_audited_epsilon: 4")
    assert row.verdict == Verdict.INCONCLUSIVE
    assert "a lower bound" in row.why


TPR_RULE = "- max_tpr_at_1pct_fpr: 0.05"
LUCKY = measure("tpr_at_1pct_fpr", 0.0, 0.0, 0.03)


def judged(tmp_path, configuration, rule=TPR_RULE):
    (row,) = judge(report(configuration), policy(tmp_path, rule)).rows
    return row


def test_a_rate_within_the_bound_does_not_pass_by_too_few_documents(tmp_path):
    few = replace(with_measure(SAFE, LUCKY), findings=tuple(rated(100, 100, s) for s in SEEDS))
    row = judged(tmp_path, few)
    assert row.verdict == Verdict.INCONCLUSIVE
    assert row.why == (
        "tpr_at_1pct_fpr: A5 from server could have shown no value (100 there, 100 not); the bound takes "
        "about 450 members and as many others: give clients more records, or set more aside (audit.holdout)"
    )
    enough = replace(few, findings=tuple(rated(600, 600, s) for s in SEEDS))
    assert judged(tmp_path, enough).verdict == Verdict.PASSED


def test_a_rate_that_only_a_larger_one_could_have_shown_does_not_pass_a_stricter_bound(tmp_path):
    some = replace(with_measure(SAFE, LUCKY), findings=tuple(rated(600, 600, s) for s in SEEDS))
    row = judged(tmp_path, some, "- max_tpr_at_1pct_fpr: 0.035")
    assert row.verdict == Verdict.PASSED
    few_members = replace(some, findings=tuple(rated(60, 600, s) for s in SEEDS))
    row = judged(tmp_path, few_members)
    assert row.verdict == Verdict.INCONCLUSIVE
    assert "could have shown only" in row.why


def test_a_rate_whose_interval_reaches_over_the_bound_neither_passes_nor_fails_and_says_what_it_takes(
    tmp_path,
):
    wide = with_measure(SAFE, measure("tpr_at_1pct_fpr", 0.06, 0.0, 0.3))
    row = judged(tmp_path, replace(wide, findings=findings("A5")))
    assert row.verdict == Verdict.INCONCLUSIVE
    assert "exceeds it by 0.25; the bound takes about 450 members" in row.why


def test_a_rate_that_is_surely_above_the_bound_fails_however_few_documents_there_are(tmp_path):
    leaking = with_measure(SAFE, measure("tpr_at_1pct_fpr", 0.4, 0.2, 0.6))
    few = replace(leaking, findings=tuple(rated(100, 100, s) for s in SEEDS))
    assert judged(tmp_path, few).verdict == Verdict.FAILED


def test_a_bound_that_is_not_above_chance_takes_no_number_of_documents():
    assert documents_needed(0.01, 0.01) is None
    assert remedy("tpr_at_1pct_fpr", 0.01) == "raise the bound: chance is 0.01"
    assert "audit.canaries" in remedy("canary_exposure_bits", 3)
    assert "more seeds" in remedy("extraction_R", 0.5)


@pytest.mark.parametrize("bound", [0.05, 0.1])
def test_so_many_documents_as_the_remedy_names_keep_an_attack_without_information_below_the_bound(bound):
    n, draws = documents_needed(0.01, bound), 300
    positive = np.arange(2 * n) < n

    def below(seed):
        scores = np.random.default_rng(seed).normal(size=2 * n)
        (tpr,) = tpr_estimates(scores, positive, seed=0, rates=(0.01,))
        return tpr.high <= bound

    assert sum(map(below, range(draws))) / draws > 0.75  # .8 or a little more expected


def test_a_good_number_without_a_finding_on_every_seed_is_missing(tmp_path):
    once = replace(SAFE, findings=(finding("A2", seed=0),))
    assert verdicts(tmp_path, "- max_token_auc: 0.6", once) == [Verdict.MISSING]


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.SUCCEEDED, Verdict.FAILED),
        (Outcome.RESISTED, Verdict.PASSED),
        (Outcome.INCONCLUSIVE, Verdict.INCONCLUSIVE),
        (Outcome.ERROR, Verdict.INCONCLUSIVE),
        (Outcome.NOT_APPLICABLE, Verdict.MISSING),
    ],
)
def test_an_attack_counts_as_resisted_only_if_it_was(tmp_path, outcome, verdict):
    tried = replace(SAFE, findings=findings("A3", outcome=outcome))
    assert verdicts(tmp_path, "- resist: [A3]", tried) == [verdict]
    assert verdicts(tmp_path, "- resist: [attack_A3]", tried) == [verdict]


def test_one_success_on_one_seed_outweighs_the_rest(tmp_path):
    once = replace(SAFE, findings=(*findings("A3"), finding("A3", Outcome.SUCCEEDED, seed=2)))
    assert verdicts(tmp_path, "- resist: [A3]", once) == [Verdict.FAILED]


def test_an_attack_must_be_resisted_on_every_seed_and_from_every_view_asked_for(tmp_path):
    part = replace(SAFE, findings=(finding("A3", seed=0), finding("A3", seed=1)))
    assert verdicts(tmp_path, "- resist: [A3]", part) == [Verdict.MISSING]
    views = "- resist: [A3]\n  views: [server, client]"
    assert verdicts(tmp_path, views, SAFE) == [Verdict.PASSED, Verdict.MISSING]


def test_an_attack_that_nobody_tried_is_missing(tmp_path):
    assert verdicts(tmp_path, "- resist: [A99]", SAFE) == [Verdict.MISSING]


def test_not_applicable_counts_only_where_the_rule_says_so(tmp_path):
    frozen = without(
        replace(SAFE, findings=findings("A12", outcome=Outcome.NOT_APPLICABLE)), "extraction_R"
    )
    assert verdicts(tmp_path, "- max_extraction_R: 0.5", frozen) == [Verdict.MISSING]
    allowed = "- max_extraction_R: 0.5\n  not_applicable: pass"
    assert verdicts(tmp_path, allowed, frozen) == [Verdict.PASSED]
    untried = replace(frozen, findings=())
    assert verdicts(tmp_path, allowed, untried) == [Verdict.MISSING]
    partly = replace(frozen, findings=(finding("A12", Outcome.NOT_APPLICABLE, seed=0),))
    assert verdicts(tmp_path, allowed, partly) == [Verdict.MISSING]


def test_an_audit_that_succeeds_breaks_the_claim_without_a_number(tmp_path):
    caught = without(replace(SAFE, findings=findings("A9", outcome=Outcome.SUCCEEDED)), "epsilon_audited")
    assert verdicts(tmp_path, "- require_audit_within_claim: true", caught) == [Verdict.FAILED]


# --- signatures


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
    assert "a key that nobody named; name the signer with --key PUB" in judgement.rows[0].why


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
        ("- max_token_auc: low", "max_token_auc='low'"),
        ("- max_token_auc: 0.6\n  max_token_auc: 0.9", "max_token_auc is given twice"),
        ("- max_token_auc: 0.6\n  max_epsilon: 3", "has 2 rules; must have one"),
        ("- applies_to: {protection: masking}", "has 0 rules"),
        ("- forbid_unsafe: false", "forbid_unsafe=False: must be true"),
        ("- require_unit: user", "require_unit='user': must be record or client"),
        ("- resist: A2", "resist='A2': must be attacks"),
        ("- resist: []", "must be attacks"),
        ("- min_seeds: 0", "min_seeds=0"),
        ("- min_seeds: true", "min_seeds=True"),
        ("- max_epsilon: 3\n  not_applicable: pass", "is for rules on attacks only"),
        ("- max_token_auc: 0.6\n  not_applicable: fail", "not_applicable='fail'"),
        ("- max_token_auc: 0.6\n  views: [server]", "is for resist only"),
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
        ("", "must hold `key: value`"),
        ("rules: [}", "is not YAML"),
        ("schema_version: 2", "schema_version=2: must be 1"),
        ("schema_version: 1\nrule: []", "rule: unknown key; did you mean 'rules'?"),
        ("schema_version: 1\nrequire_signed_audit: 1", "require_signed_audit=1: must be true or false"),
        ("schema_version: 1\nsigner: " + "ab" * 32, "with require_signed_audit: true"),
        ("schema_version: 1\nrequire_signed_audit: true\nsigner: no", "must be 64 hex digits"),
        ("schema_version: 1", "rules=None"),
        ("schema_version: 1\nrules: []", "rules=[]: must be a list of at least one rule"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_one_line(tmp_path, text, line):
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_policy(tmp_path / "policy.yaml")
    assert line in str(raised.value)


def test_shipped_policies_are_found_by_name_and_hold():
    for name in ("release", "research"):
        assert load_policy(find_policy(name)).name == name
    with pytest.raises(ConfigError, match="did you mean 'release'"):
        find_policy("relese")


def test_every_rule_names_measures_that_reports_explain():
    assert {key for name in limit_names() for key in limit_of(name).keys} == set(MEASURES.names())


def test_no_rule_is_a_limit_and_something_else():
    assert not set(limit_names()) & OTHERS.keys()


# --- the command


@pytest.fixture
def folder(tmp_path):
    report(SAFE).write(tmp_path)
    (tmp_path / "policy.yaml").write_text("schema_version: 1\nrules:\n- max_verbatim_share: 0.9\n")
    return tmp_path


def gate(folder, *more, report="report.json", policy="policy.yaml"):
    arguments = ["gate", "--report", str(folder / report), "--policy", str(folder / policy), *more]
    return CliRunner().invoke(app, arguments)


def test_the_command_ends_with_0_1_2_or_3(folder):
    assert gate(folder).exit_code == 0
    for bound, code in (("max_verbatim_share: 0.5", 1), ("max_token_auc: 0.53", 3), ("max_token: 1", 2)):
        (folder / "policy.yaml").write_text(f"schema_version: 1\nrules:\n- {bound}\n")
        assert gate(folder).exit_code == code


def test_a_failed_rule_outweighs_what_is_missing(folder):
    (folder / "policy.yaml").write_text(
        "schema_version: 1\nrules:\n- max_api_gain: 1\n- max_verbatim_share: 0.5\n"
    )
    assert gate(folder).exit_code == 1


def test_a_wrong_option_is_2(folder):
    assert gate(folder, "--format", "xml").exit_code == 2
    assert gate(folder, report="reprot.json").exit_code == 2
    assert gate(folder, policy="no.yaml").exit_code == 2


@pytest.mark.parametrize("change", ["version", "cut", "nothing"])
def test_a_damaged_report_or_one_of_another_version_never_passes(folder, change):
    file = folder / "report.json"
    text = file.read_text()
    changed = {
        "version": text.replace('"schema_version": 4', '"schema_version": 3'),
        "cut": text[: len(text) // 2],
        "nothing": "",
    }
    assert changed[change] != text
    file.write_text(changed[change])
    ended = gate(folder)
    assert ended.exit_code == 3
    assert "report.json" in ended.stderr
    assert ended.stdout == ""


def test_a_key_asks_for_a_signature_that_an_unsigned_folder_lacks(folder):
    ended = gate(folder, "--key", SIGNER, "--format", "json")
    assert ended.exit_code == 3
    assert json.loads(ended.stdout)["rows"][0]["verdict"] == "MISSING"


def test_json_has_every_row_in_full(folder):
    ended = gate(folder, "--format", "json")
    made = json.loads(ended.stdout)
    assert (made["verdict"], made["exit_code"], made["schema_version"]) == ("PASSED", 0, 1)
    (row,) = made["rows"]
    assert row["measured"]["value"] == 0.72
    assert row["excess"] == pytest.approx(-0.18)
    assert row["source"] == "result.json#x"


def test_the_tables_say_which_rule_failed_where_and_by_how_much(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "policy.yaml").write_text("schema_version: 1\nrules:\n- max_verbatim_share: 0.5\n")
    for form in ("table", "markdown"):
        shown = gate(folder, "--format", form).stdout
        for part in (
            "max_verbatim_share: 0.5",
            "masking + DP 8",
            "FAILED",
            "0.72, exact",
            "exceeds the bound by 0.22",
        ):
            assert part in shown


def test_a_bar_in_a_name_does_not_break_the_markdown(tmp_path):
    odd = replace(SAFE, name="a|b")
    judgement = judge(report(odd), policy(tmp_path, "- forbid_unsafe: true"))
    assert "a\\|b" in markdown_gate(judgement)
    assert cells(judgement.rows[0])[1] == "a|b"


def test_the_made_up_sample_is_stopped_for_the_right_reasons(release):
    judgement = judge(sample_report(), release)
    assert judgement.exit_code == 1
    bare = [r for r in judgement.rows if r.configuration.startswith("no protection")]
    assert {"forbid_unsafe", "max_token_auc", "min_cohort"} <= {
        r.rule.split(":")[0] for r in bare if r.verdict == Verdict.FAILED
    }
    assert "FAILED" in summary(judgement)
    json.loads(json_gate(judgement))
