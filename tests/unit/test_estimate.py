"""Intervals agree with published numbers, and refuse data that allow none."""

import math
import operator
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.answers import (
    alone,
    gap_closed,
    gap_over_seeds_or_records,
    over_seeds_or_records,
)
from fedproxy_secure.evidence.estimate import (
    Estimate,
    at_least_as_wide,
    counted,
    independent_difference,
    mean_interval,
    proportion_interval,
)
from tests.support.paired import paired_difference


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
    a, b = {0: 0.5, 1: 0.9, 2: 0.1}, {0: 0.41, 1: 0.8, 2: -0.01}
    paired = paired_difference(a, b, metric="m", unit="share")
    assert paired.value == pytest.approx(0.1)
    half = 4.302653 * 0.01 / math.sqrt(3)  # t(2, .975) and the standard deviation of the differences
    assert (paired.low, paired.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    assert "paired" in paired.how


# seeds that agree


def test_seeds_that_agree_without_intervals_of_their_own_have_none():
    agree = mean_interval({0: 0.1, 1: 0.1, 2: 0.1}, metric="m", unit="bits")
    assert (agree.value, agree.low, agree.high, agree.n) == (pytest.approx(0.1), None, None, 3)
    assert agree.how == "seeds that agree, no interval"
    rounding = paired_difference({0: 0.5, 1: 0.9}, {0: 0.4, 1: 0.8}, metric="m", unit="share")
    assert rounding.low is None


def test_seeds_that_agree_are_as_sure_as_one_of_them():
    # Newcombe 1998: 0 of 20 gives 0 to .1611
    parts = [proportion_interval(0, 20, metric="m", seeds=[s]) for s in range(3)]
    joined = at_least_as_wide(mean_interval(dict.fromkeys(range(3), 0.0), metric="m", unit="share"), parts)
    assert (joined.low, joined.high) == pytest.approx((0, 0.1611), abs=5e-5)
    assert (joined.n, joined.seeds) == (3, (0, 1, 2))


def test_seeds_that_nearly_agree_are_no_surer_than_one_of_them():
    parts = [proportion_interval(k, 1000, metric="m", seeds=[s]) for s, k in enumerate((500, 501, 500))]
    values = {s: part.value for s, part in enumerate(parts)}
    mean = mean_interval(values, metric="m", unit="share")
    assert mean.high - mean.low < 0.003
    joined = at_least_as_wide(mean, parts)
    assert joined.high - joined.low == pytest.approx(2 * 0.0309, abs=2e-4)  # 1.96 sqrt(.25 / 1000)
    assert "no narrower than a seed's own" in joined.how


def test_seeds_that_differ_more_than_their_records_keep_their_own_interval():
    parts = [proportion_interval(k, 1000, metric="m", seeds=[s]) for s, k in enumerate((300, 500, 700))]
    mean = mean_interval({s: part.value for s, part in enumerate(parts)}, metric="m", unit="share")
    assert at_least_as_wide(mean, parts) == mean


def test_counted_numbers_that_agree_stay_exact():
    parts = [counted(7.0, metric="m", unit="bytes", seeds=[s]) for s in range(3)]
    joined = at_least_as_wide(mean_interval(dict.fromkeys(range(3), 7.0), metric="m", unit="bytes"), parts)
    assert joined.low == joined.value == joined.high == 7.0
    assert joined.exact


def test_only_what_was_counted_is_exact_and_its_ends_are_itself():
    exact = counted(7.0, metric="m", unit="bytes", seeds=[0])
    assert (exact.exact, exact.interval) == (True, (7.0, 7.0))
    alike = replace(exact, nature="sampled")
    assert (alike.exact, alike.interval) == (False, None)
    with pytest.raises(DataError, match=r"m: 7\.0 \[7\.0, 8\]: the ends of a number that is counted must"):
        replace(exact, high=8)


def test_a_difference_of_counts_is_exact_and_one_of_lower_bounds_has_no_interval():
    a, b = (counted(v, metric="m", unit="epsilon", seeds=[0]) for v in (3.0, 1.0))
    found = independent_difference(a, b, metric="d")
    assert (found.value, found.exact) == (2.0, True)
    at_least = replace(b, nature="lower bound")
    assert independent_difference(a, at_least, metric="d").interval is None


def test_what_was_sampled_is_never_certain_however_narrow_its_interval():
    alike = replace(counted(0.5, metric="m", unit="share", seeds=[0]), nature="sampled")
    wide = replace(alike, low=0.4, high=0.6)
    assert not alike.above(0.4)
    assert not alike.below(0.6)
    assert (wide.above(0.39), wide.above(0.4), wide.below(0.6), wide.below(0.61)) == (
        True,
        False,
        False,
        True,
    )
    assert independent_difference(wide, alike, metric="d").interval is None
    mean = mean_interval({0: 0.4, 1: 0.6}, metric="m", unit="share")
    assert at_least_as_wide(mean, [alike, wide]) == mean


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_gap_that_the_ceiling_itself_closes_is_exact_by_definition(seeds):
    zero, top = {"t": [False] * 40}, {"t": [True] * 40}
    found = gap_over_seeds_or_records({s: (top, zero, top) for s in range(seeds)}, "gap")
    assert (found.value, found.exact) == (1.0, True)


# shares of right answers


def test_one_seed_s_share_has_jeffreys_interval():
    answers = {"t": [True] * 81 + [False] * 182}
    found = over_seeds_or_records({4: (answers,)}, alone, "m")
    ends = beta.ppf([0.025, 0.975], 81.5, 182.5)
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=3e-3)
    assert (found.value, found.n, found.seeds) == (81 / 263, 263, (4,))


