"""Compressions that let out less: what clients hold, what is lifted back, what proxies predict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.compress.defences.embeddings import FLOOR, of_rank
from fedproxy_secure.compress.defences.low_rank import factors, rank_for
from fedproxy_secure.compress.defences.maps import NORMS, READERS, WRITERS
from fedproxy_secure.compress.defences.moments import linear_maps, second_moments
from fedproxy_secure.compress.defences.quantised import rounded
from fedproxy_secure.compress.defences.rotated import owners_stream
from fedproxy_secure.compress.defences.width import fitted
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.compress.verbatim import numbers_held, verbatim_share
from fedproxy_secure.config import CompressConfig, HealConfig, load_config
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.experiments.stages import prepare
from fedproxy_secure.fuse.plug_back import add_deltas, plug_back
from fedproxy_secure.models.llm import blocks_of, load_llm, sharing_copy
from tests.support.tiny import VOCABULARY, tiny_llama, tiny_tokenizer

WINDOWS = torch.randint(3, VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(0))
KINDS = ("low_rank", "width", "quantised", "rotated", "withheld_bottom")


def llm(seed=0, *, tied=False, key_value_heads=2):
    """A random Llama with grouped heads, gains of norms that are not all one, and biases nowhere."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    with torch.no_grad():
        for block in blocks_of(model):
            for name in NORMS:
                block.get_submodule(name).weight.uniform_(0.5, 1.5)
        model.model.norm.weight.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def gpt2():
    torch.manual_seed(0)
    shape = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=VOCABULARY, n_positions=64)
    return GPT2LMHeadModel(shape).eval().requires_grad_(False)


def unfinished(kind, model, *, remove_ratio=0.5, **options):
    compress = CompressConfig(kind=kind, remove_ratio=remove_ratio, options=options)
    return compression_of(compress).build(model, compress, windows=WINDOWS, seed=0)


def proxy_of(kind, model, **settings):
    return unfinished(kind, model, **settings).finished()


def logits(model, windows=WINDOWS):
    with torch.inference_mode():
        return model(input_ids=windows).logits


