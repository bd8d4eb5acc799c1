"""DP-SGD on adapters: per-record gradients, clipping and models are what they are said to be."""

import numpy as np
import pytest
import torch
from torch import nn

from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, training_batch
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.errors import ConfigError, ModelError, TrainingError
from fedproxy_secure.federate.model_checks import check_fits, check_private
from fedproxy_secure.federate.private_training import private_steps
from fedproxy_secure.models.adapters import (
    attach,
    get_vector,
    save_adapter,
    set_vector,
    trained_parameters,
)
from tests.support.private_training import (  # noqa: F401 - a fixture
    CHOSEN,
    ITEMS,
    KEY,
    KINDS,
    Refused,
    adapted,
    gpt2,
    has_fewer_embeddings,
    record_gradient,
    tune,
    without_warnings_of_opacus,
)
from tests.support.tiny import VOCABULARY, tiny_llama


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_and_clip_it_is_plain_sgd(kind):
    private = tune(adapted(kind), batch=len(ITEMS))
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
    moved = start - tune(tuned, clip=clip, steps=1, lr=1.0, batch=len(ITEMS))
    np.testing.assert_allclose(moved, wanted, rtol=0, atol=2e-6)


def test_a_record_moves_a_step_by_no_more_than_the_clip():
    tuned, fewer = adapted(), adapted()
    with_all = tune(tuned, clip=0.01, steps=1, lr=1.0, batch=1)
    without = tune(fewer, clip=0.01, steps=1, lr=1.0, batch=1, items=ITEMS[1:])
    assert 0 < np.linalg.norm(with_all - without) <= 0.01 * 1.001


def stretches_positions_with_the_longest_record():
    """Every token of a pass has other positions as soon as one record has more than 20."""
    from transformers import LlamaForCausalLM

    config = tiny_llama(2).config
    config.rope_parameters = {
        "rope_theta": 10_000.0, "rope_type": "longrope", "short_factor": [1.0] * 4,
        "long_factor": [0.02] * 4, "original_max_position_embeddings": 20, "factor": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    tuned = attach(LlamaForCausalLM(config).eval(), AdapterConfig(rank=2, alpha=4), seed=0)
    rng = np.random.default_rng(0)
    set_vector(tuned, rng.normal(0, 0.05, len(get_vector(tuned))).astype(np.float32))
    return tuned


def enlarges_rounding():
    """Sums round differently in passes of other shapes; here the last bit decides on the gradient."""
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_hook(
        lambda module, arguments, output: output * (1 + torch.sin(1e9 * output.detach()))
    )
    return tuned


def mixes_rows():
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_hook(
        lambda module, arguments, output: output + output.detach().sum(dim=0, keepdim=True)
    )
    return tuned


LONG = Encoded(ids=(1, *range(10, 40), 2), response_start=4)


@pytest.mark.parametrize("extra", [LONG, ITEMS[0]], ids=["long", "short"])
@pytest.mark.parametrize(
    "coupled", [stretches_positions_with_the_longest_record, enlarges_rounding, mixes_rows]
)
def test_one_record_moves_the_sum_by_one_clip_even_if_the_model_couples_the_rows_of_a_pass(coupled, extra):
    """What the accounting assumes: a server chooses the model, and can make a long record."""
    clip = 0.01
    without = tune(coupled(), clip=clip, steps=1, lr=1.0, batch=1)
    with_it = tune(coupled(), clip=clip, steps=1, lr=1.0, batch=1, items=[*ITEMS, extra])
    assert 0 < np.linalg.norm(with_it - without) <= clip * 1.001


def test_a_model_that_remembers_a_record_is_refused():
    """Found on made-up records: the short one has another gradient after the long one."""

    def remembers(change):
        tuned, seen = adapted(), []

        def look(module, arguments, output):
            seen.append(output.shape[1])
            return change(module, output, max(seen))

        tuned.get_base_model().model.layers[0].register_forward_hook(look)
        return tuned

    def in_a_buffer(module, output, longest):
        module.register_buffer("longest", torch.tensor(longest))

    for change in (lambda module, output, longest: output * longest, in_a_buffer):
        with pytest.raises(ModelError, match=r"^proxy: one record changes the outputs for the next; must"):
            check_fits(remembers(change), tokens=VOCABULARY, longest=32, pad_id=0)
    check_fits(remembers(lambda module, output, _: output), tokens=VOCABULARY, longest=32, pad_id=0)


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
        divisor=5,
        subject="x",
    )
    seen = ((before - layer.weight.detach()).numpy() * 5).std() / 0.4 / 1.5
    fits = abs(seen - 1) < 4 / np.sqrt(2 * 20_000)
    assert fits == (scale == 1.0)