@pytest.mark.parametrize("right", [True, False])
def test_three_seeds_that_answer_all_records_alike_are_not_certain(right):
    by_seed = {s: ({"t": [right] * 100},) for s in range(3)}
    found = over_seeds_or_records(by_seed, alone, "m")
    # Brown, Cai & DasGupta 2001, Jeffreys at 100 of 100: .025 quantile of Beta(100.5, .5) = .97523
    low, high = (0.97523, 1.0) if right else (0.0, 1 - 0.97523)
    assert (found.low, found.high) == pytest.approx((low, high), abs=3e-3)
    assert found.value == float(right)


def test_a_difference_of_two_models_is_no_surer_over_seeds_than_over_records():
    one = {"t": [True] * 60 + [False] * 40}
    other = {"t": [True] * 50 + [False] * 40 + [True] * 10}
    single = over_seeds_or_records({0: (one, other)}, operator.sub, "m")
    # 10 records against 10: McNemar's spread sqrt(20) / 100
    assert (single.low, single.high) == pytest.approx((-0.0877, 0.0877), abs=0.01)
    several = over_seeds_or_records({s: (one, other) for s in range(3)}, operator.sub, "m")
    assert several.high - several.low == pytest.approx(single.high - single.low, rel=0.05)


def test_models_that_answer_alike_differ_by_nothing_that_is_certain():
    one, other = ({"t": [True] * 60 + [False] * 40} for _ in range(2))
    found = over_seeds_or_records({s: (one, other) for s in range(3)}, operator.sub, "m")
    assert found.value == 0
    assert -0.04 < found.low < -0.005
    assert 0.005 < found.high < 0.04


def test_a_model_differs_from_itself_by_nothing():
    model = {"t": [True] * 60 + [False] * 40}
    found = over_seeds_or_records({0: (model, dict(model))}, operator.sub, "m")
    assert (found.low, found.value, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("statistic", "others", "ends"), [(alone, (), (0, 1)), (operator.sub, ({"t": [False] * 50},), (-1, 1))]
)
def test_intervals_of_shares_and_of_differences_are_cut_to_what_these_can_be(statistic, others, ends):
    by_seed = {s: ({"t": [True] * right + [False] * (50 - right)},) for s, right in enumerate((50, 25))}
    found = over_seeds_or_records({s: (*own, *others) for s, own in by_seed.items()}, statistic, "m")
    assert ends[0] <= found.low < found.value < found.high == 1
    assert "cut to" in found.how


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_interval_over_records_holds_the_truth_as_often_as_it_says(share):
    rng, hits, draws = np.random.default_rng(0), 0, 400
    for draw in range(draws):
        answers = {"t": rng.random(200) < share}
        found = over_seeds_or_records({draw: (answers,)}, alone, "m")
        hits += found.low <= share <= found.high
    assert hits / draws > 0.92


