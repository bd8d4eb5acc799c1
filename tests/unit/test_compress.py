"""Stage 1: the block plan maps both ways, importance means what it says, proxies are exact copies."""

import pytest
import torch

from fedproxy_secure.compress import fidelity as fidelity_module
from fedproxy_secure.compress import importance, importance_memo
from fedproxy_secure.compress.base import Compression, compression_of
from fedproxy_secure.compress.block_states import predictions_and_states
from fedproxy_secure.compress.drop_blocks import build_proxy
from fedproxy_secure.compress.fidelity import LinearCka, fidelity, fidelity_record
from fedproxy_secure.compress.importance import (
    block_influence,
    gradient_fidelity,
    greedy_divergence,
    greedy_gradient_fidelity,
)
from fedproxy_secure.compress.importance_memo import remembered
from fedproxy_secure.compress.plan import (
    BlockPlan,
    blocks_to_remove,
    plan_by_importance,
    plan_uniform,
)
from fedproxy_secure.compress.proxy import Proxy
from fedproxy_secure.compress.verbatim import verbatim_share
from fedproxy_secure.config import CompressConfig
from fedproxy_secure.config.kinds import COMPRESSIONS
from fedproxy_secure.errors import ConfigError, ModelError
from fedproxy_secure.models.llm import blocks_of, load_llm, with_blocks
from tests.support.tiny import louder, public_windows, same_weights, save_tiny, tiny_llama

WINDOWS = torch.arange(3, 3 + 40).view(2, 20)


def test_plan_keeps_the_most_important_blocks_in_their_order():
    assert plan_by_importance([0.9, 0.1, 0.2, 0.8], 0.5).kept == (0, 3)
    assert plan_by_importance([1.0, 1.0, 1.0, 1.0], 0.5).kept == (0, 1)


def test_uniform_plan_keeps_both_ends():
    assert plan_uniform(8, 0.5).kept == (0, 2, 5, 7)


@pytest.mark.parametrize("kept", [(), (1, 0), (0, 0), (0, 4), (-1,)])
def test_impossible_plans_are_refused(kept):
    with pytest.raises(ConfigError):
        BlockPlan(llm_blocks=4, kept=kept)


def test_a_ratio_that_leaves_no_block_is_refused_with_its_value():
    with pytest.raises(ConfigError, match=r"remove_ratio=0.95.*at least one"):
        blocks_to_remove(4, 0.95)


@pytest.mark.parametrize(("ratio", "blocks"), [(0.1, 4), (0.125, 4), (0.01, 30)])
def test_a_ratio_above_0_that_removes_no_block_is_refused_with_the_least_that_does(ratio, blocks):
    line = rf"remove_ratio={ratio}: removes none of {blocks} blocks; must be 0, or above {0.5 / blocks:g}"
    with pytest.raises(ConfigError, match=line):
        blocks_to_remove(blocks, ratio)
    assert blocks_to_remove(blocks, 0.0) == 0
    assert blocks_to_remove(blocks, 0.5 / blocks + 0.001) == 1


def test_lift_moves_tensors_to_their_llm_blocks():
    plan = BlockPlan(llm_blocks=4, kept=(1, 3))
    assert plan.lift({(0, "w"): torch.ones(1)}).keys() == {(1, "w")}


def test_block_influence_of_a_block_that_does_nothing_is_zero():
    model = tiny_llama()
    block = blocks_of(model)[2]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    influence = block_influence(model, WINDOWS)
    assert influence[2] == pytest.approx(0, abs=1e-9)
    assert min(influence[i] for i in (0, 1, 3)) > 1e-3


def test_gradient_fidelity_of_the_whole_llm_is_one_and_of_a_part_is_less():
    model = tiny_llama()
    assert gradient_fidelity(model, WINDOWS, [0, 1, 2, 3]) == pytest.approx(1)
    assert gradient_fidelity(model, WINDOWS, [0, 3]) < 0.999


def test_gradient_fidelity_drops_a_block_that_does_nothing_first():
    model = tiny_llama()
    with torch.no_grad():
        blocks_of(model)[1].self_attn.o_proj.weight.zero_()
        blocks_of(model)[1].mlp.down_proj.weight.zero_()
    scores = greedy_gradient_fidelity(model, WINDOWS, keep=3)
    assert plan_by_importance(scores, 0.25).kept == (0, 2, 3)


