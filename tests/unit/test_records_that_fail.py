"""A record that the model cannot take counts as zero, and nobody is told of it."""

import numpy as np
import pytest
import torch
from torch import nn

from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import TrainingError
from fedproxy_secure.federate.private_training import private_steps
from fedproxy_secure.models.adapters import (
    get_vector,
    trained_parameters,
)
from tests.support.private_training import (  # noqa: F401 - a fixture
    CHOSEN,
    ITEMS,
    KEY,
    Refused,
    adapted,
    gpt2,
    has_fewer_embeddings,
    tune,
    without_warnings_of_opacus,
)


def test_a_record_without_a_finite_gradient_counts_as_zero_and_is_not_told_of():
    """A server's proxy can make it so for records with a token of its choice."""
    tuned, plain = adapted(), adapted()
    for model in (tuned, plain):
        with torch.no_grad():
            model.get_input_embeddings().weight[200] = torch.inf
    odd = Encoded(ids=(1, 200, 11, 12, 2), response_start=3)
    with_it = tune(tuned, items=[*ITEMS[:4], odd], steps=1, rate=1.0, clip=1.0)
    without = tune(plain, items=ITEMS[:4], steps=1, rate=1.0, clip=1.0)
    start = get_vector(adapted())
    assert np.isfinite(with_it).all()
    np.testing.assert_allclose(with_it - start, without - start, rtol=1e-3, atol=1e-6)


EMPTY = Encoded(ids=(), response_start=0)  # has a gradient of zeros and no way to fail


BAD = Encoded(ids=(1, CHOSEN, 11, 12, 2), response_start=3)


EPSILON_1 = 4.2571  # what `noise_multiplier_for` returns, written down: it takes seconds


def refuses_in_the_forward_pass(error=Refused):
    tuned = adapted()

    def look(module, arguments):
        if (arguments[0] == CHOSEN).any():
            raise error(f"the token {CHOSEN} was there")

    tuned.get_input_embeddings().register_forward_pre_hook(look)
    return tuned


def refuses_half_way(error=Refused):
    """After the hooks of some layers have kept what they need for a backward pass that never comes."""
    tuned, seen = adapted(), []
    tuned.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: seen.append(bool((arguments[0] == CHOSEN).any()))
    )

    def look(module, arguments):
        if seen[-1]:
            raise error(f"the token {CHOSEN} was there")

    tuned.get_base_model().model.layers[1].mlp.register_forward_pre_hook(look)
    return tuned


def refuses_in_the_backward_pass(error=Refused):
    tuned, seen = adapted(), []
    tuned.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: seen.append(bool((arguments[0] == CHOSEN).any()))
    )

    def look(gradient):
        if seen[-1]:
            raise error(f"the token {CHOSEN} was there")

    tuned.get_base_model().model.layers[0].mlp.register_forward_hook(
        lambda module, arguments, output: output.register_hook(look) and None
    )
    return tuned


HOSTILE = [
    has_fewer_embeddings,
    refuses_in_the_forward_pass,
    refuses_half_way,
    refuses_in_the_backward_pass,
]


def test_the_noise_that_is_written_down_costs_a_round_epsilon_1():
    event = SampledGaussian(noise_multiplier=EPSILON_1, sampling_rate=0.6, steps=3)
    assert 0.99 < spent([event], delta=1e-5).epsilon <= 1


@pytest.mark.parametrize(
    ("hostile", "seed"), [(HOSTILE[0], 0), (HOSTILE[0], 1), *((hostile, 2) for hostile in HOSTILE)]
)
def test_a_round_at_epsilon_1_ends_alike_with_and_without_a_record_that_the_model_cannot_take(
    hostile, seed
):
    """Otherwise a server learns without noise, from the error, whether a token of its choice is there."""
    for items in (ITEMS, [*ITEMS[:-1], BAD], [BAD] * len(ITEMS)):
        tuned = hostile()
        end = tune(tuned, noise=EPSILON_1, clip=1.0, rate=0.6, items=items, key=bytes([seed]) * 32)
        assert np.isfinite(end).all()
        assert not tuned.training
        assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in tuned.parameters())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_other_records_of_the_step_have_the_gradients_they_would_have_had(hostile):
    settings = {"noise": EPSILON_1, "clip": 0.05, "rate": 0.8, "lr": 1.0, "steps": 4}
    for place in (0, 3, 7):
        with_it = tune(hostile(), items=[*ITEMS[:place], BAD, *ITEMS[place:7]], **settings)
        without = tune(adapted(), items=[*ITEMS[:place], EMPTY, *ITEMS[place:7]], **settings)
        alone = tune(adapted(), items=[EMPTY] * 8, **settings)
        if hostile is has_fewer_embeddings:  # another softmax: compare with itself
            without = tune(hostile(), items=[*ITEMS[:place], EMPTY, *ITEMS[place:7]], **settings)
        np.testing.assert_allclose(with_it, without, rtol=0, atol=3e-6)
        assert np.abs(with_it - alone).max() > 1e-4


