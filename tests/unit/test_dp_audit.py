"""The one-run audit gives the published bounds, and its verdicts follow from them alone."""

import numpy as np
import pytest
from scipy.stats import binom

from attacks.audit.dp_audit import audit, ceiling, lower_bound, p_value
from fedproxy_secure.errors import DataError


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "epsilon"),
    [
        (100, 100, 100, 0, 3.4930),
        (1000, 1000, 1000, 1e-5, 5.7823),
        (1000, 100, 100, 1e-5, 3.4654),
        (1000, 100, 90, 1e-5, 1.6261),
        (1000, 1000, 600, 1e-5, 0.2972),
        (1000, 1000, 500, 1e-5, 0.0),
        (64, 64, 64, 1e-5, 3.0364),
    ],
)
def test_known_bounds_come_out(canaries, guesses, correct, delta, epsilon):
    found = lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert found == pytest.approx(epsilon, abs=5e-5)


def test_without_delta_the_p_value_is_the_binomial_tail():
    for correct in range(0, 21):
        found = p_value(1.0, canaries=30, guesses=20, correct=correct, delta=0)
        assert found == pytest.approx(binom.sf(correct - 1, 20, 1 / (1 + np.exp(-1))), abs=1e-12)


def test_the_term_of_delta_is_the_largest_over_all_i_counted_one_by_one():
    q, v, m, r, delta = 1 / (1 + np.exp(-0.7)), 12, 40, 15, 1e-3
    law = [binom.pmf(k, r, q) for k in range(r + 1)]
    worst = max(sum(law[k] for k in range(max(v - i, 0), v)) / i for i in range(1, v + 1))
    wanted = sum(law[v:]) + 2 * m * delta * worst
    assert p_value(0.7, canaries=m, guesses=r, correct=v, delta=delta) == pytest.approx(wanted, abs=1e-12)


def test_more_right_guesses_never_show_less():
    bounds = [lower_bound(canaries=200, guesses=100, correct=v, delta=1e-5) for v in range(50, 101, 5)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == ceiling(canaries=200, guesses=100, delta=1e-5)


def test_perfect_scores_fail_a_small_claim_and_cannot_fail_one_above_the_ceiling():
    included = np.arange(1000) % 2 == 0
    scores = included.astype(float)
    small = audit(scores, included, guesses=1000, delta=1e-5, claimed_epsilon=1.0)
    assert small.verdict == "FAIL"
    assert "FAILS the claim of 1" in small.summary()
    large = audit(scores, included, guesses=1000, delta=1e-5, claimed_epsilon=8.0)
    assert large.verdict == "NOT_FALSIFIED"
    assert large.lower_bound == large.ceiling < 8


def test_several_numbers_of_guesses_share_alpha():
    included = np.arange(1000) % 2 == 0
    one = audit(included.astype(float), included, guesses=100, delta=0, claimed_epsilon=0.0)
    many = audit(included.astype(float), included, guesses=(20, 100), delta=0, claimed_epsilon=0.0)
    assert many.guesses == 100
    assert many.lower_bound < one.lower_bound


def test_certainty_is_bounded_rather_than_endless():
    assert 30 < lower_bound(canaries=1, guesses=1, correct=1, delta=0, alpha=1 - 1e-16) <= 64


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"guesses": 3}, r"guesses=\[3\]: must be even, from 2 to 10"),
        ({"guesses": 12}, r"guesses=\[12\]"),
        ({"guesses": ()}, r"guesses=\[\]"),
        ({"claimed_epsilon": float("nan")}, "claimed_epsilon=nan: must be >= 0"),
        ({"delta": 1.0}, r"delta=1.0: must be in \[0, 1\)"),
        ({"alpha": 0.0}, r"alpha=0.0: must be in \(0, 1\)"),
    ],
)
def test_an_audit_that_makes_no_sense_is_refused(change, line):
    settings = {"guesses": 4, "delta": 0.0, "claimed_epsilon": 1.0}
    with pytest.raises(DataError, match=line):
        audit(np.arange(10.0), np.arange(10) > 4, **(settings | change))


def test_scores_that_are_no_numbers_or_do_not_fit_are_refused():
    with pytest.raises(DataError, match="hold NaN"):
        audit(np.full(4, np.nan), np.ones(4, bool), guesses=2, delta=0, claimed_epsilon=1)
    with pytest.raises(DataError, match="must be"):
        audit(np.ones(4), np.ones(4), guesses=2, delta=0, claimed_epsilon=1)
    with pytest.raises(DataError, match="must be 0 <= correct <= guesses <= canaries"):
        p_value(1.0, canaries=3, guesses=4, correct=1, delta=0)
    with pytest.raises(DataError, match=r"epsilon=-1: must be >= 0"):
        p_value(-1, canaries=3, guesses=2, correct=1, delta=0)