# the gap closed


def answered(*rights, records=400):
    """Return the answers of the method, of zero-shot and of the ceiling: each gets the first ones right."""
    return [{"t": [i < right for i in range(records)]} for right in rights]


def test_the_gap_closed_over_seeds_is_the_ratio_of_mean_ways_and_no_mean_of_ratios():
    seeds = {0: answered(180, 120, 220), 1: answered(180, 120, 240), 2: answered(240, 120, 260)}
    found = gap_over_seeds_or_records(seeds, "gap")
    assert found.value == pytest.approx((60 + 60 + 120) / (100 + 120 + 140))
    assert (found.n, found.unit, found.seeds) == (3, "share", (0, 1, 2))
    assert found.low < found.value < found.high
    # Fieller 1954 by hand: t(2, .975) = 4.302653
    ways, gaps = np.array([60, 60, 120.0]), np.array([100, 120, 140.0])
    for end in (found.low, found.high):
        apart = ways - end * gaps
        half = 4.302653 * apart.std(ddof=1) / math.sqrt(3)
        assert abs(apart.mean()) == pytest.approx(half, rel=1e-3)


def test_a_seed_whose_gap_is_below_zero_is_counted_where_the_mean_gap_is_resolved():
    gaps = (100, 110, 90, 105, 95, 100, -5, 105)
    seeds = {s: answered(120 + gap // 2, 120, 120 + gap) for s, gap in enumerate(gaps)}
    found = gap_over_seeds_or_records(seeds, "gap")
    assert found.value == pytest.approx(sum(g // 2 for g in gaps) / sum(gaps))
    assert found.seeds == tuple(range(8))


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_gap_closed_is_told_where_the_interval_of_the_gap_itself_has_zero_in_it(seeds):
    assert gap_over_seeds_or_records({s: answered(200, 120, 122) for s in range(seeds)}, "gap") is None
    assert gap_over_seeds_or_records({s: answered(100, 120, 60) for s in range(seeds)}, "gap") is None


@pytest.mark.parametrize(("ceiling", "fewest", "most"), [(0.305, 1, 7), (0.38, 60, 85), (0.5, 100, 100)])
def test_a_gap_closed_is_told_as_often_as_the_gap_itself_is_seen(ceiling, fewest, most):
    rng, told = np.random.default_rng(0), []
    for draw in range(100):
        shares = (0.3, 0.3, ceiling)  # of the method, zero-shot, the ceiling
        models = [{"t": rng.random(400) < share} for share in shares]
        found = gap_over_seeds_or_records({draw: models}, "gap")
        told += [] if found is None else [found]
    assert fewest <= len(told) <= most
    assert all(found.low < found.value < found.high for found in told)
    assert sum(not found.low <= 0 <= found.high for found in told) <= 10  # the method closes none of it


def test_one_seed_s_gap_closed_is_that_of_its_records():
    models = answered(180, 120, 220)
    found = gap_over_seeds_or_records({5: models}, "gap")
    assert found == over_seeds_or_records({5: models}, gap_closed, "gap")


@pytest.mark.parametrize(("end", "value"), [(0, 0.0), (1, 1.0)])
def test_an_end_of_the_scale_closes_none_or_all_of_the_gap_over_seeds_exactly(end, value):
    ends = [answered(120, 200 + 20 * s) for s in range(3)]
    found = gap_over_seeds_or_records({s: (pair[end], *pair) for s, pair in enumerate(ends)}, "gap")
    assert (found.low, found.value, found.high) == (value, value, value)


def test_seeds_that_agree_are_no_surer_of_the_gap_closed_than_one_of_them():
    single = gap_over_seeds_or_records({0: answered(180, 120, 220)}, "gap")
    several = gap_over_seeds_or_records({s: answered(180, 120, 220) for s in range(3)}, "gap")
    assert (several.low, several.high) == pytest.approx((single.low, single.high), abs=0.02)


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
        Estimate(
            metric="m", value=1, low=0, high=None, n=1, unit="s", seeds=(0,), how="-", nature="sampled"
        )
