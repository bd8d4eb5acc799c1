"""Adapters start as nothing, travel as one vector, reload exactly, and plug back bit for bit."""

import copy

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from fedproxy_secure.compress.drop_blocks import build_proxy
from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.errors import ModelError
from fedproxy_secure.fuse.plug_back import add_deltas, plug_back
from fedproxy_secure.models.adapters import (
    adapter_size,
    attach,
    block_deltas,
    get_vector,
    save_adapter,
    set_vector,
    size_without_attaching,
)
from fedproxy_secure.models.llm import blocks_of
from tests.support.tiny import same_weights, tiny_llama

IDS = torch.arange(3, 23).view(2, 10)
KINDS = ["lora", "ffa", "core"]


def adapter(kind, rank=2, blocks=None):
    return AdapterConfig(kind=kind, rank=rank, alpha=4, blocks=blocks)


def tuned_proxy(kind, llm, ratio=0.5, seed=0):
    """A proxy of `llm` with a random adapter vector, its plan and an untouched copy."""
    proxy = build_proxy(llm, remove_ratio=ratio, importance="uniform", windows=IDS)
    plain = copy.deepcopy(proxy.model)
    tuned = attach(proxy.model, adapter(kind), seed=seed)
    rng = np.random.default_rng(1)
    set_vector(tuned, rng.normal(0, 0.1, adapter_size(tuned)).astype(np.float32))
    return tuned, proxy.plan, plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing(kind):
    plain = tiny_llama()
    tuned = attach(tiny_llama(), adapter(kind), seed=0)
    torch.testing.assert_close(tuned(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vector_goes_out_and_in_unchanged(kind):
    tuned = attach(tiny_llama(), adapter(kind), seed=0)
    vector = np.arange(adapter_size(tuned), dtype=np.float32)
    set_vector(tuned, vector)
    assert get_vector(tuned).tobytes() == vector.tobytes()


def test_sizes_of_the_three_kinds():
    sizes = {k: adapter_size(attach(tiny_llama(1), adapter(k, rank=4), seed=0)) for k in KINDS}
    maps = [(16, 16)] * 4 + [(16, 32)] * 2 + [(32, 16)]  # (in, out) of one block
    assert sizes["lora"] == sum(4 * (i + o) for i, o in maps)
    assert sizes["ffa"] == sum(4 * o for _, o in maps)
    assert sizes["core"] == 4 * 4 * len(maps)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_an_adapter_is_known_before_it_is_put_on(kind, family):
    model = tiny_llama(3) if family == "llama" else gpt2()
    for chosen, blocks in ((adapter(kind, rank=4), None), (adapter(kind, rank=4, blocks=(1,)), (0, 2))):
        known = size_without_attaching(model, chosen, blocks=blocks)
        assert known == adapter_size(attach(copy.deepcopy(model), chosen, seed=0, blocks=blocks))


@pytest.mark.parametrize("kind", KINDS)
def test_server_and_client_agree_on_frozen_parts_from_seed_and_weights(kind):
    torch.manual_seed(99)  # whatever else was drawn before
    one = attach(tiny_llama(), adapter(kind), seed=5)
    torch.manual_seed(1)
    two = attach(tiny_llama(), adapter(kind), seed=5)
    assert same_weights(one, two)


def test_a_vector_of_the_wrong_length_is_refused():
    with pytest.raises(ModelError, match=r"\(3,\)"):
        set_vector(attach(tiny_llama(), adapter("lora"), seed=0), np.zeros(3, dtype=np.float32))


def test_a_core_larger_than_the_maps_is_refused():
    with pytest.raises(ModelError, match="rank=17"):
        attach(tiny_llama(), adapter("core", rank=17), seed=0)


def test_a_core_of_singular_values_is_the_best_approximation_of_the_weight():
    model = tiny_llama()
    weights = {name: w.detach().clone() for name, w in model.named_parameters()}
    tuned = attach(model, adapter("core"), seed=0)
    parts = []
    for layer in (m for m in tuned.modules() if isinstance(m, LoraLayer)):
        values = torch.linalg.svdvals(layer.get_base_layer().weight)[:2]
        parts.append(torch.diag(values / layer.scaling["default"]).flatten())
    set_vector(tuned, torch.cat(parts).detach().numpy())
    for (block, name), delta in block_deltas(tuned).items():
        left, values, right = torch.linalg.svd(weights[f"model.layers.{block}.{name}"])
        best = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
        torch.testing.assert_close(delta, best, atol=5e-3, rtol=0)


def test_rounding_of_the_weights_does_not_turn_the_directions_of_a_core():
    plain, rounded = tiny_llama(), tiny_llama()
    with torch.no_grad():
        for weight in rounded.parameters():
            weight *= 1 + 1e-7
    one, two = (attach(m, adapter("core"), seed=0) for m in (plain, rounded))
    for a, b in zip(one.modules(), two.modules(), strict=True):
        if isinstance(a, LoraLayer):
            torch.testing.assert_close(a.lora_A["default"].weight, b.lora_A["default"].weight)
            torch.testing.assert_close(a.lora_B["default"].outer, b.lora_B["default"].outer)


def test_weights_without_singular_values_are_refused():
    model = tiny_llama()
    with torch.no_grad():
        next(model.model.layers.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="singular values"):
        attach(model, adapter("core"), seed=0)


def test_only_the_named_blocks_are_adapted():
    tuned = attach(tiny_llama(), adapter("lora"), seed=0, blocks=(0, 3))
    assert {block for block, _ in block_deltas(tuned)} == {0, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_deltas_reproduce_the_tuned_proxy(kind):
    tuned, _, plain = tuned_proxy(kind, tiny_llama())
    merged = add_deltas(plain, block_deltas(tuned))
    torch.testing.assert_close(merged(IDS).logits, tuned(IDS).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def overwrite(llm, plan, proxy):
    """Return a model like `llm` with the merged `proxy`'s blocks at their places (the paper's stage 3)."""
    fused = copy.deepcopy(llm)
    merged = {
        (i, name): p for i, block in enumerate(blocks_of(proxy)) for name, p in block.named_parameters()
    }
    for (index, name), value in plan.lift(merged).items():
        blocks_of(fused)[index].get_parameter(name).copy_(value)
    return fused


@pytest.mark.parametrize("kind", KINDS)
def test_overwriting_equals_adding_the_lifted_difference_bit_for_bit(kind):
    llm = tiny_llama()
    tuned, plan, plain = tuned_proxy(kind, llm)
    deltas = block_deltas(tuned)
    assert same_weights(plug_back(llm, plan, deltas), overwrite(llm, plan, add_deltas(plain, deltas)))


def test_overwriting_is_wrong_and_adding_right_once_a_proxy_block_is_no_exact_copy():
    llm = tiny_llama()
    tuned, plan, plain = tuned_proxy("lora", llm)
    with torch.no_grad():
        plain.model.layers[0].mlp.up_proj.weight.add_(0.01)  # a healed proxy
    deltas = block_deltas(tuned)
    assert not same_weights(plug_back(llm, plan, deltas), overwrite(llm, plan, add_deltas(plain, deltas)))


def test_plug_back_leaves_dropped_blocks_and_the_llm_itself_alone():
    llm = tiny_llama()
    tuned, plan, _ = tuned_proxy("lora", llm)
    fused = plug_back(llm, plan, block_deltas(tuned))
    assert same_weights(llm, tiny_llama())
    for block in plan.dropped:
        assert same_weights(fused.model.layers[block], llm.model.layers[block])
    for block in plan.kept:
        assert not same_weights(fused.model.layers[block], llm.model.layers[block])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_read_by_peft_alone_with_the_same_logits(kind, tmp_path):
    from peft import PeftModel

    tuned, _, plain = tuned_proxy(kind, tiny_llama())
    save_adapter(tuned, tmp_path)
    again = PeftModel.from_pretrained(plain, tmp_path)
    torch.testing.assert_close(again(IDS).logits, tuned(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_difference_of_another_shape_is_refused_in_one_line():
    deltas = {(0, "mlp.up_proj.weight"): torch.zeros(1)}
    with pytest.raises(ModelError, match=r"block 0, mlp.up_proj.weight: a difference of shape \(1,\)"):
        add_deltas(tiny_llama(), deltas)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=4, n_head=2))


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    )
    return OPTForCausalLM(config)


def llama_like(config_name, model_name):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_name)(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    return getattr(transformers, model_name)(config)


FAMILIES = {
    "gpt2": gpt2,
    "opt": opt,
    "mistral": lambda: llama_like("MistralConfig", "MistralForCausalLM"),
    "qwen2": lambda: llama_like("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": lambda: llama_like("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma2": lambda: llama_like("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": lambda: llama_like("Gemma3TextConfig", "Gemma3ForCausalLM"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_goes_through_all_three_stages(family):
    llm = FAMILIES[family]().eval()
    tuned, plan, plain = tuned_proxy("lora", llm)
    deltas = block_deltas(tuned)
    merged = add_deltas(plain, deltas)
    torch.testing.assert_close(merged(IDS).logits, tuned(IDS).logits, atol=1e-3, rtol=1e-3)
    assert same_weights(plug_back(llm, plan, deltas), overwrite(llm, plan, merged))