def random_deltas(model, seed=0, scale=0.01):
    drawn = torch.Generator().manual_seed(seed)
    return {
        (i, f"{name}.weight"): scale * torch.randn(linear.weight.shape, generator=drawn)
        for i, block in enumerate(blocks_of(model))
        for name, linear in linear_maps(block).items()
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_saved_as_an_ordinary_folder_answers_as_it_did(kind, tied, tmp_path):
    proxy = proxy_of(kind, llm(tied=tied))
    save_model(proxy.model, tiny_tokenizer(), tmp_path)
    again, _ = load_llm(tmp_path, dtype="float32")
    torch.testing.assert_close(logits(again), logits(proxy.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_building_and_healing_a_proxy_leaves_the_llm_as_it_was(kind):
    model = llm()
    before = {name: p.clone() for name, p in model.named_parameters()}
    proxy = unfinished(kind, model)
    heal(proxy.model, model, WINDOWS, HealConfig(steps=2, batch_size=2), seed=0, plan=proxy.plan)
    proxy.finished()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_healing_brings_a_proxy_closer_to_its_llm(kind):
    model = llm()
    text = torch.randint(3, VOCABULARY, (64, 24), generator=torch.Generator().manual_seed(1))
    proxy = unfinished(kind, model, **({"bits": 3} if kind == "quantised" else {}))
    healing = HealConfig(steps=20, batch_size=8, learning_rate=2e-3)
    healed = heal(proxy.model, model, text, healing, seed=0, plan=proxy.plan)
    assert healed.state_error_after < healed.state_error_before


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_brings_a_proxy_closer_to_its_llm(kind):
    model = llm()
    text = torch.randint(3, VOCABULARY, (64, 24), generator=torch.Generator().manual_seed(1))
    proxy = unfinished(kind, model)
    healed = heal(proxy.model, model, text, HealConfig(fit_windows=48), seed=0, plan=proxy.plan)
    assert healed.state_error_after < healed.state_error_before


@pytest.mark.parametrize("family", [llm, gpt2], ids=["llama", "gpt2"])
def test_the_fit_keeps_the_rank_of_low_rank_maps(family):
    model = family()
    text = torch.randint(3, VOCABULARY, (64, 24), generator=torch.Generator().manual_seed(1))
    proxy = unfinished("low_rank", model)
    last = linear_maps(blocks_of(proxy.model)[-1])
    before = [linear.weight.detach().clone() for linear in last.values()]
    healed = heal(proxy.model, model, text, HealConfig(fit_windows=48), seed=0, plan=proxy.plan)
    assert healed.state_error_after < healed.state_error_before
    fitted_maps = linear_maps(blocks_of(proxy.finished().model)[-1])
    changed = [not torch.equal(m.weight, b) for m, b in zip(fitted_maps.values(), before, strict=True)]
    assert changed.count(True) == 1
    for name, linear in fitted_maps.items():
        rank = torch.linalg.matrix_rank(linear.weight.detach().double(), rtol=1e-5)
        assert rank == proxy.details["ranks"][name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_whose_hidden_states_are_rotated_says_so_and_no_other(kind):
    model = llm()
    proxy = proxy_of(kind, model)
    assert bool(proxy.kept) == (kind != "rotated")
    assert len(proxy.kept) in (0, len(blocks_of(proxy.model)))


@pytest.mark.parametrize("kind", KINDS)
def test_after_finishing_every_weight_is_an_ordinary_frozen_parameter(kind):
    model = llm()
    proxy = unfinished(kind, model)
    heal(proxy.model, model, WINDOWS, HealConfig(steps=1, batch_size=2), seed=0, plan=proxy.plan)
    finished = proxy.finished().model
    assert not any(p.requires_grad for p in finished.parameters())
    for block in blocks_of(finished):
        assert {name.rpartition(".")[0] for name, _ in block.named_parameters()} >= {
            *READERS,
            *WRITERS,
            *NORMS,
        }


@pytest.mark.parametrize("kind", ["low_rank", "quantised"])
def test_a_difference_of_a_proxy_with_the_llm_s_shapes_is_added_as_it_is(kind):
    model = llm()
    proxy = proxy_of(kind, model, remove_ratio=0.0 if kind == "quantised" else 0.5)
    deltas = random_deltas(proxy.model)
    lifted = proxy.lift(deltas)
    assert lifted.keys() == deltas.keys()
    assert all(torch.equal(lifted[key], delta) for key, delta in deltas.items())


@given(seed=st.integers(0, 1000), ratio=st.sampled_from([0.25, 0.5]))
@settings(max_examples=5, deadline=None)
def test_a_rotated_proxy_s_difference_does_to_the_llm_what_it_did_to_the_proxy(seed, ratio):
    model = llm(seed, tied=bool(seed % 2))
    proxy = proxy_of("rotated", model, remove_ratio=ratio)
    plain = proxy_of("drop_blocks", model, remove_ratio=ratio)
    deltas = random_deltas(proxy.model, seed)
    tuned = add_deltas(proxy.model, deltas)
    back = {
        (proxy.plan.kept.index(block), name): delta for (block, name), delta in proxy.lift(deltas).items()
    }
    torch.testing.assert_close(logits(tuned), logits(add_deltas(plain.model, back)), rtol=1e-3, atol=1e-3)


def test_a_rotated_proxy_predicts_what_the_unrotated_one_does_and_holds_nothing_verbatim():
    for tied in (True, False):
        model = llm(tied=tied)
        rotated, plain = (proxy_of(kind, model) for kind in ("rotated", "drop_blocks"))
        torch.testing.assert_close(logits(rotated.model), logits(plain.model), rtol=1e-3, atol=1e-3)
        assert verbatim_share(model, rotated.model, rotated.plan) < 0.002  # a row of zeros, for padding
        assert verbatim_share(model, plain.model, plain.plan) > 0.5


def test_a_rotation_is_the_same_for_the_same_llm_and_another_for_one_number_more():
    model = llm()
    a, b = (owners_stream(model, seed=0).random() for _ in range(2))
    assert a == b
    assert owners_stream(model, seed=1).random() != a
    with torch.no_grad():
        blocks_of(model)[3].mlp.down_proj.weight[0, 0] += 1
    assert owners_stream(model, seed=0).random() != a


def test_a_rotation_of_a_healed_proxy_is_undone_with_the_healed_gains():
    model = llm()
    proxy = unfinished("rotated", model)
    heal(
        proxy.model,
        model,
        WINDOWS,
        HealConfig(steps=3, batch_size=4, learning_rate=0.05),
        seed=0,
        plan=proxy.plan,
    )
    healed = sharing_copy(proxy.model)
    done = proxy.finished()
    deltas = random_deltas(done.model)
    back = {
        (done.plan.kept.index(block), name): delta for (block, name), delta in done.lift(deltas).items()
    }
    torch.testing.assert_close(
        logits(add_deltas(done.model, deltas)), logits(add_deltas(healed, back)), rtol=1e-3, atol=1e-3
    )


@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_a_width_pruned_proxy_s_difference_lands_where_its_rows_and_columns_came_from(seed):
    model = llm(seed)
    proxy = proxy_of("width", model)
    deltas = random_deltas(proxy.model, seed)
    lifted = proxy.lift(deltas)
    for (index, name), delta in deltas.items():
        whole, original = lifted[index, name], blocks_of(model)[index].get_parameter(name)
        assert whole.shape == original.shape
        assert whole.sum().item() == pytest.approx(delta.sum().item(), rel=1e-4, abs=1e-4)
        assert int((whole != 0).sum()) == int((delta != 0).sum())
        if name.removesuffix(".weight") in READERS:  # their kept rows are the LLM's own
            mine = blocks_of(proxy.model)[index].get_parameter(name)
            rows = whole.abs().sum(1).nonzero().flatten()
            assert torch.equal(mine, original[rows])
            assert torch.equal(whole[rows], delta)


def test_a_width_pruned_proxy_keeps_whole_groups_of_heads_and_its_size_is_the_ratio_s():
    model = llm()
    for ratio in (0.25, 0.5, 0.75):
        proxy = proxy_of("width", model, remove_ratio=ratio)
        count = sum(p.numel() for b in blocks_of(proxy.model) for p in b.parameters() if p.dim() == 2)
        whole = sum(p.numel() for b in blocks_of(model) for p in b.parameters() if p.dim() == 2)
        assert count / whole == pytest.approx(1 - ratio, abs=0.03)
        config = proxy.model.config
        assert config.num_attention_heads == 2 * config.num_key_value_heads


def test_channels_and_heads_that_write_nothing_are_the_ones_that_go():
    model = llm(key_value_heads=4)
    with torch.no_grad():
        for block in blocks_of(model):
            block.self_attn.o_proj.weight[:, 4:12] = 0  # heads 1 and 2
            block.mlp.down_proj.weight[:, ::2] = 0
    proxy = proxy_of("width", model)
    torch.testing.assert_close(logits(proxy.model), logits(model), rtol=1e-3, atol=1e-3)


def test_what_reads_the_kept_channels_is_fitted_to_what_the_others_wrote():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=drawn).double()
    x[:, 4:] = x[:, :2] * 2  # the channels that go can be told from those that stay
    weight = torch.randn(3, 6, generator=drawn).double()
    moment = x.T @ x / 500 + 1e-9 * torch.eye(6).double()
    kept = torch.arange(4)
    torch.testing.assert_close(
        x[:, kept] @ fitted(weight, moment, kept).T, x @ weight.T, rtol=1e-5, atol=1e-5
    )


def test_factors_of_full_rank_give_the_map_and_of_less_the_least_error_on_its_inputs():
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=drawn)
    inputs = torch.randn(400, 7, generator=drawn).double() * torch.arange(1, 8)
    moment = inputs.T @ inputs / 400
    left, right = factors(weight, moment, 5)
    torch.testing.assert_close((left @ right).float(), weight, rtol=1e-4, atol=1e-4)

    def error(product):
        return float((inputs @ (weight.double() - product).T).square().mean())

    left, right = factors(weight, moment, 2)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    outputs = inputs @ weight.double().T
    least = torch.linalg.svdvals(outputs)[2:].square().sum() / outputs.numel()  # Eckart and Young
    assert error(left @ right) == pytest.approx(float(least), rel=1e-6)
    assert error(left @ right) < error((u[:, :2] * s[:2]) @ v[:2])


def test_a_low_rank_proxy_s_maps_have_that_rank_also_after_healing():
    model = llm(tied=True)
    proxy = unfinished("low_rank", model)
    heal(
        proxy.model,
        model,
        WINDOWS,
        HealConfig(steps=2, batch_size=2, learning_rate=0.01),
        seed=0,
        plan=proxy.plan,
    )
    done = proxy.finished()
    for block in blocks_of(done.model):
        for linear in linear_maps(block).values():
            rank = rank_for(linear.weight.shape, 0.5)
            assert torch.linalg.matrix_rank(linear.weight.double(), rtol=1e-5) == rank
    embedding = done.model.get_input_embeddings().weight
    assert torch.linalg.matrix_rank(embedding.double(), rtol=1e-5) == rank_for(embedding.shape, 0.25)
    assert done.model.get_output_embeddings().weight is embedding


def test_a_low_rank_proxy_holds_no_matrix_of_the_llm_and_an_exact_one_of_the_same_ratio_half():
    model = llm()
    low = proxy_of("low_rank", model)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    norms = sum(p.numel() for p in model.parameters()) - matrices
    whole = sum(p.numel() for p in model.parameters())
    assert verbatim_share(model, low.model, low.plan) == pytest.approx(norms / whole, abs=0.002)
    kept = proxy_of("low_rank", model, embeddings=0)
    assert verbatim_share(model, kept.model, kept.plan) > 0.2


def test_moments_are_those_of_the_inputs_in_parts_or_at_once(monkeypatch):
    model, seen = llm(), []
    handle = blocks_of(model)[2].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    logits(model)
    handle.remove()
    x = seen[0].flatten(0, 1).double()
    at_once = dict(second_moments(model, WINDOWS))
    found = at_once[2]["mlp.down_proj"]
    expected = x.T @ x / len(x)
    damping = torch.diag((found - expected).diagonal())
    assert damping.diagonal().max() < 1e-3 * expected.diagonal().mean()
    torch.testing.assert_close(found - damping, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("fedproxy_secure.compress.defences.moments.MOMENTS_BYTES", 1)
    in_parts = dict(second_moments(model, WINDOWS))
    assert all(torch.equal(in_parts[i][name], m) for i in at_once for name, m in at_once[i].items())


@given(bits=st.integers(2, 8), rows=st.integers(1, 3), columns=st.sampled_from([1, 63, 64, 65, 200]))
@settings(max_examples=20, deadline=None)
def test_rounded_weights_have_no_more_values_a_group_than_their_bits_allow(bits, rows, columns):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits))
    made = rounded(weight, bits)
    for row in made:
        for group in row.split(64):
            assert len((group / group.abs().max()).mul(1e4).round().unique()) <= 2**bits - 1
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    assert (made - weight).abs().max() <= step / 2 + 1e-6
    torch.testing.assert_close(rounded(made, bits), made)


def test_healing_of_a_quantised_proxy_ends_with_weights_of_so_many_bits():
    model = llm()
    proxy = unfinished("quantised", model, bits=2)
    heal(
        proxy.model,
        model,
        WINDOWS,
        HealConfig(steps=3, batch_size=2, learning_rate=0.01),
        seed=0,
        plan=proxy.plan,
    )
    for block in blocks_of(proxy.finished().model):
        for linear in linear_maps(block).values():
            assert all(len(row.abs().mul(1e4).round().unique()) <= 2 for row in linear.weight)


def test_no_number_of_a_withheld_block_is_in_the_proxy_and_what_its_replacement_learns_is_not_lifted():
    model = llm()
    proxy = proxy_of("withheld_bottom", model)
    assert proxy.plan.kept == (2, 3)
    mine = {float(x) for p in blocks_of(proxy.model)[0].parameters() if p.dim() == 2 for x in p.flatten()}
    for block in list(blocks_of(model))[:3]:
        theirs = {float(x) for p in block.parameters() if p.dim() == 2 for x in p.flatten()}
        assert len(mine & theirs) < 5
    lifted = proxy.lift(random_deltas(proxy.model))
    assert {block for block, _ in lifted} == {3}
    assert plug_back(model, proxy, random_deltas(proxy.model)) is not None


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("quantised", {"bits": 1}, r"bits=1: must be an integer from 2 to 8"),
        ("quantised", {"bits": True}, r"bits=True"),
        ("low_rank", {"embeddings": 1}, r"embeddings=1: must be a number, 0 <= embeddings < 1"),
        ("low_rank", {"embeddings": True}, r"embeddings=True"),
        ("width", {"bits": 4}, r"options.bits: is no option"),
    ],
)
def test_options_that_a_defence_cannot_work_with_are_refused_with_their_value(kind, options, words):
    with pytest.raises(ConfigError, match=words):
        compression_of(CompressConfig(kind=kind, options=options))


