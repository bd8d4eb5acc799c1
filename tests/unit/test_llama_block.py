"""Blocks in one step: outputs and gradients of the blocks' own forwards, or those forwards themselves."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.models.adapters import attach, set_vector, trained_parameters
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.packing.attention import LONGEST_DENSE
from fedproxy_secure.models.packing.fast_blocks import fast_blocks
from fedproxy_secure.models.packing.packed import packed_logits
from fedproxy_secure.models.packing.packs import Row, pack_rows

BLOCKS = 3
SIZES = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 6,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "head_dim": 8,
}
ROWS = [Row(trunk=range(3, 12)), Row(trunk=[7]), Row(trunk=range(40, 66)), Row(trunk=range(90, 101))]
BRANCHES = [Row(trunk=[5, 6, 7], branches=([8, 9], [10], [11, 12, 13])), ROWS[0]]


def llama(keys: int = 2, **settings):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=keys, **settings))
    return with_random_norms(model)


def qwen2():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=3))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.3)
    return with_random_norms(model)


def with_random_norms(model):
    for name, p in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, mean=1.0, std=0.2)
    return model


def tuned_model(base=None, **settings):
    tuned = attach(base or llama(), AdapterConfig(**{"rank": 3, "alpha": 6, **settings}), seed=0)
    size = sum(p.numel() for p in trained_parameters(tuned))
    set_vector(tuned, (torch.randn(size, generator=torch.Generator().manual_seed(1)) * 0.1).numpy())
    return tuned.train()


def sequences(rows):
    """Each sequence of the rows, and where its own tokens begin."""
    for row in rows:
        trunk = list(row.trunk)
        yield trunk, 0
        for branch in row.branches:
            yield [*trunk, *branch], len(trunk)


def logits_alone(model, rows):
    """The logits after each token, from a pass of the model for each sequence alone, without packing."""
    return torch.cat(
        [
            model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start:]
            for ids, start in sequences(rows)
        ]
    )


def logits_fast(model, rows, keep=None):
    pack = pack_rows(rows)
    everything = torch.arange(pack.ids.shape[1])
    with fast_blocks(model, keep):
        return packed_logits(model, pack, everything if keep is None else keep)


def steps(tensor):
    """How many blocks of a tensor's graph ran in one step."""
    seen, found, todo = set(), 0, [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += type(node).__name__ == "_BlockBackward"
        todo += [parent for parent, _ in node.next_functions]
    return found


def loss_of(logits):
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    return (logits * weights).mean()


def assert_equal_gradients(ours, theirs, parameters):
    found, expected = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs))
    largest = max(float(g.abs().max()) for g in expected if g is not None)
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.shape == other.shape
            assert mine.is_contiguous()
            assert float((mine - other).abs().max()) <= 1e-5 * largest


@pytest.mark.parametrize("rows", [ROWS, BRANCHES], ids=["rows", "branches"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules": "attention"},
        {"modules": "mlp"},
        {"blocks": (1,)},
        {"blocks": (0, 2)},
        {"kind": "ffa"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "base",
    [
        pytest.param(llama, id="shared keys"),
        pytest.param(lambda: llama(keys=6), id="own keys"),
        pytest.param(lambda: llama(tie_word_embeddings=True), id="tied"),
        pytest.param(lambda: llama(attention_bias=True, mlp_bias=True), id="biases"),
        pytest.param(qwen2, id="qwen2"),
    ],
)
def test_logits_and_gradients_are_the_blocks_own(base, settings, rows):
    model = tuned_model(base(), **settings)
    ours, theirs = logits_fast(model, rows), logits_alone(model, rows)
    assert steps(ours) == BLOCKS - min(settings.get("blocks", (0,)))  # the blocks behind the first adapter
    assert steps(theirs) == 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(loss_of(ours), loss_of(theirs), trained_parameters(model))


@pytest.mark.parametrize(
    "trained", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
)
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_any_part_of_an_adapter_can_be_trained_alone(trained, part):
    model = tuned_model()
    for name, p in model.named_parameters():
        p.requires_grad_(trained in name and part in name)
    ours, theirs = logits_fast(model, ROWS), logits_alone(model, ROWS)
    assert steps(ours) == BLOCKS
    assert_equal_gradients(loss_of(ours), loss_of(theirs), trained_parameters(model))


def test_the_gradient_reaches_what_comes_before_the_blocks():
    model = tuned_model()
    embeddings = model.get_input_embeddings().weight.requires_grad_(True)
    ours, theirs = logits_fast(model, ROWS), logits_alone(model, ROWS)
    assert steps(ours) == BLOCKS
    assert_equal_gradients(loss_of(ours), loss_of(theirs), [embeddings, *trained_parameters(model)])


@pytest.mark.parametrize("attached", [True, False])
def test_logits_without_gradients_are_the_blocks_own(attached):
    model = tuned_model().eval() if attached else llama().eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            logits_fast(model, BRANCHES), logits_alone(model, BRANCHES), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("keep", [[4], [45, 8, 9, 8]], ids=["one", "out of order and twice"])
def test_logits_of_few_tokens_and_their_gradients_are_those_among_all(keep):
    model = tuned_model()
    keep = torch.tensor(keep)
    ours, theirs = logits_fast(model, ROWS, keep), logits_alone(model, ROWS)[keep]
    assert steps(ours) == BLOCKS
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(loss_of(ours), loss_of(theirs), trained_parameters(model))


@pytest.mark.parametrize("place", ["last block", "final norm", "model"])
def test_whoever_watches_what_comes_behind_the_blocks_sees_every_token(place):
    model = tuned_model()
    inner = model.get_base_model().model
    seen = []
    watched = {"last block": inner.layers[-1], "final norm": inner.norm, "model": inner}[place]
    watched.register_forward_hook(lambda _m, _a, out: seen.append(out if torch.is_tensor(out) else out[0]))
    keep = torch.tensor([4])
    logits = logits_fast(model, ROWS, keep)
    assert steps(logits) == BLOCKS
    assert bool((seen[0][0].abs().sum(1) > 0).all())


def no_change(model):
    return model


def with_hook_inside(model):
    for block in blocks_of(model.get_base_model()):
        block.mlp.down_proj.register_forward_pre_hook(lambda _module, _args: None)
    return model


def with_trained_weights(model):
    for block in blocks_of(model.get_base_model()):
        block.mlp.up_proj.get_base_layer().weight.requires_grad_(True)
    return model


def with_trained_norms(model):
    for block in blocks_of(model.get_base_model()):
        block.input_layernorm.weight.requires_grad_(True)
    return model


def with_replaced_forward(model):
    for block in blocks_of(model.get_base_model()):
        block.mlp.forward = block.mlp.forward
    return model


def in_double(model):
    return model.double()


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (with_hook_inside, {}),
        (with_trained_weights, {}),
        (with_trained_norms, {}),
        (with_replaced_forward, {}),
        (in_double, {}),
        (no_change, {"kind": "core"}),
    ],
)
def test_blocks_with_more_in_them_run_their_own_forward(change, settings):
    model = change(tuned_model(**settings))
    ours, theirs = logits_fast(model, ROWS), logits_alone(model, ROWS)
    assert steps(ours) == 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(
        ours.float().square().mean(), theirs.float().square().mean(), trained_parameters(model)
    )


