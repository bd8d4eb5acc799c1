"""How many right guesses refute a profile: the recursion is the linear program of its inequalities."""

import numpy as np
import pytest
from scipy.optimize import linprog

from attacks.audit.one_run import Guesses, refutes
from fedproxy_secure.dp.profile import gaussian
from fedproxy_secure.errors import DataError
from tests.support.profiles import approximate


def most_likely(profile, *, canaries, guesses, correct):
    """The largest P[C >= correct] of all laws of C that fulfil the inequalities, by linear programming."""
    r, m = guesses.count, canaries if guesses.both else canaries / 2
    rows, limits = [], []
    for c in range(1, r + 1):
        right = np.array([j if j >= c else 0 for j in range(r + 1)], dtype=float)
        wrong = np.array([r - j if j >= c - 1 else 0 for j in range(r + 1)], dtype=float)
        for epsilon, delta in zip(profile.epsilons, profile.deltas, strict=True):
            rows.append(right - np.exp(epsilon) * wrong)
            limits.append(m * delta)
        rows.append(right)
        limits.append(m)  # no event is likelier than 1
    goal = -np.array([float(j >= correct) for j in range(r + 1)])
    found = linprog(goal, A_ub=rows, b_ub=limits, A_eq=[np.ones(r + 1)], b_eq=[1.0], method="highs")
    return -found.fun


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("profile", [gaussian(0.7), approximate(0.5, 0.02)], ids=["gaussian", "(.5, .02)"])
@pytest.mark.parametrize("correct", [11, 12])
def test_the_recursion_finds_the_largest_probability_that_the_inequalities_leave(both, profile, correct):
    asked = {"canaries": 40, "guesses": Guesses(count=12, both=both), "correct": correct}
    largest = most_likely(profile, **asked)
    assert 0 < largest < 1
    assert not refutes(profile, alpha=largest * (1 - 1e-6), **asked)
    assert refutes(profile, alpha=largest * (1 + 1e-4), **asked)


def test_a_mechanism_that_seldom_tells_everything_is_not_accused_of_more():
    """It is (0, delta)-DP, and with probability delta all guesses are right, at once."""
    asked = {"canaries": 50, "guesses": Guesses(count=20, both=True), "correct": 20}
    assert not refutes(approximate(0.0, 0.2), alpha=0.19, **asked)
    assert refutes(approximate(0.0, 0.001), alpha=0.05, **asked)


def test_more_right_guesses_refute_no_less_and_more_privacy_is_refuted_no_later():
    asked = {"canaries": 1000, "guesses": Guesses(count=100, both=True), "alpha": 0.05}
    needed = []
    for mu in (0.1, 0.5, 1.0, 2.0):
        refuted = [refutes(gaussian(mu), correct=v, **asked) for v in range(101)]
        assert refuted == sorted(refuted)
        needed.append(refuted.count(False))
    assert needed == sorted(needed)
    assert 50 < needed[0] < needed[-1]


def test_guesses_take_the_ends_of_the_scores():
    scores, coins = np.arange(10.0), np.arange(10) >= 5
    assert Guesses(count=4, both=True).correct(scores, coins) == 4
    assert Guesses(count=4, both=True).correct(-scores, coins) == 0
    assert Guesses(count=7, both=False).correct(scores, coins) == 5


@pytest.mark.parametrize(
    ("guesses", "line"),
    [
        (Guesses(count=3, both=True), r"guesses=3: must be in \[1, 10\], and even"),
        (Guesses(count=12, both=False), "guesses=12"),
        (Guesses(count=0, both=False), "guesses=0"),
    ],
)
def test_guesses_that_make_no_sense_are_refused(guesses, line):
    with pytest.raises(DataError, match=line):
        guesses.correct(np.arange(10.0), np.arange(10) > 4)


def test_scores_that_are_no_numbers_or_do_not_fit_are_refused():
    two = Guesses(count=2, both=True)
    with pytest.raises(DataError, match="hold NaN"):
        two.correct(np.full(4, np.nan), np.ones(4, bool))
    with pytest.raises(DataError, match="must be"):
        two.correct(np.ones(4), np.ones(4))
    with pytest.raises(DataError, match="must be 0 <= correct <= guesses <= canaries"):
        refutes(gaussian(1.0), canaries=10, guesses=two, correct=3, alpha=0.05)
    with pytest.raises(DataError, match=r"alpha=0: must be in \(0, 1\)"):
        refutes(gaussian(1.0), canaries=10, guesses=two, correct=1, alpha=0)
