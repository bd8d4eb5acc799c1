"""Aligning moves the fused LLM's states as tuning moved the proxy's, and changes nothing but last maps."""

from dataclasses import replace

import pytest
import torch

from fedproxy_secure.compress.block_states import predictions_and_states
from fedproxy_secure.compress.drop_blocks import build_proxy
from fedproxy_secure.config import AdapterConfig, PlugBackConfig, parse_config
from fedproxy_secure.experiments.run_report import plug_back_notes
from fedproxy_secure.fuse.stage import fuse
from fedproxy_secure.models.adapters import attach, set_vector, trained_parameters
from tests.support.tiny import louder, public_windows, same_weights, tiny_llama

BLOCKS = 6
TEXT = public_windows(160)


@pytest.fixture(scope="module")
def tuned_proxy():
    """Return an LLM, its proxy of half the blocks, and that proxy with an adapter that is not zero."""
    llm = louder(tiny_llama(BLOCKS))
    proxy = build_proxy(llm, remove_ratio=0.5, importance="uniform", windows=public_windows())
    tuned = attach(proxy.model, AdapterConfig(rank=2), seed=0)
    size = sum(p.numel() for p in trained_parameters(tuned))
    set_vector(tuned, torch.randn(size, generator=torch.Generator().manual_seed(0)).mul(0.3).numpy())
    return llm, proxy, tuned


def fused(tuned_proxy, align_windows, **settings):
    llm, proxy, tuned = tuned_proxy
    chosen = PlugBackConfig(align_windows=align_windows, **settings)
    return fuse(chosen, llm, proxy, tuned, windows=TEXT[:8], align_on=TEXT)


@torch.no_grad()
def distance_from_wanted(tuned_proxy, model, text):
    """Return the mean relative error between a fused LLM's hidden states and the wanted ones."""
    llm, proxy, tuned = tuned_proxy
    _, own = predictions_and_states(llm, text)
    _, after = predictions_and_states(tuned.get_base_model(), text)
    with tuned.disable_adapter():
        _, before = predictions_and_states(tuned.get_base_model(), text)
    _, found = predictions_and_states(model, text)
    ends = [following - 1 for following in (*proxy.plan.kept[1:], BLOCKS)]
    errors = []
    for index, place in enumerate(ends):
        wanted = own[place] + (after[index] - before[index])
        errors.append(((found[place] - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())
    return float(torch.stack(errors).mean())


def test_states_come_closer_to_where_tuning_moved_the_proxys_on_text_it_never_saw(tuned_proxy):
    other = public_windows(220)[160:]
    plain, aligned = (fused(tuned_proxy, n).llm for n in (0, 120))
    assert distance_from_wanted(tuned_proxy, aligned, other) < 0.8 * distance_from_wanted(
        tuned_proxy, plain, other
    )


def test_only_the_last_maps_at_the_ends_of_places_differ_from_the_plain_fused_llm(tuned_proxy):
    _, proxy, _ = tuned_proxy
    plain, aligned = (fused(tuned_proxy, n) for n in (0, 24))
    changed = {
        name
        for (name, one), (_, other) in zip(
            plain.llm.named_parameters(), aligned.llm.named_parameters(), strict=True
        )
        if not torch.equal(one, other)
    }
    ends = [following - 1 for following in (*proxy.plan.kept[1:], BLOCKS)]
    assert changed <= {f"model.layers.{end}.mlp.down_proj.weight" for end in ends}
    assert len(changed) == aligned.aligned_blocks > 0
    assert plain.aligned_blocks == 0


def test_the_llm_and_the_tuned_proxy_stay_as_they_were(tuned_proxy):
    llm, _, tuned = tuned_proxy
    before = [p.clone() for p in (*llm.parameters(), *tuned.parameters())]
    fused(tuned_proxy, 24)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*llm.parameters(), *tuned.parameters()), strict=True)
    )


def test_where_tuning_moved_nothing_the_llm_stays_as_it_was():
    llm = louder(tiny_llama(BLOCKS))
    proxy = build_proxy(llm, remove_ratio=0.5, importance="uniform", windows=public_windows())
    tuned = attach(proxy.model, AdapterConfig(rank=2), seed=0)  # a fresh adapter does nothing
    made = fuse(PlugBackConfig(align_windows=8), llm, proxy, tuned, windows=TEXT[:8], align_on=TEXT)
    assert made.aligned_blocks == 0
    assert same_weights(made.llm, llm)


def test_alignment_comes_after_the_search_for_a_factor(tuned_proxy):
    found = fused(tuned_proxy, 24, scale="public_text")
    assert found.search.tried
    assert found.aligned_blocks > 0


def test_a_proxy_with_hidden_states_of_its_own_is_not_aligned(tuned_proxy):
    llm, proxy, tuned = tuned_proxy
    rotated = replace(proxy, own_states=True)
    made = fuse(PlugBackConfig(align_windows=24), llm, rotated, tuned, windows=TEXT[:8], align_on=TEXT)
    assert made.aligned_blocks == made.aligned_windows == 0


@pytest.mark.parametrize(
    ("asked", "told"), [(24, "is aligned on 24 windows"), (500, "=500; the text has no")]
)
def test_a_report_states_the_windows_that_alignment_read_not_those_that_the_settings_ask_for(
    tuned_proxy, asked, told
):
    made = fused(tuned_proxy, asked)
    assert made.aligned_windows == min(asked, len(TEXT))
    config = parse_config({"plug_back": {"align_windows": asked}})
    (note,) = plug_back_notes(config, {}, [made.aligned_windows, 0])
    assert f"aligned on {min(asked, len(TEXT))} windows of public text" in note
    assert told in note
    (note,) = plug_back_notes(config, {}, [0])
    assert note.startswith("Plug-back: no result says that its fused LLM was aligned")


def test_alignment_on_no_windows_is_no_alignment_and_has_its_digest():
    digests = [
        parse_config({"plug_back": {"scale": 2, **said}}).sha256()
        for said in ({}, {"align_windows": 0}, {"align_windows": 1})
    ]
    assert digests[0] == digests[1] != digests[2]
