"""Intervals agree with published numbers, and refuse data that allow none."""

import math

import pytest

from fedproxy_secure.errors import DataError
from fedproxy_secure.report import Estimate, mean_interval, paired_difference, proportion_interval


def test_an_interval_over_seeds_is_cut_to_what_values_can_be_and_says_so():
    cut = mean_interval({0: 0.0, 1: 0.1}, metric="m", unit="share", within=(0, 1))
    whole = mean_interval({0: 0.0, 1: 0.1}, metric="m", unit="share")
    assert whole.low < 0 == cut.low
    assert cut.high == whole.high < 1
    assert cut.how == f"{whole.how}, cut to [0, 1]"


def test_mean_interval_is_students_t():
    # Mean 3, standard deviation sqrt(2.5), t(4, .975) = 2.776445 from the printed table.
    estimate = mean_interval({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, metric="m", unit="s")
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert estimate.value == 3.0
    assert (estimate.low, estimate.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert (estimate.n, estimate.seeds, estimate.unit) == (5, (0, 1, 2, 3, 4), "s")


def test_two_seeds_have_the_wide_interval_of_one_degree_of_freedom():
    estimate = mean_interval({3: 0.0, 8: 1.0}, metric="m", unit="share")
    assert estimate.high == pytest.approx(0.5 + 12.7062 * 0.5, abs=1e-4)


def test_one_seed_has_no_interval():
    estimate = mean_interval({7: 0.25}, metric="m", unit="share")
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.25, None, None, 1)
    assert "no interval" in estimate.how


def test_wilson_interval_agrees_with_newcombe_1998():
    # Newcombe 1998, table I, method 3: 81 of 263 gives .2553 to .3662, 0 of 20 gives 0 to .1611.
    some = proportion_interval(81, 263, metric="m", seeds=[0])
    none = proportion_interval(0, 20, metric="m", seeds=[0])
    assert (some.low, some.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert some.n == 263


@pytest.mark.parametrize("n", [1, 3, 7, 49, 300])
def test_wilson_interval_holds_the_share_even_at_the_ends(n: int):
    for correct in range(n + 1):
        e = proportion_interval(correct, n, metric="m", seeds=[0])
        assert e.low is not None
        assert e.high is not None
        assert 0 <= e.low <= e.value <= e.high <= 1


def test_pairing_removes_what_seeds_share():
    a, b = {0: 0.5, 1: 0.9, 2: 0.1}, {0: 0.4, 1: 0.8, 2: 0.0}
    paired = paired_difference(a, b, metric="m", unit="share")
    assert paired.value == pytest.approx(0.1)
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    assert "paired" in paired.how


def test_pairs_need_the_same_seeds():
    with pytest.raises(DataError, match=r"\[0, 1\] and \[0, 2\]"):
        paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0}, metric="m", unit="s")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float):
    with pytest.raises(DataError, match="accuracy"):
        mean_interval({0: bad}, metric="accuracy", unit="share")


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_proportions_are_refused(correct: int, n: int):
    with pytest.raises(DataError, match=f"{correct} of {n}"):
        proportion_interval(correct, n, metric="m", seeds=[0])


def test_no_values_and_half_an_interval_are_refused():
    with pytest.raises(DataError, match="no values"):
        mean_interval({}, metric="m", unit="s")
    with pytest.raises(DataError, match="must be both None or both given"):
        Estimate(metric="m", value=1, low=0, high=None, n=1, unit="s", seeds=(0,), how="-")
