"""Noise has the scale it is said to have: the right one is accepted, 2/3 and 3/2 of it are rejected."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import stats

from fedproxy_secure.dp import discrete
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import DataError

KEY = bytes(range(32))
ALPHA = 1e-4  # of each test; the key is fixed, so they never flicker


def variance_is(sample, wanted):
    """Two-sided: whether the sample's variance fits, by the normal limit with its own fourth moment."""
    n, square = len(sample), np.asarray(sample, dtype=np.float64) ** 2
    z = (square.mean() - wanted) / (square.std() / np.sqrt(n))
    return abs(z) < stats.norm.isf(ALPHA / 2)


def test_a_rounded_gaussian_is_a_normal_number_rounded_and_no_other():
    sample = discrete.draw("rounded_gaussian", 2.0**26, Noise(KEY), 200_000) / 2.0**13
    assert stats.kstest(sample, "norm").pvalue > ALPHA  # steps of 2^-13 are too fine for the test to see
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(sample * wrong, "norm").pvalue < ALPHA


@pytest.mark.parametrize("variance", [2.0**20, 2.0**26])
def test_a_rounded_gaussian_is_as_close_to_its_law_as_the_proof_says(variance):
    """Every 97th entry of the table against the error function, to 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    steps = discrete.tail_steps("rounded_gaussian", variance)[::-1]
    with mpmath.workdps(50):
        unit, scale = mpmath.mpf(2) ** 127, mpmath.sqrt(2 * mpmath.mpf(variance))
        for k in range(1, len(steps) + 1, 97):
            exact = mpmath.erfc((k - mpmath.mpf(1) / 2) / scale)  # P(|X| >= k) of a rounded normal number
            assert abs(steps[k - 1] / unit - exact) < mpmath.mpf(2) ** -120
        beyond = mpmath.erfc((len(steps) + mpmath.mpf(1) / 2) / scale)
        assert beyond < mpmath.mpf(2) ** -120
    # 2^-120 at each of less than 2^18 entries is less than the distance that is accounted for
    assert 2 * len(steps) * 2.0**-120 < discrete.DISTANCE


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("variance", [0.5, 9.0, 4096.0**2])
def test_integer_noise_has_its_variance_and_no_other(mechanism, variance):
    sample = discrete.draw(mechanism, variance, Noise(KEY), 200_000)
    if mechanism == "skellam" or variance > 5:  # a discrete Gaussian's variance is below sigma^2 else
        assert variance_is(sample, variance)
    assert not variance_is(sample, variance * 4 / 9)
    assert not variance_is(sample, variance * 9 / 4)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_small_integer_noise_follows_its_law_number_by_number(mechanism):
    sample = discrete.draw(mechanism, 4.0, Noise(KEY), 300_000)
    k = np.arange(-8, 9)
    if mechanism == "skellam":
        law = stats.skellam.pmf(k, 2.0, 2.0)
    else:
        every = np.exp(-(np.arange(-50, 51) ** 2) / 8)
        law = np.exp(-(k**2) / 8) / every.sum()
    seen = np.array([(sample == i).sum() for i in k])
    rest, rest_law = len(sample) - seen.sum(), 1 - law.sum()
    found = stats.chisquare([*seen, rest], np.array([*law, rest_law]) * len(sample))
    assert found.pvalue > ALPHA


def exact_law(mechanism, variance, k):
    """P(X = k) up to a common factor, from its definition, to 80 digits."""
    v = Decimal(variance)
    if mechanism == "discrete_gaussian":
        return (-(Decimal(k) ** 2) / (2 * v)).exp()
    term = (v / 2) ** k / Decimal(math.factorial(k))  # I_k(v) = sum_j (v / 2)^(2j + k) / (j! (j + k)!)
    total, j = Decimal(0), 0
    while term > total * Decimal("1e-90") or j < variance:
        total += term
        j += 1
        term *= (v / 2) ** 2 / (j * (j + k))
    return total


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("variance", [0.3, 9.0, 400.0])
def test_integer_noise_is_as_close_to_its_law_as_the_accountant_takes_it_to_be(mechanism, variance):
    steps = discrete.tail_steps(mechanism, variance)[::-1]  # of P(|X| >= k), k = 1 .. last
    last = len(steps)
    with localcontext() as context:
        context.prec = 80
        exact = [exact_law(mechanism, variance, k) for k in range(2 * last)]
        total = exact[0] + 2 * sum(exact[1:])
        ends = [2**127, *steps, 0]
        drawn = [Decimal(a - b) / 2**127 for a, b in itertools.pairwise(ends)]  # P(|X| = k), k = 0 .. last
        wanted = [exact[0] / total, *(2 * e / total for e in exact[1:])]
        pairs = itertools.zip_longest(drawn, wanted, fillvalue=Decimal(0))
        distance = sum(abs(d - w) for d, w in pairs) / 2
    assert distance < Decimal(2) ** -110
    assert Decimal(2) ** -110 * 2**10 <= Decimal(discrete.DISTANCE)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_a_number_is_drawn_by_all_128_bits_of_its_words(mechanism):
    """Words next to an entry of the table: the lower half decides where the upper halves are equal."""

    class Chosen(Noise):
        def __init__(self, words):
            self._left = list(words)

        def words(self, count):
            return np.array(self._left.pop(0), dtype=np.uint64)

    entry = discrete.tail_steps(mechanism, 9.0)[::-1][2]  # P(|X| >= 3)
    for uniform, magnitude in ((entry - 1, 3), (entry, 2), (entry + 1, 2)):
        for sign in (0, 1):
            high, low = uniform >> 63, (uniform & (2**63 - 1)) << 1 | sign
            found = discrete.draw(mechanism, 9.0, Chosen([[high], [low]]), 1)
            assert found.tolist() == [magnitude if sign else -magnitude]


def test_the_sum_of_clients_noise_has_the_variance_that_is_accounted():
    parts = [discrete.draw("skellam", 1e4 / 3, Noise(bytes([i]) * 32), 100_000) for i in range(3)]
    assert variance_is(sum(parts), 1e4)


def test_every_record_is_sampled_with_its_rate_and_alone():
    noise = Noise(KEY)
    chosen = np.array([np.isin(np.arange(50), noise.poisson_sample(50, 0.2)) for _ in range(4000)])
    assert stats.binomtest(int(chosen.sum()), chosen.size, 0.2).pvalue > ALPHA
    sizes = chosen.sum(axis=1)
    assert variance_is(sizes - 10, 50 * 0.2 * 0.8)  # of a Poisson sample, not of a fixed one
    assert not variance_is(sizes - 10, 50 * 0.2 * 0.8 / 4)


def test_a_rate_of_one_takes_everything_and_the_key_decides_all():
    assert np.array_equal(Noise(KEY).poisson_sample(9, 1.0), np.arange(9))
    assert np.array_equal(Noise(KEY).words(7), Noise(KEY).words(7))
    assert not np.array_equal(Noise(KEY).words(7), Noise(bytes(32)).words(7))
    assert not discrete.draw("skellam", 0.0, Noise(KEY), 5).any()


def test_a_variance_that_the_table_cannot_hold_is_refused():
    with pytest.raises(DataError, match=r"noise variance 1e\+12: must be in"):
        discrete.draw("skellam", 1e12, Noise(KEY), 1)
    with pytest.raises(DataError, match=r"noise variance 100: must be >= 1.04858e\+06 for rounded"):
        discrete.draw("rounded_gaussian", 100.0, Noise(KEY), 1)
