"""DP-SGD on adapters: per-record gradients, clipping and noise are what they are said to be."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.errors import ConfigError, TrainingError
from fedproxy_secure.federate.adapters import (
    attach,
    get_vector,
    save_adapter,
    set_vector,
    trained_parameters,
)
from fedproxy_secure.federate.private_training import (
    RecordNoise,
    check_private,
    private_steps,
    train_privately,
)
from tests.support.tiny import tiny_llama

KEY = bytes(range(32))
KINDS = ("lora", "ffa", "core")
ITEMS = [Encoded(ids=(1, *range(10 + i, 16 + i + i % 3), 2), response_start=4 + i % 2) for i in range(12)]


@pytest.fixture(autouse=True)
def _opacus_warns_of_what_we_do_not_use():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="opacus|torch")
        yield


def adapted(kind="lora", seed=0):
    tuned = attach(tiny_llama(2), AdapterConfig(kind=kind, rank=2, alpha=4), seed=seed)
    rng = np.random.default_rng(seed)
    set_vector(tuned, rng.normal(0, 0.05, len(get_vector(tuned))).astype(np.float32))
    return tuned


def tune(tuned, *, noise=0.0, clip=1e9, rate=1.0, steps=3, items=ITEMS, key=KEY, pull=None, lr=0.1):
    train_privately(
        tuned,
        items,
        steps=steps,
        local=LocalConfig(optimizer="sgd", learning_rate=lr, batch_size=4),
        private=RecordNoise(noise_multiplier=noise, clip_norm=clip, sampling_rate=rate),
        noise=Noise(key),
        pad_id=0,
        who="client x, round 0",
        pull=pull,
    )
    return get_vector(tuned)


def record_gradient(tuned, item):
    loss = batch_loss(tuned, training_batch([item], pad_id=0, device="cpu"))
    parts = torch.autograd.grad(loss, trained_parameters(tuned))
    return torch.cat([p.reshape(-1) for p in parts]).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_and_clip_it_is_plain_sgd(kind):
    private = tune(adapted(kind))
    tuned = adapted(kind)
    tuned.train()
    optimizer = torch.optim.SGD(trained_parameters(tuned), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        batch_loss(tuned, training_batch(ITEMS, pad_id=0, device="cpu")).backward()
        optimizer.step()
    assert np.abs(private - get_vector(adapted(kind))).max() > 1e-4
    np.testing.assert_allclose(private, get_vector(tuned), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_clipped_sum_of_the_gradients_of_single_records(kind):
    tuned = adapted(kind)
    start = get_vector(tuned)
    gradients = np.stack([record_gradient(tuned, item) for item in ITEMS])
    norms = np.linalg.norm(gradients, axis=1)
    clip = float(np.median(norms))
    wanted = (gradients * np.minimum(1, clip / (norms + 1e-6))[:, None]).sum(axis=0) / len(ITEMS)
    moved = start - tune(tuned, clip=clip, steps=1, lr=1.0)
    np.testing.assert_allclose(moved, wanted, rtol=0, atol=2e-6)


def test_a_record_moves_a_step_by_no_more_than_the_clip():
    tuned, fewer = adapted(), adapted()
    with_all = tune(tuned, clip=0.01, steps=1, lr=1.0)
    without = tune(fewer, clip=0.01, steps=1, lr=len(ITEMS[1:]) / len(ITEMS), items=ITEMS[1:])
    assert 0 < np.linalg.norm(with_all - without) * len(ITEMS) <= 0.01 * 1.001


@pytest.mark.parametrize("scale", [1.0, 2 / 3, 3 / 2])
def test_noise_has_the_accounted_scale_and_no_other(scale):
    """One step whose records have no gradient: what moves is the noise alone."""
    layer = nn.Linear(200, 100, bias=False)
    before = layer.weight.detach().clone()
    private_steps(
        layer,
        lambda chosen: (layer(torch.zeros(len(chosen), 200)) * 0).sum(dim=1).mean(),
        records=10,
        steps=1,
        optimizer=torch.optim.SGD(layer.parameters(), lr=1.0),
        private=RecordNoise(noise_multiplier=1.5 * scale, clip_norm=0.4, sampling_rate=0.5),
        noise=Noise(KEY),
        who="x",
    )
    seen = ((before - layer.weight.detach()).numpy() * 5).std() / 0.4 / 1.5
    fits = abs(seen - 1) < 4 / np.sqrt(2 * 20_000)
    assert fits == (scale == 1.0)


def test_an_empty_sample_is_a_step_with_noise_alone():
    tuned = adapted()
    start = get_vector(tuned)
    moved = tune(tuned, noise=1.0, clip=1.0, rate=1e-9, steps=1, lr=1e-9) - start
    assert np.isfinite(moved).all()
    assert moved.any()


def test_large_samples_in_several_passes_give_the_same_step():
    whole = tune(adapted(), clip=0.05, rate=1.0, steps=2)
    import fedproxy_secure.federate.private_training as module

    before = module.LARGEST_PASS
    try:
        module.LARGEST_PASS = 0.3
        parted = tune(adapted(), clip=0.05, rate=1.0, steps=2)
    finally:
        module.LARGEST_PASS = before
    np.testing.assert_allclose(whole, parted, rtol=0, atol=2e-6)


def test_the_key_decides_sample_and_noise():
    first = tune(adapted(), noise=1.0, clip=0.1, rate=0.5)
    assert np.array_equal(first, tune(adapted(), noise=1.0, clip=0.1, rate=0.5))
    assert not np.array_equal(first, tune(adapted(), noise=1.0, clip=0.1, rate=0.5, key=bytes(32)))


def test_the_pull_of_a_penalty_is_added_after_the_noise():
    tuned = adapted()
    start = get_vector(tuned)
    ones = [torch.ones_like(p) for p in trained_parameters(tuned)]
    plain = tune(adapted(), steps=1, lr=0.5) - start
    pulled = tune(tuned, steps=1, lr=0.5, pull=lambda: ones) - start
    np.testing.assert_allclose(plain - pulled, 0.5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_privately_tuned_adapter_gives_the_same_logits(kind, tmp_path):
    from peft import PeftModel

    tuned = adapted(kind)
    tune(tuned, noise=0.5, clip=0.1, rate=0.5)
    ids = torch.arange(3, 40).view(1, -1)
    save_adapter(tuned, tmp_path)
    reloaded = PeftModel.from_pretrained(tiny_llama(2), tmp_path)
    with torch.no_grad():
        wanted, found = tuned(input_ids=ids).logits, reloaded(input_ids=ids).logits
    assert not torch.equal(wanted, tiny_llama(2)(input_ids=ids).logits)
    if kind == "core":  # B R is multiplied out on the way
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, wanted)


def test_training_leaves_nothing_of_opacus_behind():
    tuned = adapted()
    tune(tuned, noise=1.0, clip=1.0)
    assert not any(p.grad is not None for p in tuned.parameters())
    assert not tuned.training
    tune(tuned)  # hooks can be added again


def test_a_loss_that_is_no_number_stops_and_names_client_and_step():
    tuned = adapted()
    set_vector(tuned, np.full_like(get_vector(tuned), np.nan))
    with pytest.raises(
        TrainingError, match="client x, round 0: the adapter is not finite after local step"
    ):
        tune(tuned)


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
    np.testing.assert_allclose((with_it - start) * 5, (without - start) * 4, rtol=1e-3, atol=1e-6)


def test_a_layer_that_opacus_cannot_handle_is_refused_before_training():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(1))

    with pytest.raises(ConfigError, match=r"privacy\.unit=record: .*buffers"):
        check_private(nn.Sequential(Counting()))
    check_private(adapted())