def test_gradient_fidelity_tries_at_each_step_only_the_blocks_of_least_influence(monkeypatch):
    model, tried = louder(tiny_llama(6)), []

    def counted(model, windows, of, range_kept):
        if range_kept is not None:
            tried.append(set(range(6)) - set(range_kept))
        return gradients(model, windows, of, range_kept)

    gradients = importance._block_gradients
    monkeypatch.setattr(importance, "_block_gradients", counted)
    monkeypatch.setattr(importance, "TRIALS", 2)
    scores = greedy_gradient_fidelity(model, WINDOWS, keep=4)
    influence = block_influence(model, WINDOWS)
    assert len(tried) == 2 * 2
    assert set.union(*tried[:2]) == {*sorted(range(6), key=lambda i: influence[i])[:2]}
    assert sorted(scores) == [0, 1, 6, 6, 6, 6]


def test_gradients_of_many_passes_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(importance, "windows_a_pass", lambda *_: 1)
    model, windows = tiny_llama().bfloat16(), public_windows(64)
    whole = importance._block_gradients(model, windows, [0], range_kept=None)
    each = [importance._block_gradients(model, one, [0], range_kept=None) for one in windows.split(1)]
    for key, found in whole.items():
        expected = torch.stack([one[key].double() for one in each]).sum(0)
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_divergence_drops_a_block_that_does_nothing_first_and_then_the_one_that_is_missed_least():
    model = tiny_llama()
    with torch.no_grad():
        blocks_of(model)[1].self_attn.o_proj.weight.zero_()
        blocks_of(model)[1].mlp.down_proj.weight.zero_()
    scores = greedy_divergence(model, WINDOWS, keep=2)
    assert scores[1] == 0.0
    second = scores.index(1.0)
    apart = {
        i: fidelity(model, with_blocks(model, [j for j in (0, 2, 3) if j != i]), None, WINDOWS).kl_nats
        for i in (0, 2, 3)
    }
    assert second == min(apart, key=lambda i: apart[i])


def test_importance_that_took_long_is_computed_once_for_an_llm_and_its_windows(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path))
    monkeypatch.setattr(importance_memo, "WORTH_S", 0.0)
    asked: list[int] = []

    def slow(model, windows, keep: int) -> list[float]:
        asked.append(keep)
        return [float(keep)] * 4

    llm = tiny_llama()
    assert [remembered(slow, llm, WINDOWS, 2) for _ in range(2)] == [[2.0] * 4] * 2
    assert remembered(slow, llm, WINDOWS, 3) == [3.0] * 4
    remembered(slow, tiny_llama(seed=1), WINDOWS, 2)
    assert asked == [2, 3, 2]
    other = tiny_llama()
    other.config.rms_norm_eps = 0.1  # the same weights, other numbers
    remembered(slow, other, WINDOWS, 2)
    moved = tiny_llama()
    moved.config._name_or_path = "elsewhere"
    remembered(slow, moved, WINDOWS, 2)
    assert asked.pop() == 2
    assert asked == [2, 3, 2]
    for file in (tmp_path / "importance").iterdir():
        file.write_bytes(b"damaged")
    assert remembered(slow, llm, WINDOWS, 2) == [2.0] * 4
    assert asked == [2, 3, 2, 2]
    for name in ("VERSION", "DIVERGENCE_WINDOWS", "TRIALS"):
        monkeypatch.setattr(importance_memo, name, 99)
        remembered(slow, llm, WINDOWS, 2)
    assert asked == [2, 3, 2, 2, *[2] * 3], "what was computed in another way is not taken"


@pytest.mark.parametrize(
    "importance", ["block_influence", "divergence", "gradient_fidelity", "uniform", "random"]
)
def test_proxy_blocks_are_exact_copies_and_the_llm_is_left_as_it_was(importance):
    llm, before = tiny_llama(), tiny_llama()
    proxy = build_proxy(llm, remove_ratio=0.5, importance=importance, windows=WINDOWS)
    assert len(blocks_of(proxy.model)) == 2
    assert proxy.model.config.num_hidden_layers == 2
    assert same_weights(llm, before)
    for i, block in enumerate(blocks_of(proxy.model)):
        assert same_weights(block, blocks_of(llm)[proxy.plan.to_llm(i)])