def test_withheld_blocks_without_healing_are_refused_before_anything_is_loaded():
    compress = CompressConfig(kind="withheld_bottom")
    with pytest.raises(ConfigError, match=r"heal.steps=0: must be > 0"):
        compression_of(compress, HealConfig(steps=0))
    assert compression_of(compress, HealConfig(steps=1)).name == "withheld_bottom"
    with pytest.raises(ConfigError, match=r"withholds no block"):
        unfinished("withheld_bottom", llm(), remove_ratio=0.0)


@pytest.mark.parametrize("kind", ["width", "rotated"])
def test_an_llm_of_another_build_is_refused_by_its_name(kind):
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel; must be one of Llama, Mistral, Qwen2"):
        unfinished(kind, gpt2())


@pytest.mark.parametrize("kind", ["low_rank", "quantised"])
def test_maps_that_are_stored_transposed_are_compressed_too(kind):
    gpt = gpt2()
    proxy = proxy_of(kind, gpt, remove_ratio=0.25 if kind == "low_rank" else 0.0)
    assert not torch.equal(logits(proxy.model), logits(gpt))
    for block in blocks_of(proxy.model):
        weight = block.mlp.c_fc.weight
        if kind == "low_rank":
            assert torch.linalg.matrix_rank(weight.double(), rtol=1e-5) == rank_for(weight.shape, 0.25)


