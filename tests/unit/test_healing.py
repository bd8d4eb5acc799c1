"""Healing: the proxy comes closer to the LLM, nothing of that is plugged back, and a killed one goes on."""

import pytest
import torch

from fedproxy_secure.compress.drop_blocks import build_proxy
from fedproxy_secure.compress.fidelity import fidelity
from fedproxy_secure.compress.healing import distil, heal
from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.compress.verbatim import verbatim_share
from fedproxy_secure.config import AdapterConfig, HealConfig
from fedproxy_secure.errors import TrainingError
from fedproxy_secure.fuse.plug_back import plug_back
from fedproxy_secure.models.adapters import attach, block_deltas, set_vector, trained_parameters
from fedproxy_secure.models.llm import blocks_of, with_blocks
from tests.support.tiny import public_windows, same_weights, tiny_llama

SETTINGS = HealConfig(steps=12, batch_size=4, learning_rate=3e-3)


def llm_and_proxy():
    llm = tiny_llama(4).eval()
    return llm, build_proxy(llm, remove_ratio=0.5, importance="uniform", windows=public_windows())


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_healing_brings_the_proxy_closer_to_the_llm_on_text_it_never_saw_and_leaves_the_llm_as_it_was():
    llm, proxy = llm_and_proxy()
    before, other = weights(llm), public_windows(40)[24:]
    apart = fidelity(llm, proxy.model, proxy.plan, other).kl_nats
    healed = heal(proxy.model, llm, public_windows(), SETTINGS, seed=0)
    assert healed.kl_after < 0.9 * healed.kl_before
    assert fidelity(llm, proxy.model, proxy.plan, other).kl_nats < apart
    assert all(torch.equal(a, b) for a, b in zip(before, weights(llm), strict=True))
    assert healed.tokens == 12 * 4 * 16


def test_healing_that_minds_hidden_states_brings_them_closer_than_healing_that_does_not():
    found = {}
    for weight in (0.0, 100.0):
        llm, proxy = llm_and_proxy()
        settings = SETTINGS.model_copy(update={"state_weight": weight, "steps": 100})
        found[weight] = heal(proxy.model, llm, public_windows(), settings, seed=0, plan=proxy.plan)
    assert found[100.0].state_error_before == found[0.0].state_error_before > 0
    assert found[100.0].state_error_after < 0.97 * found[0.0].state_error_after


def test_a_healed_proxy_holds_no_block_of_the_llm_verbatim_but_its_embeddings():
    llm, proxy = llm_and_proxy()
    exact = verbatim_share(llm, proxy.model, proxy.plan)
    heal(proxy.model, llm, public_windows(), SETTINGS, seed=0)
    blocks = {id(p) for b in blocks_of(llm) for p in b.parameters()}
    outside = sum(p.numel() for p in llm.parameters() if id(p) not in blocks)
    held = verbatim_share(llm, proxy.model, proxy.plan)
    assert held == outside / sum(p.numel() for p in llm.parameters()) < exact


def test_only_what_clients_added_to_a_healed_proxy_is_plugged_back():
    llm, proxy = llm_and_proxy()
    heal(proxy.model, llm, public_windows(), SETTINGS, seed=0)
    tuned = attach(proxy.model, AdapterConfig(rank=2), seed=0)
    assert same_weights(plug_back(llm, proxy, block_deltas(tuned)), llm)
    size = sum(p.numel() for p in trained_parameters(tuned))
    set_vector(tuned, torch.full((size,), 0.1).numpy())
    fused = plug_back(llm, proxy, block_deltas(tuned))
    for (block, name), delta in proxy.lift(block_deltas(tuned)).items():
        theirs = blocks_of(llm)[block].get_parameter(name)
        torch.testing.assert_close(blocks_of(fused)[block].get_parameter(name), theirs + delta)


