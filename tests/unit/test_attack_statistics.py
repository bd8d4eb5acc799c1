"""AUC, its interval, rates at a fixed false-positive rate, one-to-one matches: against known answers."""

import numpy as np
import pytest
from scipy.stats import norm

from attacks.statistics import (
    auc_estimate,
    auc_value,
    matched,
    mean_auc,
    mean_difference,
    over_targets,
    share,
    spread_by_chance,
    tpr_estimates,
)
from fedproxy_secure.errors import DataError


def scores(rng, members, others, shift):
    values = np.concatenate([rng.normal(shift, 1, members), rng.normal(0, 1, others)])
    return values, np.arange(members + others) < members


def auc(values, labels, **more):
    return auc_estimate(values, labels, metric="auc", **more)


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_scikit_learns(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, labels = scores(rng, int(rng.integers(2, 30)), int(rng.integers(2, 60)), 0.5)
        if ties:
            values = values.round()
        expected = metrics.roc_auc_score(labels, values)
        assert auc(values, labels).value == pytest.approx(expected, abs=1e-12)
        assert auc_value(values, labels) == pytest.approx(expected, abs=1e-12)


def test_areas_known_by_hand():
    labels = np.array([True, True, False, False])
    assert auc(np.array([3.0, 2.0, 1.0, 0.0]), labels).value == 1.0
    assert auc(np.array([0.0, 1.0, 2.0, 3.0]), labels).value == 0.0
    assert auc(np.array([3.0, 1.0, 2.0, 0.0]), labels).value == 0.75
    assert auc(np.ones(4), labels).value == 0.5


@pytest.mark.parametrize(("members", "others", "shift"), [(60, 60, 0.0), (40, 200, 0.7), (30, 30, 1.5)])
def test_the_interval_covers_the_true_area_as_often_as_it_says(members, others, shift):
    """Two-sided: coverage of 800 draws within 4 standard errors of 95 %, and misses on both sides."""
    true = norm.cdf(shift / np.sqrt(2))
    rng = np.random.default_rng(members)
    found = [auc(*scores(rng, members, others, shift)) for _ in range(800)]
    below = np.mean([f.high < true for f in found])
    above = np.mean([f.low > true for f in found])
    assert abs(below + above - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 800)
    assert min(below, above) > 0.002
    assert all(0 <= f.low <= f.value <= f.high <= 1 for f in found)


def test_an_interval_that_takes_dependent_scores_for_independent_is_too_narrow_and_inflation_mends_it():
    """Every score counted four times: the spread is twice what DeLong thinks."""
    rng = np.random.default_rng(0)
    plain = mended = 0
    for _ in range(300):
        values, labels = scores(rng, 20, 20, 0.0)
        values, labels = np.repeat(values, 4), np.repeat(labels, 4)
        one, two = auc(values, labels), auc(values, labels, inflation=2.0)
        plain += not one.low <= 0.5 <= one.high
        mended += not two.low <= 0.5 <= two.high
    assert plain / 300 > 0.2
    assert abs(mended / 300 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 300)


def test_a_perfect_area_still_has_an_interval():
    values, labels = np.arange(40.0), np.arange(40) >= 20
    found = auc(values, labels)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - 3 / 20)
    assert auc(-values, labels).high == pytest.approx(3 / 20)
    assert auc(values, labels, inflation=2.0).low == pytest.approx(1 - 12 / 20)


def test_an_area_is_said_to_have_the_interval_that_it_was_given():
    labels = np.arange(40) >= 20
    for extreme in (np.arange(40.0), -np.arange(40.0), np.ones(40)):
        assert auc(extreme, labels).how == "rule of three, 95 %"
    assert auc(np.arange(40.0) % 7, labels).how == "DeLong 95 % on the logit scale"


def test_chance_spreads_as_mann_and_whitney_say():
    rng = np.random.default_rng(0)
    values = [auc_value(rng.normal(size=50), np.arange(50) < 20) for _ in range(2000)]
    assert np.std(values) == pytest.approx(spread_by_chance(20, 30), rel=0.08)