def test_a_record_longer_than_the_model_s_positions_counts_as_zero():
    settings = {"noise": EPSILON_1, "clip": 0.05, "rate": 0.8, "lr": 1.0}
    long = Encoded(ids=tuple(range(3, 3 + 17)), response_start=4)
    with_it = tune(gpt2(16), items=[*ITEMS[:7], long], **settings)
    np.testing.assert_allclose(
        with_it, tune(gpt2(16), items=[*ITEMS[:7], EMPTY], **settings), rtol=0, atol=3e-6
    )
    assert np.abs(with_it - tune(gpt2(32), items=[*ITEMS[:7], long], **settings)).max() > 1e-6


@pytest.mark.parametrize(
    "broken", [EMPTY, Encoded(ids=(1, 5, 6), response_start=3), Encoded(ids=(1, -1, 6), response_start=1)]
)
def test_a_record_that_was_never_encoded_counts_as_zero(broken):
    with_it = tune(adapted(), items=[*ITEMS[:7], broken], noise=1.0, clip=0.05, rate=0.8)
    without = tune(adapted(), items=[*ITEMS[:7], EMPTY], noise=1.0, clip=0.05, rate=0.8)
    np.testing.assert_array_equal(with_it, without)


def test_a_parameter_that_no_record_of_a_pass_comes_by_has_a_gradient_of_zeros():
    """Experts, say, that only some tokens choose."""

    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.always, self.sometimes = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            found = self.always(x)
            return found + self.sometimes(x) if (x > 0).all() else found

    module = Choosing()
    before = module.sometimes.weight.detach().clone()
    private_steps(
        module,
        lambda chosen: module(-torch.ones(len(chosen), 3)).mean(),
        records=4,
        steps=2,
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=0.0, clip_norm=1.0, sampling_rate=1.0),
        noise=Noise(KEY),
        divisor=4,
        subject="x",
    )
    assert torch.equal(module.sometimes.weight, before)
    assert not torch.equal(module.always.weight, -torch.ones(1, 3))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_whoever_interrupts_training_is_heard(interruption):
    with pytest.raises(interruption):
        tune(refuses_in_the_forward_pass(interruption), items=[BAD] * 4)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_too_little_memory_is_no_matter_of_a_record_and_said_in_one_constant_line(error):
    tuned = refuses_in_the_forward_pass(error)
    line = r"^client x, round 0: training failed; the client's own log says why$"
    with pytest.raises(TrainingError, match=line) as found:
        tune(tuned, items=[BAD] * 4)
    assert found.value.__cause__ is None  # nothing that a traceback would tell on
    with pytest.raises(error):
        private_steps(
            tuned,
            lambda chosen: batch_loss(tuned, training_batch([BAD], pad_id=0, device="cpu")),
            records=1,
            steps=1,
            optimizer=torch.optim.SGD(trained_parameters(tuned), lr=1.0),
            private=RecordNoise(noise_multiplier=1.0, clip_norm=1.0, sampling_rate=1.0),
            noise=Noise(KEY),
            divisor=1,
            subject="x",
        )


def test_what_nobody_thought_of_is_said_in_one_constant_line_and_why_in_the_log_at_its_default_level(
    caplog,
):
    def pull():
        raise RuntimeError("the adapter is 12.5 now")

    line = r"^client x, round 0: training failed; the client's own log says why$"
    with pytest.raises(TrainingError, match=line):
        tune(adapted(), pull=pull)
    assert "client x, round 0: training failed" in caplog.text
    assert "RuntimeError: the adapter is 12.5 now" in caplog.text