def test_a_step_holds_the_gradient_of_one_record_at_a_time():
    """Per-record gradients of an LLM's adapter are megabytes each; a step may draw hundreds of records."""
    layer, held = nn.Linear(3, 2), []

    def loss(chosen):
        held.append([getattr(p, "grad_sample", None) for p in layer.parameters()])
        return layer(torch.ones(len(chosen), 3)).square().sum()

    private_steps(
        layer,
        loss,
        records=40,
        steps=2,
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.1),
        private=RecordNoise(noise_multiplier=1.0, clip_norm=0.1, sampling_rate=1.0),
        noise=Noise(KEY),
        divisor=40,
        subject="x",
    )
    assert len(held) == 80
    assert all(kept is None for before in held for kept in before)


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
    tune(tuned, noise=0.5, clip=0.1, rate=0.5, steps=2)
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


def test_a_model_that_does_not_fit_its_tokenizer_is_refused_without_looking_at_a_record():
    check_fits(adapted(), tokens=VOCABULARY, longest=128, pad_id=0)
    check_fits(gpt2(16), tokens=VOCABULARY, longest=16, pad_id=0)
    for tuned, change, line in (
        (has_fewer_embeddings(), {}, rf"proxy: has embeddings of {CHOSEN} tokens; must have {VOCABULARY}"),
        (adapted(), {"pad_id": VOCABULARY}, r"proxy: pads with token 259; must be in \[0, 259\)"),
        (adapted(), {"longest": 129}, r"proxy: has 128 positions; must have 129 \(data.max_tokens\)"),
        (gpt2(16), {"longest": 17}, r"proxy: has 16 positions; must have 17"),
    ):
        with pytest.raises(ModelError, match=line):
            check_fits(tuned, **{"tokens": VOCABULARY, "longest": 8, "pad_id": 0} | change)


def test_a_model_without_gradients_of_made_up_records_is_refused_instead_of_tuned_by_noise_alone():
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_pre_hook(
        lambda module, arguments: (_ for _ in ()).throw(Refused("never works"))
    )
    with pytest.raises(ModelError, match="proxy: gives no gradients of made-up records: never works"):
        check_fits(tuned, tokens=VOCABULARY, longest=8, pad_id=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_gradients_of_made_up_records_are_not_finite_is_refused(value):
    """NaN is above no bound: a comparison alone would let a model pass that remembers records, too."""
    tuned = adapted()
    tuned.get_base_model().model.layers[0].register_forward_hook(
        lambda module, arguments, output: output * value
    )
    with pytest.raises(ModelError, match="proxy: gives gradients of made-up records that are not finite"):
        check_fits(tuned, tokens=VOCABULARY, longest=8, pad_id=0)


def test_the_made_up_records_leave_nothing_behind():
    tuned, state = adapted(), torch.random.get_rng_state()
    before = get_vector(tuned)
    check_fits(tuned, tokens=VOCABULARY, longest=8, pad_id=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(get_vector(tuned), before)
    assert not tuned.training
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in tuned.parameters())


def test_a_layer_that_opacus_cannot_handle_is_refused_before_training():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(1))

    with pytest.raises(ConfigError, match=r"privacy\.unit=record: .*buffers"):
        check_private(nn.Sequential(Counting()))
    check_private(adapted())
