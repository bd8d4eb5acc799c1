"""The noisy sum of a private step: clipped to a grid, with the accounted noise and law of records."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedproxy_secure.dp.noise import KEY_BYTES, Noise, simulated_key
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import DataError
from fedproxy_secure.federate.private_training import NOISE_STEPS, private_steps
from fedproxy_secure.models.adapters import get_vector
from tests.support.private_training import (  # noqa: F401 - a fixture
    KEY,
    adapted,
    tune,
    without_warnings_of_opacus,
)


class Scaled(nn.Module):
    """A record's gradient is its number times a vector, in float64: sums can be looked at exactly."""

    def __init__(self, vector, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(vector), dtype=dtype))
        self.vector = vector.to(dtype)


def one_step(module, numbers, *, noise, clip=1.0, rate=1.0, key=KEY):
    """The noisy sum of one step, in steps of its grid, float64."""
    private_steps(
        module,
        lambda chosen: (module.weight * module.vector).sum() * numbers[int(chosen[0])],
        records=len(numbers),
        steps=1,
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=noise, clip_norm=clip, sampling_rate=rate),
        noise=Noise(key),
        divisor=1.0,
        subject="x",
    )
    return -module.weight.detach().numpy() / (noise * clip / NOISE_STEPS)


@pytest.mark.parametrize("noise", [0.01, 0.7, 3.3])
@pytest.mark.parametrize("length", [1e-6, 0.2, 1.0, 1e6])
def test_a_record_moves_the_sum_by_whole_steps_of_the_grid_and_never_by_more_than_the_clip(noise, length):
    """In integers, so that no rounding can hide anything; at length 1 the clip is met to the last bit."""
    torch.manual_seed(0)
    vector = torch.randn(5000, dtype=torch.float64)
    vector *= length / vector.norm()
    without = one_step(Scaled(vector), [1.0, -0.3, 0.0], noise=noise)
    with_it = one_step(Scaled(vector), [1.0, -0.3, 1.0], noise=noise)
    moved = with_it - without
    whole = np.rint(moved)
    np.testing.assert_allclose(moved, whole, rtol=0, atol=1e-6)
    squares = sum(int(v) ** 2 for v in whole)
    assert squares <= (NOISE_STEPS / Fraction(noise)) ** 2
    if length >= 1:
        assert squares > 0.9 * (NOISE_STEPS / noise) ** 2


@pytest.mark.parametrize("noise", [1e-9, 9e-4])
def test_noise_too_small_for_the_grid_is_refused(noise):
    with pytest.raises(DataError, match=r"must be 0 or >= 0\.001"):
        one_step(Scaled(torch.ones(2)), [1.0], noise=noise)


def sums(numbers, *, rate, runs=1200):
    """Noisy sums of one step over records whose clipped gradients are these numbers, or zero."""
    keys = (i.to_bytes(32, "big") for i in range(runs))
    return np.array(
        [one_step(Scaled(torch.ones(1)), numbers, noise=1.0, rate=rate, key=k)[0] for k in keys]
    ) / NOISE_STEPS  # fmt: skip


def test_few_records_have_the_law_that_is_accounted_and_one_without_gradient_is_one_that_is_not_there():
    """Three records at rate .5: a mixture of normal laws around 0 .. 3, whether or not a null is there."""

    def law(x, there):
        return sum(stats.binom.pmf(k, there, 0.5) * stats.norm.cdf(x, k) for k in range(there + 1))

    three = sums([5.0, 1.0, 1.0], rate=0.5)
    with_null = sums([5.0, 0.0, 1.0, 1.0], rate=0.5)
    for seen in (three, with_null):
        assert stats.kstest(seen, lambda x: law(x, 3)).pvalue > 1e-3
        assert stats.kstest(seen, lambda x: law(x, 4)).pvalue < 1e-3
    assert stats.ks_2samp(three, with_null).pvalue > 1e-3


def test_an_empty_sample_is_a_step_with_noise_alone():
    tuned = adapted()
    start = get_vector(tuned)
    moved = tune(tuned, noise=1.0, clip=1.0, rate=1e-9, steps=1, lr=1e-9) - start
    assert np.isfinite(moved).all()
    assert moved.any()


def test_simulated_noise_repeats_and_differs_by_seed_client_and_round():
    keys = {simulated_key(seed, client, r) for seed in (0, 1) for client in ("a", "b") for r in (0, 1)}
    assert len(keys) == 8
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert simulated_key(0, "a", 0) in keys