def test_rows_and_columns_count_as_held_in_any_order_and_one_changed_number_costs_its_row_alone():
    matrix = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert numbers_held(matrix[torch.randperm(6)], matrix) == 30
    assert numbers_held(matrix[:, [3, 1]], matrix) == 12
    assert numbers_held(matrix[[0, 4]][:, [1, 2]], matrix) == 0
    changed = matrix.clone()
    changed[2, 3] += 1
    assert numbers_held(changed, matrix) == 25
    assert numbers_held(matrix.double(), matrix) == 0


def test_a_proxy_of_less_width_holds_its_kept_rows():
    model = tiny_llama()
    proxy = proxy_of("width", model)
    share = verbatim_share(model, proxy.model, proxy.plan)
    outside = sum(p.numel() for p in (model.model.embed_tokens.weight, model.lm_head.weight))
    whole = sum(p.numel() for p in model.parameters())
    assert share > outside / whole + 0.1  # rows of five of seven maps, and norms


@pytest.mark.parametrize(
    ("kind", "steps", "apart"), [("low_rank", 0, True), ("width", 3, True), ("drop_blocks", 3, False)]
)
def test_a_proxy_that_is_fitted_to_public_text_is_measured_on_other_text(kind, steps, apart):
    config = load_config(
        "configs/quickstart.yaml",
        [f"compress.kind={kind}", f"heal.steps={steps}", "compress.calibration_sequences=8"],
    )
    found = prepare(config)
    calibrated, measured, healed = (
        {tuple(row) for row in windows.tolist()}
        for windows in (found.windows, found.fidelity_windows, found.healing_windows)
    )
    assert len(measured) == len(calibrated) == 8
    assert calibrated.isdisjoint(measured) == apart
    assert healed.isdisjoint(calibrated | measured)
    assert len(healed) == (8 + 3 * config.heal.batch_size if steps else 0)