def test_saved_proxy_loads_as_an_ordinary_model_with_the_same_logits(tmp_path):
    from transformers import AutoModelForCausalLM

    proxy = build_proxy(tiny_llama(), remove_ratio=0.5, importance="uniform", windows=WINDOWS).model
    proxy.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(WINDOWS).logits, proxy(WINDOWS).logits)


def test_fidelity_of_the_whole_llm_is_perfect():
    llm = tiny_llama()
    proxy = build_proxy(llm, remove_ratio=0.0, importance="uniform", windows=WINDOWS)
    found = fidelity(llm, proxy.model, proxy.plan, WINDOWS)
    assert found.kl_nats == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1
    assert min(found.cka) == pytest.approx(1)
    assert found.llm_perplexity == found.proxy_perplexity


def test_cka_ignores_rotation_and_sees_independence():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    other = torch.randn(500, 8, generator=torch.Generator().manual_seed(2))
    for y, expected, within in ((3 * x @ rotation, 1, 1e-5), (other, 0, 0.1)):
        found = LinearCka()
        for part in (slice(200), slice(200, None)):
            found.add(x[part], y[part])
        assert found.value() == pytest.approx(expected, abs=within)


def cka_by_features(x, y):
    """Return linear CKA by Kornblith et al. 2019, from the features' products, which are [a, b]."""
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


@pytest.mark.parametrize(("tokens", "a", "b"), [(7, 20, 30), (300, 6, 6), (50, 50, 1)])
def test_cka_by_products_of_states_equals_that_by_products_of_features(tokens, a, b):
    generator = torch.Generator().manual_seed(tokens)
    x = 5 + torch.randn(tokens, a, generator=generator)
    y = torch.randn(tokens, b, generator=generator) + x[:, :1]
    found = LinearCka()
    for part in (slice(3), slice(3, None)):
        found.add(x[part], y[part])
    assert found.value() == pytest.approx(cka_by_features(x, y), rel=1e-9)


