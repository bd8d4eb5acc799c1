"""The bound for any (epsilon, delta)-DP mechanism is the published one."""

import numpy as np
import pytest
from scipy.stats import binom

from attacks.audit.dp_audit import lower_bound, p_value
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


def test_certainty_is_bounded_rather_than_endless():
    assert 30 < lower_bound(canaries=1, guesses=1, correct=1, delta=0, alpha=1 - 1e-16) <= 64


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"guesses": 4}, "must be 0 <= correct <= guesses <= canaries"),
        ({"epsilon": -1}, "epsilon=-1: must be >= 0"),
        ({"delta": 1.0}, r"delta=1.0: must be in \[0, 1\)"),
    ],
)
def test_a_p_value_that_makes_no_sense_is_refused(change, line):
    asked = {"epsilon": 1.0, "canaries": 3, "guesses": 2, "correct": 1, "delta": 0.0} | change
    with pytest.raises(DataError, match=line):
        p_value(asked.pop("epsilon"), **asked)
    with pytest.raises(DataError, match=r"alpha=0.0: must be in \(0, 1\)"):
        lower_bound(canaries=3, guesses=2, correct=1, delta=0, alpha=0.0)
