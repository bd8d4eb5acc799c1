"""Packed sequences: the same losses, gradients and scores as each sequence alone, without padding."""

import pytest
import torch

from fedproxy_secure.config import AdapterConfig
from fedproxy_secure.data import choices
from fedproxy_secure.data.choices import choice_loglikelihoods
from fedproxy_secure.data.encode import Encoded, batch_loss, records_loss, training_batch
from fedproxy_secure.data.records import Record
from fedproxy_secure.models.adapters import attach, set_vector, trained_parameters
from fedproxy_secure.models.packing import attention, packed
from fedproxy_secure.models.packing.packed import can_pack, packed_logits
from fedproxy_secure.models.packing.packs import Row, pack_rows
from tests.support.tiny import tiny_llama, tiny_tokenizer


def tiny_gpt2(blocks: int) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=512, n_positions=64, n_embd=32, n_layer=blocks, n_head=4,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )
    )  # fmt: skip


ITEMS = [
    Encoded(ids=(1, 5, 9, 12, 8, 2), response_start=4),
    Encoded(ids=(1, 7, 3), response_start=2),
    Encoded(ids=(1, 30, 31, 32, 33, 34, 35, 36, 2), response_start=5),
]


def tuned_model(base, kind: str = "lora", **settings):
    tuned = attach(base, AdapterConfig(kind=kind, rank=3, alpha=6, **settings), seed=0)
    size = sum(p.numel() for p in trained_parameters(tuned))
    generator = torch.Generator().manual_seed(1)
    set_vector(tuned, (torch.randn(size, generator=generator) * 0.1).numpy())
    return tuned


def loss_and_gradients(loss, model):
    return loss.detach(), torch.autograd.grad(loss, trained_parameters(model), allow_unused=True)


@pytest.mark.parametrize("base", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(
    "settings", [{}, {"kind": "ffa"}, {"kind": "core"}, {"modules": "mlp"}, {"blocks": (1,)}]
)
def test_losses_and_gradients_equal_those_of_padded_records(base, settings):
    model = tuned_model(base(3), **settings)
    assert can_pack(model)
    padded = batch_loss(model, training_batch(ITEMS, pad_id=0, device="cpu"))
    ours = records_loss(model, ITEMS, pad_id=0)
    expected, found = loss_and_gradients(padded, model), loss_and_gradients(ours, model)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for ours_, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("longest_dense", [512, 0])  # plain products, and torch's fused kernel
@pytest.mark.parametrize("base", [tiny_llama, tiny_gpt2])
def test_branches_see_their_trunk_and_not_each_other(base, longest_dense, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_DENSE", longest_dense)
    model = base(3).eval()
    rows = [Row(trunk=(1, 4, 6), branches=((7, 8), (9,), ())), Row(trunk=(1, 2, 3, 4, 5))]
    pack = pack_rows(rows)
    with torch.no_grad():
        found = packed_logits(model, pack, torch.arange(11))
        first, second, other = (
            model(input_ids=torch.tensor([ids])).logits[0]
            for ids in ((1, 4, 6, 7, 8), (1, 4, 6, 9), (1, 2, 3, 4, 5))
        )
    torch.testing.assert_close(found, torch.cat([first, second[3:], other]), rtol=1e-5, atol=1e-5)


def test_another_sequence_in_the_pack_changes_nothing():
    model = tiny_llama(2).eval()
    with torch.no_grad():
        packs = [pack_rows([Row(trunk=(1, 5, 9)), Row(trunk=other)]) for other in ((3, 4), (60, 61, 62))]
        beside = [packed_logits(model, pack, torch.tensor([2])) for pack in packs]
    torch.testing.assert_close(beside[0], beside[1])


def test_a_model_whose_attention_is_more_than_causal_is_not_packed():
    model = tiny_llama(2)
    model.config.sliding_window = 4
    assert not can_pack(model)


def test_a_model_that_reads_its_neighbours_is_not_packed():
    model = tiny_llama(2)
    original = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: original(ids) + original(ids).mean(1, keepdim=True)
    assert not can_pack(model)
    model.config.sliding_window = None
    padded = batch_loss(model, training_batch(ITEMS, pad_id=0, device="cpu"))
    assert torch.equal(records_loss(model, ITEMS, pad_id=0), padded)


def test_attention_is_as_before_after_a_packed_pass_even_if_it_fails():
    model = tiny_llama(2)
    before = model.config._attn_implementation
    with pytest.raises(IndexError):
        packed_logits(model, pack_rows([Row(trunk=(1, 10**6))]), torch.tensor([0]))
    assert model.config._attn_implementation == before


def test_choices_score_the_same_packed_padded_and_in_small_passes(monkeypatch):
    model, tokenizer = tiny_llama(2), tiny_tokenizer()
    records = [
        Record(prompt="the first question", choices=(" yes", " no it is not", " no it was"), label=0),
        Record(prompt="another", choices=(" a", " b"), label=1),
        Record(prompt="a third one that is longer", choices=(" one answer only",), label=0),
    ]
    together = choice_loglikelihoods(model, tokenizer, records, max_tokens=64)
    monkeypatch.setattr(choices, "PASS_TOKENS", 1)
    alone = choice_loglikelihoods(model, tokenizer, records, max_tokens=64)
    monkeypatch.setattr(choices, "can_pack", lambda model: False)
    padded = choice_loglikelihoods(model, tokenizer, records, max_tokens=64)
    for a, b, c in zip(together, alone, padded, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert a == pytest.approx(c, abs=1e-4)


def test_a_lora_layer_falls_back_to_pefts_own_pass_and_agrees_with_it():
    x = torch.tensor([[1, 5, 9, 12]])
    ours, peft = tuned_model(tiny_llama(2)), tuned_model(tiny_llama(2), dropout=0.5)
    assert torch.allclose(ours(x).logits, peft.eval()(x).logits, atol=1e-5)
    with ours.disable_adapter():
        assert torch.allclose(ours(x).logits, tiny_llama(2)(x).logits, atol=1e-6)


def test_a_lora_layers_gradient_can_be_differentiated_once_more():
    found = []
    for dropout in (0.0, 1e-9):  # ours, PEFT's
        model = tuned_model(tiny_llama(2), dropout=dropout)
        model.get_base_model().set_attn_implementation("eager")  # the fused kernel has no second derivative
        parameters = trained_parameters(model)
        loss = batch_loss(model, training_batch(ITEMS, pad_id=0, device="cpu"))
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        total = sum(g.square().sum() for g in gradients)
        found.append(torch.autograd.grad(total, parameters))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Fails(torch.nn.Module):
    """A model whose every pass raises the given error."""

    def __init__(self, error):
        super().__init__()
        self.config, self.error = tiny_llama(2).config, error
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, **_):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")],
)
def test_memory_that_runs_out_in_the_trial_says_nothing_of_the_model(error, monkeypatch):
    model = Fails(error)
    monkeypatch.setattr(packed, "packed_logits", lambda *_: model())
    with pytest.raises(type(error)):
        can_pack(model)
    assert model not in packed._TRIED


def test_why_a_model_reads_no_packs_is_logged(caplog, monkeypatch):
    model = Fails(TypeError("packing: unknown"))
    monkeypatch.setattr(packed, "packed_logits", lambda *_: model())
    with caplog.at_level("INFO"):
        assert not can_pack(model)
    assert "packing: unknown" in caplog.text