@pytest.mark.parametrize(
    ("values", "labels", "line"),
    [
        (np.zeros(3), np.array([True, False, False]), "1 positives, 2 negatives: must be >= 2 of each"),
        (np.zeros(3), np.ones(3, bool), "3 positives, 0 negatives"),
        (
            np.array([np.nan, 0, 0, 0]),
            np.array([True, True, False, False]),
            "must have one shape and be finite",
        ),
        (np.zeros(3), np.ones(4, bool), "must have one shape and be finite"),
    ],
)
def test_scores_that_allow_no_area_are_refused(values, labels, line):
    with pytest.raises(DataError, match=line):
        auc(values, labels)
    with pytest.raises(DataError, match=line):
        mean_difference(values, labels, metric="gap", unit="nats")


def test_an_area_without_an_interval_needs_one_of_each_kind_and_finite_scores():
    assert auc_value(np.array([1.0, 0.0]), np.array([True, False])) == 1.0
    for values, labels in [
        (np.zeros(3), np.ones(3, bool)),
        (np.zeros(3), np.ones(4, bool)),
        (np.array([np.nan, 0]), np.array([True, False])),
    ]:
        with pytest.raises(DataError, match="AUC: "):
            auc_value(values, labels)


def test_rates_at_a_fixed_false_positive_rate_are_those_counted_by_hand():
    negatives = np.arange(1000.0)  # 1 % of them are 990 and above
    positives = np.array([989.0, 989.5, 990.0, 998.5, 999.5, 1500.0])
    values = np.concatenate([positives, negatives])
    labels = np.arange(len(values)) < 6
    one, tenth = tpr_estimates(values, labels)
    assert one.metric == "TPR at 1.0% FPR"
    assert (one.value, one.n) == (5 / 6, 6)  # above 989; the tie with it counts as a negative
    assert tenth.metric == "TPR at 0.1% FPR"
    assert tenth.value == 3 / 6  # above 998


def test_a_rate_below_what_the_negatives_resolve_allows_no_false_positive_and_says_so():
    values = np.array([5.0, 9.0, 9.5, 1.0, 2.0, 9.0])
    labels = np.array([True, True, True, False, False, False])
    (found,) = tpr_estimates(values, labels, rates=(0.01,))
    assert found.metric == "TPR at 1.0% FPR (0 false positives)"
    assert found.value == 1 / 3


def test_a_rate_that_binary_numbers_cannot_write_is_not_rounded_down():
    values = np.concatenate([[70.5], np.arange(100.0)])
    labels = np.arange(101) < 1
    (found,) = tpr_estimates(values, labels, rates=(0.29,))  # .29 x 100 is a hair below 29
    assert found.value == 1.0  # 29 false positives: 71 and above
    (found,) = tpr_estimates(values, labels, rates=(0.28,))
    assert found.value == 0.0


@pytest.mark.parametrize(
    ("guesses", "truths", "hits"),
    [
        ([1, 2], [2, 3], 1),
        ([1, 1, 1], [1], 1),
        ([1], [1, 1], 1),
        ([1, 1], [1, 1, 2], 2),
        ([], [1], 0),
        ([(1, 2)], [(1, 2)], 1),
    ],
)
def test_each_truth_is_matched_once(guesses, truths, hits):
    assert matched(guesses, truths) == hits


def test_a_share_of_nothing_is_nothing_of_one():
    assert (share(0, 0, metric="m").value, share(0, 0, metric="m").n) == (0.0, 1)
    apart, together = (share(0, 100, metric="m", groups=g) for g in (None, 2))
    assert apart.power.smallest(0.01) < 0.1 < 0.5 < together.power.smallest(0.01)


def test_a_share_of_targets_is_not_said_to_be_one_of_records():
    hows = [share(4, 10, metric="m", groups=groups).how for groups in (None, 2)]
    assert hows == ["share of targets, Wilson 95 %", "share of targets, Wilson 95 % over 2 groups"]


def test_records_that_are_found_or_missed_together_make_neither_success_nor_resistance_surer():
    apart, together = (share(40, 100, metric="m", groups=g) for g in (None, 2))
    assert together.low < 0.1 < 0.3 < apart.low
    assert together.high > 0.8 > 0.6 > apart.high
    assert together.how.endswith("over 2 groups")
    none, few = (share(0, 100, metric="m", groups=g) for g in (None, 2))
    assert none.low == few.low == 0
    assert none.high < 0.04 < 0.6 < few.high