def test_a_killed_healing_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "SAVE_EVERY_S", 0.0)
    unbroken, broken = llm_and_proxy()[1], llm_and_proxy()[1]
    llm = tiny_llama(4).eval()
    expected = heal(unbroken.model, llm, public_windows(), SETTINGS, seed=0)

    def kill(step: int, kl: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(broken.model, llm, public_windows(), SETTINGS, seed=0, folder=tmp_path, on_step=kill)
    steps: list[int] = []
    again = llm_and_proxy()[1]
    found = heal(
        again.model, llm, public_windows(), SETTINGS, seed=0, folder=tmp_path,
        on_step=lambda step, kl: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(7, 13))
    assert found.kl_before == expected.kl_before
    assert found.kl_after == expected.kl_after
    assert same_weights(again.model, unbroken.model)


def test_a_finished_healing_is_loaded_and_one_of_other_inputs_is_not(tmp_path):
    llm, proxy = llm_and_proxy()
    first = heal(proxy.model, llm, public_windows(), SETTINGS, seed=0, folder=tmp_path)
    steps: list[int] = []

    def repeated(seed: int):
        again = llm_and_proxy()[1]
        found = heal(
            again.model, llm, public_windows(), SETTINGS, seed=seed, folder=tmp_path,
            on_step=lambda step, kl: steps.append(step),
        )  # fmt: skip
        return again, found

    again, found = repeated(seed=0)
    assert (found, steps) == (first, [])
    assert same_weights(again.model, proxy.model)
    other, _ = repeated(seed=1)
    assert len(steps) == SETTINGS.steps
    assert not same_weights(other.model, proxy.model)


def test_a_state_that_a_power_cut_damaged_is_begun_anew_with_one_line(tmp_path, caplog):
    llm, proxy = llm_and_proxy()
    expected = heal(proxy.model, llm, public_windows(), SETTINGS, seed=0)
    llm, again = llm_and_proxy()
    (tmp_path / "healing.safetensors").write_bytes(b"not safetensors")
    found = heal(again.model, llm, public_windows(), SETTINGS, seed=0, folder=tmp_path)
    assert found.kl_after == expected.kl_after
    assert same_weights(again.model, proxy.model)
    assert "healing.safetensors: is damaged, healing begins anew" in caplog.text


def test_a_learning_rate_that_diverges_ends_in_one_line():
    llm, proxy = llm_and_proxy()
    with pytest.raises(TrainingError, match=r"healing: loss=.* lower heal.learning_rate"):
        heal(proxy.model, llm, public_windows(), HealConfig(steps=30, learning_rate=1e30), seed=0)


def test_healing_of_gaps_changes_only_the_blocks_before_them():
    llm = tiny_llama(4).eval()
    proxy = build_proxy(llm, remove_ratio=0.25, importance="uniform", windows=public_windows())
    assert proxy.plan is not None
    settings = SETTINGS.model_copy(update={"blocks": "gaps"})
    healed = heal(proxy.model, llm, public_windows(), settings, seed=0, plan=proxy.plan)
    assert healed.kl_after < healed.kl_before
    same = [
        same_weights(block, blocks_of(llm)[proxy.plan.to_llm(i)])
        for i, block in enumerate(blocks_of(proxy.model))
    ]
    assert [i for i, equal in enumerate(same) if not equal] == list(proxy.plan.before_gaps)


def test_healing_of_gaps_changes_all_blocks_where_only_the_first_are_missing():
    llm, plan = tiny_llama(4).eval(), BlockPlan(llm_blocks=4, kept=(2, 3))
    proxy = with_blocks(llm, list(plan.kept)).eval()
    settings = SETTINGS.model_copy(update={"blocks": "gaps", "steps": 1})
    heal(proxy, llm, public_windows(), settings, seed=0, plan=plan)
    pairs = zip(blocks_of(proxy), blocks_of(llm)[2:], strict=True)
    assert not any(same_weights(mine, original) for mine, original in pairs)