def test_adapters_with_dropout_run_the_blocks_own_forward():
    assert steps(logits_fast(tuned_model(dropout=0.1), ROWS)) == 0


def test_autocast_runs_the_blocks_own_forward():
    model = tuned_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert steps(logits_fast(model, ROWS)) == 0


def test_function_transforms_run_the_blocks_own_forward():
    model, pack = tuned_model().eval(), pack_rows(ROWS)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(values):
        with fast_blocks(model):
            out = torch.func.functional_call(
                model,
                values,
                kwargs={"input_ids": pack.ids, "position_ids": pack.positions, "use_cache": False},
            )
        return loss_of(out.logits)

    assert set(torch.func.grad(loss)(weights)) == set(weights)


def test_rows_that_are_too_long_run_the_blocks_own_forward():
    long = [Row(trunk=[i % 90 for i in range(LONGEST_DENSE + 1)])]
    model = tuned_model()
    ours = logits_fast(model, long)
    assert steps(ours) == 0
    torch.testing.assert_close(ours, logits_alone(model, long), rtol=1e-4, atol=1e-4)


def test_models_of_other_kinds_run_as_ever():
    with fast_blocks(torch.nn.Linear(2, 2)):
        pass


def test_blocks_have_their_own_forward_back_after_an_error():
    model = tuned_model()
    unknown = pack_rows([Row(trunk=[101])])
    with pytest.raises(IndexError), fast_blocks(model):
        packed_logits(model, unknown, torch.tensor([0]))
    assert not any("forward" in block.__dict__ for block in blocks_of(model.get_base_model()))


def test_a_gradient_that_is_to_be_differentiated_again_is_an_error():
    model = tuned_model()
    with pytest.raises(RuntimeError, match="cannot be differentiated; run the model outside fast_blocks"):
        torch.autograd.grad(loss_of(logits_fast(model, ROWS)), trained_parameters(model), create_graph=True)


def test_nested_in_itself_it_changes_nothing():
    model = tuned_model()
    with fast_blocks(model):
        logits = logits_fast(model, ROWS)
        assert all("forward" in block.__dict__ for block in blocks_of(model.get_base_model()))
    assert steps(logits) == BLOCKS


@pytest.mark.parametrize("name", ["lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"])
def test_a_weight_that_was_written_to_before_the_backward_pass_is_an_error(name):
    model = tuned_model()
    loss = loss_of(logits_fast(model, ROWS))
    with torch.no_grad():
        dict(model.named_parameters())[f"base_model.model.model.layers.1.mlp.up_proj.{name}"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_can_be_taken_twice_from_one_graph():
    model = tuned_model()
    loss = loss_of(logits_fast(model, ROWS))
    first, second = (
        torch.autograd.grad(loss, trained_parameters(model), retain_graph=True) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
