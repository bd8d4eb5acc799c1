"""Every compression that lets out less: what clients hold, what is lifted back, what proxies predict."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.compress.defences.low_rank import rank_for
from fedproxy_secure.compress.defences.maps import NORMS, READERS, WRITERS
from fedproxy_secure.compress.defences.moments import linear_maps
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.compress.verbatim import numbers_held, verbatim_share
from fedproxy_secure.config import CompressConfig, HealConfig, load_config
from fedproxy_secure.config.kinds import COMPRESSIONS
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.experiments.stages import prepare
from fedproxy_secure.fuse.plug_back import plug_back
from fedproxy_secure.models.llm import blocks_of, load_llm
from tests.support.defended import WINDOWS, llm, logits, proxy_of, random_deltas, unfinished
from tests.support.tiny import VOCABULARY, tiny_llama, tiny_tokenizer

KINDS = ("low_rank", "width", "quantised", "rotated", "withheld_bottom")


def gpt2():
    torch.manual_seed(0)
    shape = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=VOCABULARY, n_positions=64)
    return GPT2LMHeadModel(shape).eval().requires_grad_(False)


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
    assert bool(proxy.kept) == (kind != "rotated") == (not COMPRESSIONS.get(kind).own_states)
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


@pytest.mark.parametrize(("kind", "steps"), [("low_rank", 0), ("width", 3), ("drop_blocks", 0)])
def test_a_proxy_is_measured_on_text_that_neither_calibrates_nor_heals_it(kind, steps):
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
    assert calibrated.isdisjoint(measured)
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
