"""The fit of healing is the ridge regression it says it is, in order, and never makes a block worse."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from fedproxy_secure.compress.block_states import predictions_and_states
from fedproxy_secure.compress.distance import distance
from fedproxy_secure.compress.drop_blocks import build_proxy
from fedproxy_secure.compress.healing import heal
from fedproxy_secure.compress.healing.fit import fit_blocks
from fedproxy_secure.config import HealConfig
from fedproxy_secure.models.last_map import RIDGE
from fedproxy_secure.models.llm import blocks_of
from tests.support.tiny import louder, public_windows, same_weights, tiny_llama

BLOCKS, RATIO = 6, 0.5
EVERY = range(BLOCKS)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=BLOCKS, n_embd=16, n_head=2, vocab_size=64)).eval()


def with_a_norm_after_the_last_map():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            num_hidden_layers=BLOCKS,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=64,
        )
    ).eval()


def llm_and_proxy(made=lambda: tiny_llama(BLOCKS)):
    llm = louder(made())
    proxy = build_proxy(llm, remove_ratio=RATIO, importance="uniform", windows=public_windows())
    for block in blocks_of(proxy.model):
        for p in block.parameters():
            p.data = p.data.clone()
    return llm, proxy


@torch.no_grad()
def apart(proxy, llm, windows):
    found = distance(proxy.model, llm, proxy.plan, windows)
    return float(found.kl) / windows.numel(), float(found.states) / windows.numel()


@pytest.mark.parametrize("made", [lambda: tiny_llama(BLOCKS), gpt2], ids=["llama", "gpt2"])
def test_a_fit_brings_states_closer_on_text_it_never_saw_and_leaves_the_llm_as_it_was(made):
    llm, proxy = llm_and_proxy(made)
    untouched, other = louder(made()), public_windows(200)[120:]
    _, before = apart(proxy, llm, other)
    fit_blocks(proxy.model, llm, proxy.plan, public_windows(120), blocks=EVERY)
    _, after = apart(proxy, llm, other)
    assert after < 0.8 * before
    assert same_weights(llm, untouched)


def test_the_change_of_a_map_is_the_ridge_regression_on_what_it_reads():
    llm, proxy = llm_and_proxy()
    first = proxy.plan.before_gaps[0]
    linear = blocks_of(proxy.model)[first].mlp.down_proj
    before, windows = linear.weight.detach().clone(), public_windows(8)
    read = []
    handle = linear.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        _, states = predictions_and_states(proxy.model, windows)
        _, theirs = predictions_and_states(llm, windows)
    handle.remove()
    fit_blocks(proxy.model, llm, proxy.plan, windows, blocks=[first])

    target = theirs[proxy.plan.kept[first + 1] - 1].flatten(0, 1).double()
    weight = 1 / target.norm(dim=-1, keepdim=True)
    a = weight * read[0].detach().flatten(0, 1).double()
    missing = weight * (target - states[first].flatten(0, 1).double())
    ridge = (RIDGE * a.square().sum() / a.shape[1]).sqrt()
    rows = torch.cat([a, ridge * torch.eye(a.shape[1])])
    wanted = torch.cat([missing, torch.zeros(a.shape[1], missing.shape[1])])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close((linear.weight - before).double(), expected, rtol=1e-3, atol=1e-5)


def test_blocks_before_the_first_gap_stay_the_llms_own():
    llm, proxy = llm_and_proxy()
    fit_blocks(proxy.model, llm, proxy.plan, public_windows(), blocks=EVERY)
    same = [
        same_weights(block, blocks_of(llm)[proxy.plan.to_llm(i)])
        for i, block in enumerate(blocks_of(proxy.model))
    ]
    first = proxy.plan.before_gaps[0]
    assert same == [True] * first + [False] * (len(same) - first)


def test_only_the_blocks_that_are_asked_for_are_changed():
    llm, proxy = llm_and_proxy()
    fit_blocks(proxy.model, llm, proxy.plan, public_windows(), blocks=proxy.plan.before_gaps[:1])
    changed = [
        i
        for i, block in enumerate(blocks_of(proxy.model))
        if not same_weights(block, blocks_of(llm)[proxy.plan.to_llm(i)])
    ]
    assert changed == list(proxy.plan.before_gaps[:1])


def test_where_a_norm_follows_the_last_map_no_block_is_made_worse():
    """The norm makes the fit inexact; a change that increases the error is taken back."""
    llm, proxy = llm_and_proxy(with_a_norm_after_the_last_map)
    _, before = apart(proxy, llm, public_windows())
    told = []
    fit_blocks(
        proxy.model,
        llm,
        proxy.plan,
        public_windows(),
        blocks=EVERY,
        on_block=lambda block, error: told.append((block, error)),
    )
    _, after = apart(proxy, llm, public_windows())
    assert after <= before
    assert [block for block, _ in told] == list(range(len(proxy.plan.kept)))
    assert sum(error for _, error in told) / len(told) == pytest.approx(after, rel=1e-4)


def test_several_passes_give_what_one_gives(monkeypatch):
    fitted = []
    for size in (5, 24):
        monkeypatch.setattr("fedproxy_secure.compress.healing.fit.windows_a_pass", lambda *_, n=size: n)
        llm, proxy = llm_and_proxy()
        fit_blocks(proxy.model, llm, proxy.plan, public_windows(24), blocks=EVERY)
        fitted.append([p.detach() for p in proxy.model.parameters()])
    for one, other in zip(*fitted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_healing_may_be_the_fit_alone_and_counts_what_it_read():
    llm, proxy = llm_and_proxy()
    healed = heal(proxy.model, llm, public_windows(), HealConfig(fit_windows=12), seed=0, plan=proxy.plan)
    assert healed.state_error_after < 0.9 * healed.state_error_before
    assert healed.tokens == 12 * 16
    assert HealConfig(fit_windows=12).heals
    assert not HealConfig().heals


def test_steps_after_the_fit_begin_where_it_ended():
    settings = HealConfig(fit_windows=20, steps=4, learning_rate=1e-5)
    llm, proxy = llm_and_proxy()
    no_steps = settings.model_copy(update={"steps": 0})
    fit_alone = heal(proxy.model, llm, public_windows(), no_steps, seed=0, plan=proxy.plan)
    llm, proxy = llm_and_proxy()
    both = heal(proxy.model, llm, public_windows(), settings, seed=0, plan=proxy.plan)
    assert both.state_error_after == pytest.approx(fit_alone.state_error_after, rel=0.05)
    assert both.state_error_before == fit_alone.state_error_before


def test_a_healing_killed_in_its_steps_goes_on_without_fitting_again(tmp_path, monkeypatch):
    monkeypatch.setattr("fedproxy_secure.compress.healing.distil.SAVE_EVERY_S", 0.0)
    settings = HealConfig(fit_windows=12, steps=6, learning_rate=1e-3)
    llm, unbroken = llm_and_proxy()
    expected = heal(unbroken.model, llm, public_windows(), settings, seed=0, plan=unbroken.plan)

    def kill(step: int, _loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    llm, broken = llm_and_proxy()
    with pytest.raises(KeyboardInterrupt):
        heal(
            broken.model, llm, public_windows(), settings, seed=0, plan=broken.plan, folder=tmp_path,
            on_step=kill,
        )  # fmt: skip
    llm, again = llm_and_proxy()
    fitted: list[int] = []
    found = heal(
        again.model, llm, public_windows(), settings, seed=0, plan=again.plan, folder=tmp_path,
        on_block=lambda block, _: fitted.append(block),
    )  # fmt: skip
    assert fitted == []
    assert same_weights(again.model, unbroken.model)
    assert found.kl_after == expected.kl_after
