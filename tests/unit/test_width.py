"""A proxy of less width: which channels and heads stay, and where its difference lands."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.compress.defences.maps import READERS
from fedproxy_secure.compress.defences.width import fitted
from fedproxy_secure.models.llm import blocks_of
from tests.support.defended import llm, logits, proxy_of, random_deltas


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
