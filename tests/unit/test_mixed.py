"""`model.dtype: mixed`: float32 numbers, and the large products of blocks in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

from fedproxy_secure.compress.healing import heal
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import HealConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded, batch_loss, records_loss, training_batch
from fedproxy_secure.errors import ModelError
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import get_vector, trained_parameters
from fedproxy_secure.models.llm import load_llm, pick_dtype, sharing_copy, with_blocks
from fedproxy_secure.models.mixed import all_products_mixed, is_mixed, mix_products
from fedproxy_secure.models.packing.llama_block import LinearMap, _add_products, _times_weight
from fedproxy_secure.models.packing.packed import can_pack
from fedproxy_secure.proxy_intake.model import load_proxy
from fedproxy_secure.runtime.randomness import stream
from tests.support.tiny import tiny_llama, tiny_tokenizer
from tests.unit.test_packed import ITEMS, tuned_model

LONGER = [Encoded(ids=tuple((7 * i + k) % 50 + 3 for i in range(40)), response_start=9) for k in range(6)]


def mixed(model: torch.nn.Module) -> torch.nn.Module:
    mix_products(model)
    return model


def random_map(*, half: bool) -> LinearMap:
    generator = torch.Generator().manual_seed(3)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((6, 8), (2, 8), (6, 2)))
    return LinearMap(
        weight=weight, bias=None, a=a, b=b, scale=2.0, half=weight.bfloat16() if half else None
    )


def test_only_the_product_with_the_frozen_weight_is_rounded():
    rows, m = torch.randn(5, 8, generator=torch.Generator().manual_seed(4)), random_map(half=True)
    out = torch.ones(5, 6)
    _add_products(rows, (m,), (out,), beta=1)
    rounded = (rows.bfloat16() @ m.weight.bfloat16().T).float()
    torch.testing.assert_close(out, 1 + rounded + 2.0 * (rows @ m.a.T) @ m.b.T, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_an_input_is_the_rounded_product():
    gradient, m = torch.randn(5, 6, generator=torch.Generator().manual_seed(5)), random_map(half=True)
    found = _times_weight(gradient, m)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (gradient.bfloat16() @ m.weight.bfloat16()).float(), rtol=0, atol=0)


def test_a_mixed_model_packs_and_differs_from_float32_by_rounding():
    exact, rounded = tuned_model(tiny_llama(3)), tuned_model(mixed(tiny_llama(3)))
    assert can_pack(rounded)
    losses, gradients = [], []
    for model in (exact, rounded):
        loss = records_loss(model, LONGER, pad_id=0)
        found = torch.autograd.grad(loss, trained_parameters(model))
        assert all(g.dtype == torch.float32 for g in found)
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < float(error) < 0.03


def test_a_padded_pass_of_a_mixed_model_is_float32_bit_for_bit():
    """Differential privacy clips the gradients of padded passes; their norms must not be rounded."""
    batch = training_batch(ITEMS, pad_id=0, device="cpu")
    found = []
    for model in (tuned_model(tiny_llama(3)), tuned_model(mixed(tiny_llama(3)))):
        found.append(torch.autograd.grad(batch_loss(model, batch), trained_parameters(model)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_copies_and_parts_of_a_mixed_model_are_mixed():
    model = mixed(tiny_llama(3))
    assert is_mixed(sharing_copy(model))
    assert is_mixed(copy.deepcopy(model))
    assert is_mixed(with_blocks(model, [0, 2], share=True))
    assert is_mixed(tuned_model(model))
    assert not is_mixed(tiny_llama(3))


def test_training_a_mixed_model_reaches_the_same_loss():
    local = LocalConfig(steps=12, batch_size=4, learning_rate=5e-3)
    losses, vectors = [], []
    for model in (tuned_model(tiny_llama(2)), tuned_model(mixed(tiny_llama(2)))):
        for _ in range(2):
            last = train(
                model, LONGER, steps=12, local=local, pad_id=0, rng=stream(0, "t"), subject="a client"
            )
        losses.append(last)
        vectors.append(get_vector(model))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert not (vectors[0] == vectors[1]).all()


def test_a_saved_proxy_is_mixed_only_where_it_is_loaded_so(tmp_path):
    save_model(mixed(tiny_llama(2)), tiny_tokenizer(), tmp_path)
    loaded = {
        dtype: load_proxy(tmp_path, max_tokens=32, device="cpu", dtype=dtype)
        for dtype in ("float32", "mixed")
    }
    assert not is_mixed(loaded["float32"].model)
    assert is_mixed(loaded["mixed"].model)
    assert loaded["float32"].loaded_sha256 == loaded["mixed"].loaded_sha256


def test_mixed_loads_float32_numbers():
    model, _ = load_llm("demo", device="cpu", dtype="mixed")
    assert is_mixed(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_mixed_is_refused_on_a_gpu():
    with pytest.raises(
        ModelError, match=r"model\.dtype=mixed: device is cuda; must be cpu, or use bfloat16"
    ):
        pick_dtype("mixed", torch.device("cuda"))


def test_torch_multiplies_as_before_once_a_mixed_part_is_over():
    before = torch.get_float32_matmul_precision()
    with all_products_mixed(mixed(tiny_llama(1))):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with all_products_mixed(tiny_llama(1)):
        assert torch.get_float32_matmul_precision() == before


def test_healing_of_a_mixed_model_is_kept_apart_from_that_in_float32(tmp_path):
    windows = torch.arange(12 * 16).reshape(12, 16) * 7 % 50 + 3
    settings = HealConfig(steps=2, batch_size=2)
    ended = {}
    for name in ("float32", "mixed"):
        llm = tiny_llama(3)
        if name == "mixed":
            mix_products(llm)
        proxy = with_blocks(llm, [0, 2])
        steps: list[int] = []
        heal(
            proxy,
            llm,
            windows,
            settings,
            seed=0,
            folder=tmp_path,
            on_step=lambda s, _, k=steps: k.append(s),
        )
        ended[name] = steps
    assert ended == {"float32": [1, 2], "mixed": [1, 2]}  # neither went on from the other's state
