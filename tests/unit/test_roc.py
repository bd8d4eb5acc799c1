"""The ROC curve of a finding's targets: known answers, ties, few targets, and what reports keep of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attacks.judging.measured import of_kinds
from attacks.statistics import tpr_estimates
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.finding import read_findings, write_findings
from fedproxy_secure.evidence.roc import MOST_STEPS, READ_AT, Roc, allowed_at, roc_of
from fedproxy_secure.evidence.targets import Targets
from fedproxy_secure.report.protections.side_by_side import side_by_side
from fedproxy_secure.report.report import Report
from tests.support.side_by_side import MASKED, OPEN, configuration, report_of, three


def targets(scores, kinds):
    positive = np.array([k == "1" for k in kinds])
    return Targets(exam="e", **of_kinds(np.array(scores, dtype=float), positive)._asdict())


def curve(scores, kinds):
    return roc_of(targets(scores, kinds))


def many(positives, negatives, shift, seed=0):
    rng = np.random.default_rng(seed)
    positive = np.arange(positives + negatives) < positives
    scores = rng.normal(size=len(positive)) + shift * positive
    return scores, positive


def test_a_curve_by_hand():
    found = curve([9, 8, 7, 6, 5, 4, 3], "1101001")
    assert found == Roc(positives=4, negatives=3, steps=((0, 2), (1, 3), (3, 4)))
    assert [found.found(rate) for rate in (0, 0.3, 0.34, 0.99, 1)] == [2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("scores", "steps"),
    [
        ([4, 3, 2, 1], ((0, 2),)),  # every member first
        ([1, 2, 3, 4], ((0, 0), (2, 2))),  # every member last
        ([5, 5, 5, 5], ((0, 0), (2, 2))),  # all alike: no threshold tells them apart
        ([4, 2, 3, 1], ((0, 1), (1, 2))),
    ],
)
def test_the_smallest_exams_of_two_members_and_two_others(scores, steps):
    assert curve(scores, "1100") == Roc(positives=2, negatives=2, steps=steps)


def test_a_tie_of_a_member_and_another_counts_as_a_false_positive_first():
    assert curve([9, 7, 7, 7, 1, 0], "110001").steps == ((0, 1), (2, 2), (3, 3))


def test_one_class_only_is_no_exam_and_a_mean_over_targets_has_no_curve():
    with pytest.raises(DataError, match=r"^targets: 0 of a kind: must be >= 2$"):
        targets([3, 2, 1], "111")
    assert roc_of(Targets(exam="e", kinds="", values=(0.5, 1.0))) is None
    assert roc_of(None) is None


@pytest.mark.parametrize("tied", [False, True])
def test_the_curve_is_the_true_positive_rate_that_findings_give_at_a_fixed_rate(tied):
    for seed in range(20):
        scores, positive = many(70, 150, 1.0, seed)
        scores = np.round(scores, 1) if tied else scores
        found = roc_of(Targets(exam="e", **of_kinds(scores, positive)._asdict()))
        for rate, estimate in zip(READ_AT, tpr_estimates(scores, positive, rates=READ_AT), strict=True):
            assert found.found(rate) / 70 == pytest.approx(estimate.value)


def test_a_curve_of_thousands_of_targets_is_short_nowhere_too_high_and_exact_where_it_is_read():
    scores, positive = many(2000, 3000, 1.0)
    found = roc_of(Targets(exam="e", **of_kinds(scores, positive)._asdict()))
    assert 20 < len(found.steps) <= MOST_STEPS
    others = np.sort(scores[~positive])[::-1]

    def whole(allowed):
        threshold = others[allowed] if allowed < len(others) else -np.inf
        return int((scores[positive] > threshold).sum())

    for allowed in range(0, 3001, 7):
        assert found.found(allowed / 3000) <= whole(allowed)
    for rate in (0, *READ_AT, 1):
        assert found.found(rate) == whole(allowed_at(rate, 3000))


def test_ranks_before_rounding_decide_so_that_rounding_makes_no_ties():
    close = targets([1.00000002, 1.00000001, 1.0, 0.5], "1010")
    assert close.scores == (1.0, 1.0, 1.0, 0.5)
    assert roc_of(close).steps == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((), "must begin without false positives, and grow"),
        (((1, 1),), "must begin without false positives"),
        (((0, 1), (0, 2)), "and grow"),
        (((0, 1), (1, 1)), "and grow"),
        (((0, 1), (1, 5)), "must be of 4 negatives, 3 positives"),
        (((0, 1), (5, 2)), "must be of 4 negatives"),
    ],
)
def test_counts_that_no_curve_has_are_refused(steps, says):
    with pytest.raises(DataError, match=says):
        Roc(positives=3, negatives=4, steps=steps)


def test_scores_of_another_number_than_targets_are_refused():
    with pytest.raises(DataError, match=r"^targets: scores: must be 4, one for each of an AUC's targets$"):
        Targets(exam="e", kinds="1100", values=(1, 2, 3, 4), scores=(1, 2))
    with pytest.raises(DataError, match="targets: scores must be finite"):
        Targets(exam="e", kinds="1100", values=(1, 2, 3, 4), scores=(1, 2, 3, float("nan")))


# what is kept where


def test_findings_keep_scores_in_a_file_that_only_the_owner_reads(tmp_path: Path):
    path = write_findings(tmp_path, OPEN)
    assert path.stat().st_mode & 0o777 == 0o600
    (first, *_) = read_findings(tmp_path)
    assert first == OPEN[0]
    assert first.targets is not None
    assert len(first.targets.scores) == 200
    assert all(score == float(f"{score:.6g}") for score in first.targets.scores)
    assert first.without_scores().targets == replace(first.targets, scores=())


def test_a_report_has_the_curves_and_no_targets(tmp_path):
    report = report_of(three())
    findings = [f for c in report.configurations for f in c.findings]
    assert all(f.targets is None for f in findings)
    assert findings[0].roc == roc_of(OPEN[0].targets)
    assert findings[-1].roc is None  # it was not applicable
    report.write(tmp_path)
    assert Report.load(tmp_path) == report
    assert '"scores"' not in report.to_json()


def test_a_report_that_is_joined_from_reports_keeps_their_curves():
    (first, _), _ = side_by_side([configuration("open", "unsafe_plaintext", *OPEN), *three()[1:2]])
    (again, masked), _ = side_by_side([first, configuration("masked", "masking", *MASKED)])
    assert [f.roc for f in again.findings] == [roc_of(f.targets) for f in OPEN]
    assert [f.roc for f in masked.findings] == [roc_of(f.targets) for f in MASKED]
