"""The smallest effect that a number could have shown: known answers, and simulations of .8."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from attacks.judging.measured import plain
from attacks.judging.power import (
    AucPower,
    IntervalPower,
    MeanPower,
    RatePower,
    SharePower,
    could_show,
)
from attacks.statistics import auc_estimate, mean_auc, over_targets, share, tpr_estimates
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate, proportion_interval

WITHIN = 0.08  # of .8: a formula's error and 600 draws'


def estimate(value, low, high, unit="AUC"):
    return Estimate(
        metric="m",
        value=value,
        low=low,
        high=high,
        n=9,
        unit=unit,
        seeds=(0,),
        how="for the test",
        nature="sampled",
    )


# an AUC


@pytest.mark.parametrize(("there", "others"), [(20, 20), (50, 50), (30, 120), (300, 300)])
def test_an_auc_is_seen_in_four_samples_of_five(there, others):
    smallest = AucPower(positives=there, negatives=others).smallest(0.55)
    shift = math.sqrt(2) * norm.ppf(smallest)
    rng, labels = np.random.default_rng(there), np.arange(there + others) < there
    seen = [
        auc_estimate(rng.normal(size=len(labels)) + shift * labels, labels, metric="auc").low > 0.55
        for _ in range(600)
    ]
    assert abs(np.mean(seen) - 0.8) < WITHIN


def test_an_auc_needs_more_where_targets_are_fewer_depend_on_each_other_or_the_bar_is_higher():
    plainly = AucPower(positives=120, negatives=120)
    assert plainly.smallest(0.55) == pytest.approx(0.654, abs=5e-4)
    assert AucPower(positives=60, negatives=60).smallest(0.55) > plainly.smallest(0.55)
    assert AucPower(positives=120, negatives=120, inflation=2).smallest(0.55) > plainly.smallest(0.55)
    assert plainly.smallest(0.6) > plainly.smallest(0.55)


def test_with_few_targets_only_a_perfect_auc_is_seen_and_with_four_of_each_kind_none():
    assert AucPower(positives=8, negatives=8).smallest(0.55) == 1.0
    assert AucPower(positives=4, negatives=4).smallest(0.55) is None
    assert AucPower(positives=50, negatives=50).smallest(1.0) is None


# a share


@pytest.mark.parametrize(("n", "bar"), [(10, 0.01), (50, 0.01), (50, 0.55), (400, 0.0)])
def test_a_share_is_seen_with_exactly_the_probability(n, bar):
    smallest = SharePower(n=n).smallest(bar)
    above = [k for k in range(n + 1) if proportion_interval(k, n, metric="m", seeds=(0,)).low > bar]
    assert binom.sf(min(above) - 1, n, smallest) == pytest.approx(0.8, abs=1e-6)


def test_a_share_whose_interval_never_reaches_the_bar_is_never_seen():
    assert proportion_interval(4, 4, metric="m", seeds=(0,)).low == pytest.approx(0.5101, abs=1e-4)
    assert SharePower(n=4).smallest(0.55) is None
    assert SharePower(n=5).smallest(0.55) == pytest.approx(0.8 ** (1 / 5))  # five of five


# a rate at a fixed false-positive rate


@pytest.mark.parametrize(("there", "others"), [(400, 400), (600, 600), (100, 2000)])
def test_a_rate_is_seen_in_four_samples_of_five(there, others):
    smallest = RatePower(positives=there, negatives=others, rate=0.01).smallest(0.01)
    outright = (smallest - 0.01) / 0.99
    rng, labels = np.random.default_rng(others), np.arange(there + others) < there
    seen = []
    for _ in range(600):
        values = rng.random(len(labels)) + (labels & (rng.random(len(labels)) < outright))
        (found,) = tpr_estimates(values, labels, rates=(0.01,))
        seen.append(found.low > 0.01)
    assert abs(np.mean(seen) - 0.8) < WITHIN


def test_with_too_few_others_no_rate_is_ever_seen():
    assert RatePower(positives=10_000, negatives=367, rate=0.01).smallest(0.01) is None
    assert RatePower(positives=10_000, negatives=368, rate=0.01).smallest(0.01) is not None


# a mean over targets


@pytest.mark.parametrize(("n", "bar"), [(4, 0.55), (12, 0.55), (64, 1.44)])
def test_a_mean_is_seen_in_four_samples_of_five(n, bar):
    smallest = MeanPower(n=n, spread=0.4).smallest(bar)
    rng = np.random.default_rng(n)
    seen = [
        over_targets(list(rng.normal(smallest, 0.4, size=n)), metric="m", unit="bits").low > bar
        for _ in range(600)
    ]
    assert abs(np.mean(seen) - 0.8) < WITHIN


def test_a_mean_over_one_target_over_equal_ones_or_beyond_what_can_be_is_never_seen():
    assert MeanPower(n=1, spread=0.4).smallest(0.5) is None
    assert MeanPower(n=9, spread=0.0).smallest(0.5) is None
    assert MeanPower(n=4, spread=0.3).smallest(0.55) > 1
    assert MeanPower(n=4, spread=0.3, most=1.0).smallest(0.55) is None


# any other number


def test_a_number_with_an_interval_alone_is_judged_by_its_width():
    found = could_show(estimate(2.0, 1.0, 3.0, unit="bits"), 1.4, None)
    assert found.smallest == pytest.approx(1.4 + 1 + 0.841621 / 1.959964)
    assert found.how == "the width of its interval"
    assert could_show(estimate(0.8, 0.7, 0.9), 0.55, None).smallest == pytest.approx(0.693, abs=1e-3)


@pytest.mark.parametrize("alone", [estimate(0.5, None, None), estimate(0.5, 0.5, 0.5), estimate(0.5, 0, 1)])
def test_a_number_without_an_interval_that_says_something_has_no_known_power(alone):
    assert could_show(alone, 0.55, None) is None
    assert IntervalPower(estimate=alone).smallest(0.55) is None


# what the estimates of `attacks.statistics` know


def test_every_statistic_knows_its_power():
    labels = np.arange(240) < 120
    scores = np.random.default_rng(0).normal(size=240)
    auc = auc_estimate(scores, labels, metric="auc")
    assert auc.power == AucPower(positives=120, negatives=120)
    assert mean_auc([(scores, labels)] * 2, metric="auc", inflation=2.0).power == AucPower(
        positives=120, negatives=120, inflation=2.0
    )
    assert tpr_estimates(scores, labels)[0].power == RatePower(positives=120, negatives=120, rate=0.01)
    assert share(1, 9, metric="m").power == SharePower(n=9)
    mean = over_targets([0.2, 0.4], metric="m", unit="share", within=(0, 1))
    assert mean.power == MeanPower(n=2, spread=pytest.approx(0.141421, abs=1e-6), most=1)


def test_a_plain_estimate_is_the_same_number_without_what_it_knows():
    known = share(1, 9, metric="m")
    assert plain(known) == proportion_interval(1, 9, metric="m", seeds=(0,), of="targets")
    assert type(plain(known)) is Estimate


@pytest.mark.parametrize(
    ("unit", "smallest", "sentence"),
    [
        ("AUC", 0.5812, "an AUC of 0.581 would have been seen with probability 0.8"),
        ("share", 0.6, "a share of 0.6 would have been seen with probability 0.8"),
        ("bits", 2.0, "2 bits would have been seen with probability 0.8"),
        ("AUC", None, "no auc would have been seen with probability 0.8"),
    ],
)
def test_what_would_have_been_seen_is_one_sentence(unit, smallest, sentence):
    found = Detectable(metric="auc", unit=unit, bar=0.5, smallest=smallest, how="9 targets")
    assert found.sentence == sentence


def test_a_smallest_effect_at_the_bar_or_not_finite_is_refused():
    with pytest.raises(DataError, match=r"auc: smallest=0\.5: must be above 0\.5"):
        Detectable(metric="auc", unit="AUC", bar=0.5, smallest=0.5, how="9 targets")
    with pytest.raises(DataError, match="auc: inf: must be finite"):
        Detectable(metric="auc", unit="AUC", bar=0.5, smallest=math.inf, how="9 targets")
