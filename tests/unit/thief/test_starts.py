"""What an adversary starts from: closed forms and widened blocks."""

import copy

import numpy as np
import pytest
import torch

from attacks.extraction.behaviour import ExtractionQuestion, behaviour
from attacks.extraction.lessons import loss_of, predict
from attacks.extraction.starts.closed_form import Mapped, ghosted, linearly_filled, ridge
from attacks.extraction.starts.fillers import grown
from attacks.extraction.starts.widened import narrower, public_sizes, sizes_in, widened
from fedproxy_secure.models.llm import blocks_of, load_llm, with_blocks
from fedproxy_secure.models.packing.packed import can_pack
from tests.support.extraction import gpt2, qwen2
from tests.support.thief import BUDGET, outputs, texts
from tests.support.tiny import VOCABULARY, tiny_llama


def shear():
    """A map that no norm takes away."""
    return 0.2 * torch.randn(16, 16, generator=torch.Generator().manual_seed(3))


# Least squares


def test_ridge_finds_an_affine_map_exactly_and_a_penalty_shrinks_it():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=rng)
    weight, bias = torch.randn(3, 5, generator=rng), torch.randn(3, generator=rng)
    found, shift = ridge(x, x @ weight.T + bias, 1e-9)
    assert torch.allclose(found, weight, atol=1e-4)
    assert torch.allclose(shift, bias, atol=1e-4)
    shrunk, _ = ridge(x, x @ weight.T + bias, 1.0)
    assert shrunk.norm() < weight.norm()


@pytest.mark.parametrize("kind", [tiny_llama, gpt2, qwen2])
def test_a_map_that_is_zero_changes_no_output_and_is_trained_where_the_block_is(kind):
    model, ids = kind(2), texts(2)
    before = outputs(model, ids)
    blocks_of(model)[1] = Mapped(blocks_of(model)[1], 16)
    assert torch.equal(outputs(model, ids), before)
    with torch.no_grad():
        blocks_of(model)[1].map.weight.add_(shear())
    assert not torch.allclose(outputs(model, ids), before, atol=1e-3)
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, ids), outputs(model, ids))
    assert {"map.weight", "map.bias"} < {n for n, _ in blocks_of(model)[1].named_parameters()}


def test_models_with_maps_answer_packed_as_they_answer_alone():
    model = tiny_llama(2)
    blocks_of(model)[1] = Mapped(blocks_of(model)[1], 16)
    with torch.no_grad():
        blocks_of(model)[1].map.weight.add_(shear())
    asked = ExtractionQuestion(
        depth=2, texts=texts(4).numpy(), places=np.tile(np.arange(23), (4, 1)), records=()
    )
    alone = outputs(model, texts(4))[:, :-1].log_softmax(-1).numpy()
    assert can_pack(model)
    assert np.allclose(behaviour(model, asked).logs, alone, atol=1e-4)


def test_ghosting_recovers_a_linear_map_after_the_last_block_from_logits_alone():
    """The victim is the proxy with such a map: closed form alone makes both alike."""
    proxy = tiny_llama(2)
    victim = copy.deepcopy(proxy)
    blocks_of(victim)[1] = Mapped(blocks_of(victim)[1], 16)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        blocks_of(victim)[1].map.weight.add_(shear())
    ids, held_out = texts(24), texts(8, seed=1)

    def kl(model):
        p, q = (outputs(m, held_out).log_softmax(-1) for m in (victim, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    model, _ = ghosted((proxy, []), ids, outputs(victim, ids).split(8), kl)
    assert kl(model) < 0.05 * kl(proxy)
    shifted = outputs(victim, ids) + 100 * torch.randn(24, 24, 1, generator=rng)  # log-probabilities, say
    again, _ = ghosted((proxy, []), ids, shifted.split(8), kl)
    assert kl(again) == pytest.approx(kl(model), rel=0.05)


def test_ghosting_on_noise_is_not_taken_over_the_proxy():
    proxy, ids, held_out = tiny_llama(2), texts(8), texts(8, seed=1)
    rng = torch.Generator().manual_seed(1)
    noise = [torch.randn(8, 24, VOCABULARY, generator=rng)]

    def kl(model):
        p, q = (outputs(m, held_out).log_softmax(-1) for m in (proxy, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    model, _ = ghosted((proxy, []), ids, noise, kl)
    assert torch.equal(outputs(model, held_out), outputs(proxy, held_out))


def test_linear_fillers_are_no_worse_on_public_text_than_fillers_that_do_nothing():
    proxy, public, held_out = tiny_llama(3), texts(16), texts(8, seed=1)

    def loss(model):
        return loss_of(model, held_out, predict, budget=BUDGET)

    model, fillers = linearly_filled(proxy, (0, 1, 1, 0), public, loss)
    assert len(blocks_of(model)) == 5
    assert [id(f) for f in fillers] == [id(blocks_of(model)[i]) for i in (1, 3)]
    assert loss(model) <= loss(proxy)


def test_a_linear_filler_adds_what_its_neighbour_adds_where_that_is_linear():
    """Blocks whose change is a constant: the filler chosen by a loss that wants the change has it, too."""
    proxy, public = tiny_llama(2), texts(8)
    llm = with_blocks(proxy, [0, 0, 1])
    p = outputs(llm, public).log_softmax(-1)

    def kl(model):
        return float((p.exp() * (p - outputs(model, public).log_softmax(-1))).sum(-1).mean())

    filled, _ = linearly_filled(proxy, (0, 1, 0), public, kl)
    assert kl(filled) < kl(grown(proxy, (0, 1, 0), "zero")[0])


# Widened


def test_a_narrow_proxy_is_widened_to_the_llms_sizes_and_answers_as_before(folders):
    proxy, sizes = load_llm(folders / "narrow")[0], sizes_in(folders / "llm")
    assert sizes == {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    assert narrower(proxy, sizes)
    wide = widened(proxy, sizes, seed=0)
    assert public_sizes(wide.config) == sizes
    assert blocks_of(wide)[0].mlp.up_proj.weight.shape == (32, 16)
    assert torch.allclose(outputs(wide, texts(3)), outputs(proxy, texts(3)), atol=1e-4)
    assert blocks_of(wide)[0].mlp.up_proj.weight[16:].abs().sum() > 0  # they read something


def test_what_is_not_narrower_or_does_not_fit_is_not_widened(folders):
    llm = load_llm(folders / "llm")[0]
    assert widened(llm, sizes_in(folders / "llm"), seed=0) is None
    assert widened(llm, {"num_attention_heads": 6}, seed=0) is None  # three heads for each head of keys