MANY_WINDOWS = torch.randint(3, 60, (64, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("most", "chosen"), [(2048, range(64)), (127, [0, 9, 18, 27, 36, 45, 54]), (1, [0])]
)
@pytest.mark.parametrize("at_once", [1, 5])
def test_cka_compares_whole_windows_that_are_evenly_spread(monkeypatch, most, chosen, at_once):
    monkeypatch.setattr(fidelity_module, "CKA_TOKENS", most)
    monkeypatch.setattr(fidelity_module, "windows_a_pass", lambda *_: at_once)
    llm = louder(tiny_llama())
    proxy = build_proxy(llm, remove_ratio=0.5, importance="uniform", windows=WINDOWS)
    with torch.inference_mode():
        _, p_states = predictions_and_states(llm, MANY_WINDOWS)
        _, q_states = predictions_and_states(proxy.model, MANY_WINDOWS)
    expected = [
        cka_by_features(p_states[at][[*chosen]].flatten(0, 1), q[[*chosen]].flatten(0, 1))
        for at, q in zip(proxy.plan.kept, q_states, strict=True)
    ]
    measured = fidelity(llm, proxy.model, proxy.plan, MANY_WINDOWS)
    assert measured.cka == pytest.approx(expected, rel=1e-6)
    assert measured.tokens == MANY_WINDOWS.numel()


@pytest.mark.parametrize("most", [256, 128])
def test_cka_of_some_tokens_gives_a_huge_first_state_no_more_weight_than_cka_of_all(monkeypatch, most):
    def with_huge_first(model, ids):
        predictions, states = predictions_and_states(model, ids)
        for state in states:
            state[:, 0, 0] += 2 * state.norm(dim=-1).mean()
        return predictions, states

    monkeypatch.setattr(fidelity_module, "predictions_and_states", with_huge_first)
    llm = louder(tiny_llama())
    proxy = build_proxy(llm, remove_ratio=0.5, importance="uniform", windows=WINDOWS)
    all_tokens = fidelity(llm, proxy.model, proxy.plan, MANY_WINDOWS).cka
    monkeypatch.setattr(fidelity_module, "CKA_TOKENS", most)
    assert fidelity(llm, proxy.model, proxy.plan, MANY_WINDOWS).cka == pytest.approx(all_tokens, abs=0.1)


@pytest.mark.parametrize("scale", [float("nan"), 1e30])
def test_a_proxy_without_a_finite_perplexity_is_refused_in_one_line(scale):
    llm = tiny_llama(2)
    proxy = Proxy(model=tiny_llama(2), plan=BlockPlan(llm_blocks=2, kept=(0, 1)))
    assert fidelity_record(llm, proxy, WINDOWS)["fidelity"]["proxy_perplexity"] > 1
    with torch.no_grad():
        proxy.model.lm_head.weight.copy_(scale * torch.randn_like(proxy.model.lm_head.weight))
    with pytest.raises(ModelError, match=r"^the proxy is broken: .* is (nan|inf); lower compress\.remove"):
        fidelity_record(llm, proxy, WINDOWS)


def test_a_model_without_decoder_blocks_is_refused():
    with pytest.raises(ModelError, match="decoder blocks"):
        blocks_of(torch.nn.Linear(2, 2))


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path=") as error:
        load_llm(tmp_path / "nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_broken_download_is_refused_in_one_line(tmp_path, name):
    folder = save_tiny(tmp_path / "llm")
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ModelError, match=r"cannot be loaded: .+"):
        load_llm(folder)


def test_a_local_folder_loads(tmp_path):
    model, tokenizer = load_llm(save_tiny(tmp_path), device="cpu")
    assert same_weights(model, tiny_llama())
    assert tokenizer.bos_token_id == 1


def test_the_settings_compression_builds_what_build_proxy_builds():
    compress = CompressConfig(importance="uniform", remove_ratio=0.5)
    proxy = compression_of(compress).build(tiny_llama(), compress, windows=WINDOWS, seed=0)
    by_hand = build_proxy(tiny_llama(), remove_ratio=0.5, importance="uniform", windows=WINDOWS)
    assert proxy.plan == by_hand.plan
    assert same_weights(proxy.model, by_hand.model)


def test_every_compression_is_called_as_it_is_registered():
    for name, compression in COMPRESSIONS.every().items():
        assert isinstance(compression, Compression)
        assert compression.name == name
        assert compression.title


def test_an_option_that_a_compression_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"compress.options.bits: is no option .*; it has: none"):
        compression_of(CompressConfig(options={"bits": 4}))


def test_a_proxy_needs_a_way_back():
    with pytest.raises(ModelError, match="no block plan and no lifting"):
        Proxy(model=tiny_llama())


def test_a_proxy_lifts_by_its_own_rule_where_it_has_one():
    def doubled(tensors):
        return {(index + 1, name): 2 * value for (index, name), value in tensors.items()}

    plan = BlockPlan(llm_blocks=4, kept=(0, 1))
    proxy = Proxy(model=tiny_llama(2), plan=plan, lifting=doubled)
    assert proxy.lift({(0, "w"): torch.ones(1)}) == {(1, "w"): torch.full((1,), 2.0)}
    assert Proxy(model=tiny_llama(2), plan=plan).lift({(0, "w"): torch.ones(1)}).keys() == {(0, "w")}


def test_without_a_plan_cka_is_not_measured_and_all_else_is():
    llm, proxy = tiny_llama(), tiny_llama(2)
    measured = fidelity(llm, proxy, None, WINDOWS)
    assert measured.cka == ()
    assert measured.kl_nats > 0


def test_without_a_plan_a_tensor_is_held_wherever_the_proxy_has_it():
    llm = tiny_llama()
    parameters = sum(p.numel() for p in llm.parameters())
    shuffled = with_blocks(llm, [2, 1])
    left_out = sum(p.numel() for i in (0, 3) for p in blocks_of(llm)[i].parameters() if p.dim() == 2)
    # norms of fresh models are all ones, so those of blocks left out are held as well
    assert verbatim_share(llm, shuffled, None) == pytest.approx(1 - left_out / parameters)
    plan = BlockPlan(llm_blocks=4, kept=(1, 2))  # wrong on purpose: only what lies in place counts
    assert verbatim_share(llm, shuffled, plan) < verbatim_share(llm, shuffled, None)
