"""What attacks found, could not tell or could not have shown, before a gate."""

from dataclasses import replace

import numpy as np
import pytest

from attacks.judging.measured import plain
from attacks.judging.power import could_show
from attacks.statistics import auc_estimate, tpr_estimates
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.gate.judge import Verdict, judge
from fedproxy_secure.gate.resolution import documents_needed, remedy
from tests.support.gate_samples import (
    SAFE,
    SEEDS,
    finding,
    findings,
    measure,
    policy,
    report,
    verdicts,
    with_measure,
    without,
)


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
    (tpr,) = tpr_estimates(scores, positive, rates=(rate,))
    tpr = replace(tpr, seeds=(seed,))
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
        "tpr_at_1pct_fpr: A5 from server could not have detected any value (100 there, 100 not); this "
        "bound needs about 450 members and as many non-members: give clients more records, or set more "
        "aside (audit.holdout)"
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
    assert "could have detected only values of" in row.why


def test_a_rate_whose_interval_reaches_over_the_bound_neither_passes_nor_fails_and_says_what_it_takes(
    tmp_path,
):
    wide = with_measure(SAFE, measure("tpr_at_1pct_fpr", 0.06, 0.0, 0.3))
    row = judged(tmp_path, replace(wide, findings=findings("A5")))
    assert row.verdict == Verdict.INCONCLUSIVE
    assert "exceeds the bound by 0.25; this bound needs about 450 members" in row.why


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
        (tpr,) = tpr_estimates(scores, positive, rates=(0.01,))
        return tpr.high <= bound

    assert sum(map(below, range(draws))) / draws > 0.75  # .8 or a little more expected


def test_as_many_documents_as_several_numbers_need_keep_all_of_them_below_the_bound():
    n, draws, numbers = documents_needed(0.01, 0.1, 10), 100, 10
    assert n > documents_needed(0.01, 0.1)
    positive = np.arange(2 * n) < n
    generator = np.random.default_rng(0)

    def below(_):
        made = (
            tpr_estimates(generator.normal(size=2 * n), positive, rates=(0.01,)) for _ in range(numbers)
        )
        return all(tpr.high <= 0.1 for (tpr,) in made)

    assert sum(map(below, range(draws))) / draws > 0.7


def test_the_remedy_counts_every_number_that_is_judged(tmp_path):
    def twice(made):
        return replace(made, estimates=made.estimates * 2, measures={"tpr_at_1pct_fpr": (0, 1)})

    few = replace(with_measure(SAFE, LUCKY), findings=tuple(twice(rated(100, 100, s)) for s in SEEDS))
    assert f"needs about {documents_needed(0.01, 0.05, 2)} members" in judged(tmp_path, few).why


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


def resisted_auc(there, others, *, positive):
    """A resisted A5 with an AUC of .5 over so many targets, whose positive control has that AUC."""
    ranks = np.tile([0.0, 1.0], max(there, others))
    scores = np.concatenate([ranks[:there], ranks[:others]])
    auc = auc_estimate(scores, np.arange(there + others) < there, metric="auc")
    could = could_show(auc, 0.55, auc.power)
    control = replace(plain(auc), value=positive, low=positive - 0.01, high=min(1.0, positive + 0.01))
    return [
        replace(finding("A5", seed=s), estimates=(plain(auc),), detectable=(could,), positive=control)
        for s in SEEDS
    ]


def test_a_resisted_attack_passes_only_if_it_could_have_shown_what_its_control_leaks(tmp_path):
    rule = "- resist: [A5]"
    able = replace(SAFE, findings=tuple(resisted_auc(200, 200, positive=0.9)))
    row = judged(tmp_path, able, rule)
    assert row.verdict == Verdict.PASSED
    assert "the interval of A5 from server ends at 0.5" in row.why
    weak = replace(SAFE, findings=tuple(resisted_auc(12, 12, positive=0.75)))
    row = judged(tmp_path, weak, rule)
    assert row.verdict == Verdict.INCONCLUSIVE
    assert "could have detected only values of" in row.why
    blind = replace(SAFE, findings=tuple(resisted_auc(4, 4, positive=0.99)))
    row = judged(tmp_path, blind, rule)
    assert row.verdict == Verdict.INCONCLUSIVE
    assert "could not have detected any value (4 there, 4 not)" in row.why


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


def test_an_audit_within_the_claim_passes_and_says_that_it_did_not_test_the_runs_training(tmp_path):
    row = judged(tmp_path, SAFE, "- require_audit_within_claim: true")
    assert row.verdict == Verdict.PASSED
    assert row.why.endswith("; shown for the mechanism at these settings, not for this run's training")


def test_an_audit_that_succeeds_breaks_the_claim_without_a_number(tmp_path):
    caught = without(replace(SAFE, findings=findings("A9", outcome=Outcome.SUCCEEDED)), "epsilon_audited")
    assert verdicts(tmp_path, "- require_audit_within_claim: true", caught) == [Verdict.FAILED]