def test_public_text_too_short_for_all_three_uses_is_refused_with_what_it_needs(tmp_path):
    text = tmp_path / "public.txt"
    text.write_text("The cat sat on the mat. " * 400)
    sets = [
        "compress.kind=width",
        "heal.steps=3",
        f"data.public_text={text}",
        "compress.calibration_sequences=900",
    ]
    with pytest.raises(DataError, match=r"must have at least 1802"):
        prepare(load_config("configs/quickstart.yaml", sets))


def test_no_other_choice_of_directions_costs_an_embedding_matrix_less():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, 12)
    frequency = torch.rand(60, generator=generator, dtype=torch.float64) + 0.01
    moment = inputs.T @ inputs / len(inputs)
    metric = moment * (12 / moment.trace()) + FLOOR * torch.eye(12)

    def cost(projected: torch.Tensor) -> float:
        wrong = matrix - projected
        return float((frequency * ((wrong @ metric) * wrong).sum(1)).sum())

    found = of_rank(matrix, 5, moment, frequency)
    assert torch.linalg.matrix_rank(found) == 5
    least = cost(found)
    _, _, plain = torch.linalg.svd(matrix, full_matrices=False)
    assert least < cost(matrix @ plain[:5].T @ plain[:5])
    for _ in range(50):
        left, right = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        assert least < cost(matrix @ left @ torch.linalg.pinv(right))
        # the best oblique map onto any other five directions
        turned = matrix @ left
        solved = torch.linalg.lstsq(turned * frequency.sqrt()[:, None], matrix * frequency.sqrt()[:, None])
        assert least <= cost(turned @ solved.solution) + 1e-9


def test_an_embedding_matrix_at_full_rank_is_the_same_matrix():
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    same = of_rank(matrix, 8, torch.eye(8, dtype=torch.float64) * 5, torch.ones(30))
    assert torch.allclose(same, matrix, atol=1e-5)
