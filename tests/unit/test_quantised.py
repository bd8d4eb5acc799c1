"""Weights of few bits, also after healing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.compress.defences.moments import linear_maps
from fedproxy_secure.compress.defences.quantised import rounded
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.config import HealConfig
from fedproxy_secure.models.llm import blocks_of
from tests.support.defended import WINDOWS, llm, unfinished


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
