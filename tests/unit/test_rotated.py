"""A proxy whose hidden states are rotated: what it predicts, holds, and how its difference is lifted."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.compress.defences.rotated import owners_stream
from fedproxy_secure.compress.fidelity import fidelity_record
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.compress.verbatim import verbatim_share
from fedproxy_secure.config import HealConfig
from fedproxy_secure.fuse.plug_back import add_deltas
from fedproxy_secure.models.llm import blocks_of, sharing_copy
from tests.support.defended import WINDOWS, llm, logits, proxy_of, random_deltas, unfinished


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


def test_what_is_measured_before_healing_is_the_proxy_that_clients_would_get():
    model = llm()
    proxy, plain = unfinished("rotated", model), unfinished("drop_blocks", model)
    before = {name: weight.clone() for name, weight in proxy.model.state_dict().items()}
    measured, in_the_clear = (fidelity_record(model, p, WINDOWS) for p in (proxy, plain))
    assert in_the_clear["verbatim_share"] > 0.5
    assert measured["verbatim_share"] < 0.002
    assert measured["fidelity"] == in_the_clear["fidelity"]
    assert all(torch.equal(before[name], weight) for name, weight in proxy.model.state_dict().items())
    assert verbatim_share(model, proxy.model, proxy.plan) > 0.5  # healing goes on with the unrotated one


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