def test_no_record_of_one_sum_says_as_little_as_no_sum_of_one():
    one_sum = share(0, 80, metric="m", groups=1)
    assert (one_sum.low, one_sum.high) == (0, share(0, 1, metric="m").high)
    assert share(0, 80, metric="m", groups=80).high < 0.05 < share(0, 80, metric="m", groups=72).high


def test_over_many_targets_the_interval_is_students_and_stays_within_bounds():
    found = over_targets([0.9, 1.0, 1.0], metric="m", unit="share", within=(0, 1))
    assert found.value == pytest.approx(29 / 30)
    assert found.high == 1.0
    assert found.low == pytest.approx(29 / 30 - 4.302653 * np.std([0.9, 1, 1], ddof=1) / np.sqrt(3))
    assert over_targets([0.5], metric="m", unit="share").low is None


def test_targets_have_an_interval_as_wide_as_one_of_them():
    rng = np.random.default_rng(0)
    targets = [scores(rng, 20, 40, 0.3) for _ in range(6)]
    one = mean_auc(targets[:1], metric="auc")
    assert one == auc(*targets[0])
    many = mean_auc(targets, metric="auc")
    widths = [auc(*t).high - auc(*t).low for t in targets]
    assert many.value == pytest.approx(np.mean([auc_value(*t) for t in targets]))
    assert many.high - many.low == pytest.approx(np.mean(widths))
    assert many.how.endswith("as if they erred together")


def test_rounds_that_think_alike_of_every_token_do_not_make_chance_look_like_a_leak():
    rng, positive, misses = np.random.default_rng(0), np.arange(800) < 200, 0
    for _ in range(60):
        common = rng.normal(size=800) * 0.5
        targets = [(common + rng.normal(size=800) * 0.75**0.5, positive) for _ in range(16)]
        found = mean_auc(targets, metric="auc")
        misses += not found.low <= 0.5 <= found.high
    assert misses <= 6  # Student's t over targets missed in 4 of 10


def test_a_rate_that_says_nothing_is_above_chance_no_more_often_than_its_interval_says():
    """Thresholds are estimated from few negatives: an interval over positives alone misses in 1 of 5."""
    rng, labels, above = np.random.default_rng(0), np.arange(240) < 120, 0
    for _ in range(400):
        (found,) = tpr_estimates(rng.normal(size=240), labels, rates=(0.01,))
        above += found.low > 0.01
    assert above <= 20


def test_the_interval_of_a_difference_of_means_covers_it():
    positive, missed = np.arange(400) % 2 == 0, 0
    for seed in range(40):
        values = np.random.default_rng(seed).normal(
            np.where(positive, 2.0, 1.5), np.where(positive, 0.2, 0.9)
        )
        found = mean_difference(values, positive, metric="gap", unit="nats")
        assert found.value == pytest.approx(values[positive].mean() - values[~positive].mean())
        missed += not found.low <= 0.5 <= found.high
    assert missed <= 7  # of 40, each missed with a probability of .05: more has a chance below .1 %


def test_targets_that_agree_get_wilsons_interval_within_bounds_and_none_without():
    perfect = over_targets([1.0] * 20, metric="auc", unit="AUC", within=(0, 1))
    # Newcombe 1998: 0 of 20 gives 0 to .1611
    assert (perfect.value, perfect.low, perfect.high) == (1.0, pytest.approx(0.8389, abs=5e-5), 1.0)
    moved = over_targets([0.0] * 20, metric="lead", unit="share", within=(-1, 1))
    half = over_targets([0.5] * 20, metric="auc", unit="AUC", within=(0, 1))
    assert (moved.low, moved.high) == pytest.approx((2 * half.low - 1, 2 * half.high - 1))
    free = over_targets([2.0] * 12, metric="bits", unit="bits")
    assert (free.value, free.low, free.high) == (2.0, None, None)
    assert free.how == "targets that agree, no interval"
