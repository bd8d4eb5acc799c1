"""Paired differences by target: DeLong's formula, coverage, and when two exams are the same."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.estimate import Estimate, independent_difference, proportion_interval
from fedproxy_secure.evidence.targets import (
    Targets,
    components,
    difference,
    midranks,
    paired_by_target,
)


def targets(scores, positive, exam="a"):
    kinds = "".join("1" if p else "0" for p in positive)
    return Targets(exam=exam, kinds=kinds, values=tuple(midranks(np.asarray(scores)).tolist()))


def paired(a, b):
    return paired_by_target(a, b, metric="m", unit="AUC")


def by_definition(x, y, positive):
    """Return the difference of two AUCs and its variance, by comparing all positives with all negatives."""
    psi = [np.sign(s[positive][:, None] - s[~positive][None, :]) / 2 + 0.5 for s in (x, y)]
    v10, v01 = (np.array([p.mean(axis=axis) for p in psi]) for axis in (1, 0))
    s = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    return psi[0].mean() - psi[1].mean(), s[0, 0] + s[1, 1] - 2 * s[0, 1]


def test_the_difference_and_its_interval_are_those_of_delong_1988_by_their_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(12, 60))
        positive = rng.permutation(n) < n // 3
        common = rng.normal(size=n)
        x, y = (np.round(common + positive * s + rng.normal(size=n), 1) for s in (1.0, 0.3))
        value, variance = by_definition(x, y, positive)
        found = paired(targets(x, positive), targets(y, positive))
        assert found.value == pytest.approx(value, abs=1e-12)
        half = norm.ppf(0.975) * math.sqrt(variance)
        assert (found.low, found.high) == pytest.approx((value - half, value + half), abs=1e-9)
        assert (found.n, found.how) == (n, "difference paired by target, DeLong 95 %")


def test_ranks_are_scipys_and_components_average_to_the_area():
    values = np.random.default_rng(1).integers(0, 5, size=40)
    assert midranks(values).tolist() == rankdata(values).tolist()
    v10, v01 = components(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False]))
    assert (v10.tolist(), v01.tolist()) == ([1.0, 0.5], [0.5, 1.0])


def test_the_paired_interval_covers_as_often_as_it_says_and_is_narrower_than_the_unpaired_one():
    rng, positive = np.random.default_rng(0), np.arange(160) < 80
    true = norm.cdf(1.0 / 2) - norm.cdf(0.6 / 2)  # scores of variance 2
    hits, narrower = 0, 0
    for _ in range(600):
        common = rng.normal(size=160)
        x, y = (common + positive * s + rng.normal(size=160) for s in (1.0, 0.6))
        found = paired(targets(x, positive), targets(y, positive))
        hits += found.low <= true <= found.high
        mixed = np.concatenate([rng.permutation(y[:80]), rng.permutation(y[80:])])
        apart = paired(targets(x, positive), targets(mixed, positive))
        narrower += found.high - found.low < apart.high - apart.low
    assert abs(hits / 600 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 600)
    assert narrower > 500


def test_findings_are_paired_by_the_first_targets_of_each_question():
    """Else a finding that was cut in the first question would be compared on other records."""
    rng, positive = np.random.default_rng(3), np.arange(80) % 2 == 0
    x, y = rng.normal(size=(2, 80)) + positive
    whole = replace(targets(x, positive), parts=(40, 40))
    first = np.r_[0:20, 40:80]
    cut = replace(targets(y[first], positive[first]), parts=(20, 40))
    by_hand = paired(targets(x[first], positive[first]), targets(y[first], positive[first]))
    for found, sign in ((paired(whole, cut), 1), (paired(cut, whole), -1)):
        assert found.value == pytest.approx(sign * by_hand.value)
        assert found.n == 60
    with pytest.raises(DataError, match=r"parts: must be >= 0 and add up to 60"):
        replace(cut, parts=(20, 20))


def test_targets_that_were_judged_alike_differ_by_nothing():
    positive = np.arange(10) < 5
    same = targets(np.arange(10.0), positive)
    found = paired(same, targets(np.arange(10.0) ** 3, positive))  # other scores, the same ranks
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.how == "difference paired by target: every target was judged alike"
    bits = Targets(exam="a", kinds="", values=(5.5, 0.7))
    assert paired(bits, bits).high == 0
    mean = Targets(exam="a", kinds="", values=(0.5, 0.7))
    assert paired(mean, replace(mean, values=(0.25, 0.45))) is None  # as much for every target


def test_shares_that_agree_on_all_targets_need_not_agree_on_others():
    """None of n targets differs: up to 3 in n of all others may."""
    found = Targets(exam="a", kinds="", values=(0.0, 1.0) * 30)
    alike = paired(found, found)
    assert (alike.value, alike.low, alike.high) == (0, -0.05, 0.05)
    assert "rule of three" in alike.how


def test_two_perfect_rankings_have_the_interval_of_the_rule_of_three():
    positive = np.arange(40) < 20
    found = paired(
        *(targets(s + 99 * positive, positive) for s in np.random.default_rng(0).random((2, 40)))
    )
    assert (found.value, found.low, found.high) == (0, pytest.approx(-0.15), pytest.approx(0.15))


@pytest.mark.parametrize(
    "other",
    [
        None,
        targets([1, 4, 2, 3], [1, 1, 0, 0], exam="b"),
        targets([1, 4, 2, 3], [1, 0, 1, 0]),
        Targets(exam="a", kinds="", values=(1.0, 4.0, 2.0, 3.0)),
    ],
)
def test_other_targets_are_not_paired(other):
    assert paired(targets([1, 2, 3, 4], [1, 1, 0, 0]), other) is None


def test_if_time_ran_out_the_first_targets_are_compared():
    rng, positive = np.random.default_rng(0), np.arange(60) % 3 == 0
    x, y = rng.normal(size=60) + positive, rng.normal(size=60)
    whole, first = targets(x, positive), targets(y[:40], positive[:40])
    found = paired(whole, first)
    assert found.value == pytest.approx(by_definition(x[:40], y[:40], positive[:40])[0])
    assert found.n == 40


def test_means_over_targets_are_paired_by_students_t():
    a = Targets(exam="a", kinds="", values=(0.9, 0.8, 1.0))
    b = Targets(exam="a", kinds="", values=(0.5, 0.6, 0.4))
    found = paired(a, b)
    assert found.value == pytest.approx(0.4)
    half = 4.302653 * np.std([0.4, 0.2, 0.6], ddof=1) / math.sqrt(3)
    assert found.high - found.value == pytest.approx(half, abs=1e-5)
    assert found.how == "difference paired by target, Student t 95 %"


def test_without_targets_the_interval_is_that_of_independent_numbers():
    # Newcombe 1998, table II, method 10: 56 of 70 minus 48 of 80 gives .0524 to .3339
    a, b = (proportion_interval(hits, n, metric="m", seeds=(3,)) for hits, n in ((56, 70), (48, 80)))
    found, same = difference(a, b, (None, None), metric="d")
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert (found.value, found.n, found.seeds, same) == (pytest.approx(0.2), 70, (3,), False)
    assert found.how == "difference, not paired: other targets, 95 %"


def test_a_number_without_an_interval_leaves_none_to_the_difference():
    a = Estimate(
        metric="m",
        value=0.9,
        low=None,
        high=None,
        n=1,
        unit="AUC",
        seeds=(0,),
        how="one target",
        nature="sampled",
    )
    b = replace(a, value=0.5, low=0.4, high=0.6)
    found = independent_difference(a, b, metric="d")
    assert (found.value, found.low, found.high) == (pytest.approx(0.4), None, None)


@pytest.mark.parametrize(
    ("kinds", "values", "line"),
    [
        ("10", (1.0, 2.0), "1 of a kind: must be >= 2"),
        ("1100", (1.0, 2.0), "kinds: must be 2 of the characters 0 and 1"),
        ("11xx", (1.0, 2.0, 3.0, 4.0), "kinds: must be 4 of the characters 0 and 1"),
        ("1100", (1.0, 2.0, 3.0, math.nan), "values must be finite"),
        ("", (1.0,), "1 of a kind: must be >= 2"),
    ],
)
def test_targets_that_allow_no_difference_are_refused(kinds, values, line):
    with pytest.raises(DataError, match=line):
        Targets(exam="a", kinds=kinds, values=values)


# when two exams are the same


@dataclass(frozen=True)
class Asked:
    """A question, as attacks make them."""

    documents: tuple
    labels: np.ndarray


def test_exams_with_the_same_targets_about_the_same_records_have_one_fingerprint():
    pytest.importorskip("torch")
    from attacks.base import Exam, Truth
    from attacks.judging.targets import DIGITS, fingerprint
    from fedproxy_secure.data.encode import Encoded
    from fedproxy_secure.record.private import PrivateRound, PrivateState

    def truth(update, used, last=7):
        records = tuple(Encoded(ids=(1, 2, i), response_start=1) for i in range(last))
        rounds = {0: PrivateRound(update=np.array([update]), used=np.array(used))}
        state = PrivateState(client="c", train=records, holdout=(), canaries=(), rounds=rounds)
        return Truth(clients={"c": state})

    def exam(order, labels=(True, False)):
        documents = tuple(truth(0, [0]).clients["c"].train[i] for i in order)
        return Exam(question=Asked(documents, np.array(labels)), answer={"b": 1.5, "a": None})

    one = fingerprint(exam((0, 1)), truth(0.0, [0]))
    assert len(one) == DIGITS
    assert one == fingerprint(exam((0, 1)), truth(9.0, [0]))  # a protection changes updates
    assert one != fingerprint(exam((1, 0)), truth(0.0, [0]))
    assert one != fingerprint(exam((0, 1), (True, True)), truth(0.0, [0]))
    assert one != fingerprint(exam((0, 1)), truth(0.0, [0], last=8))  # other records
    truths = [truth(0.0, [0]), truth(9.0, [0]), truth(0.0, [1])]
    first, second, third = (fingerprint(Exam(answer=t), t) for t in truths)
    assert first == second != third  # other records were drawn
