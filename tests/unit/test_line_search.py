"""The factor of the lifted difference is found on public text."""

import pytest
import torch
from pydantic import ValidationError

from fedproxy_secure.config import PlugBackConfig, parse_config
from fedproxy_secure.fuse.line_search import SCALES, LineSearch, divergence, line_search, scale_for
from fedproxy_secure.fuse.plug_back import add_deltas, times
from fedproxy_secure.models.llm import blocks_of
from tests.support.tiny import VOCABULARY, tiny_llama

WINDOWS = torch.randint(3, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))


def difference(model, seed=0, scale=0.02):
    drawn = torch.Generator().manual_seed(seed)
    return {
        (i, "mlp.down_proj.weight"): scale * torch.randn(16, 32, generator=drawn)
        for i in range(len(blocks_of(model)))
    }


@pytest.mark.parametrize("scale", SCALES)
def test_the_factor_that_made_the_target_is_found(scale):
    llm = tiny_llama()
    lifted = difference(llm)
    found = line_search(llm, add_deltas(llm, times(lifted, scale)), lifted, WINDOWS)
    assert found.scale == scale
    assert dict(found.tried)[scale] == pytest.approx(0, abs=1e-5)


def test_where_nothing_was_learned_the_factor_is_one():
    llm = tiny_llama()
    nothing = {place: torch.zeros_like(d) for place, d in difference(llm).items()}
    assert line_search(llm, tiny_llama(seed=1), nothing, WINDOWS).scale == 1


def test_every_factor_tried_is_told_with_its_divergence_and_the_best_of_them_is_chosen():
    llm, told = tiny_llama(), []
    lifted = difference(llm)
    tuned = add_deltas(llm, times(lifted, 1.5))
    found = line_search(
        llm, tuned, lifted, WINDOWS, on_scale=lambda scale, nats: told.append((scale, nats))
    )
    assert sorted(told) == sorted(found.tried)
    assert min(found.tried, key=lambda pair: pair[1])[0] == found.scale
    assert 1 < len(found.tried) < len(SCALES)


def test_the_divergence_is_that_of_the_formula_and_zero_of_a_model_from_itself():
    one, other = tiny_llama(seed=0), tiny_llama(seed=1)
    with torch.inference_mode():
        p, q = (m(input_ids=WINDOWS).logits.log_softmax(-1) for m in (one, other))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert divergence(one, other, WINDOWS) == pytest.approx(expected, rel=1e-4)
    assert divergence(one, one, WINDOWS) == pytest.approx(0, abs=1e-6)


def test_the_search_leaves_both_models_as_they_were():
    llm, tuned = tiny_llama(), tiny_llama(seed=1)
    before = [p.clone() for m in (llm, tuned) for p in m.parameters()]
    line_search(llm, tuned, difference(llm), WINDOWS)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (p for m in (llm, tuned) for p in m.parameters()), strict=True)
    )


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "records"])
def test_factors_that_are_none_are_refused(scale):
    with pytest.raises(ValidationError):
        PlugBackConfig(scale=scale)


def test_cells_that_were_made_without_a_factor_keep_their_digest_and_a_search_changes_it():
    plain = parse_config({})
    assert plain.plug_back.scale == 1
    searched = parse_config({"plug_back": {"scale": "public_text"}})
    assert plain.cell_sha256() != searched.cell_sha256()
    assert plain.cell_sha256(has_proxy=False) == searched.cell_sha256(has_proxy=False)
    named = parse_config({"plug_back": {"scale": 1}})
    assert named.sha256() == plain.sha256()


def test_a_named_factor_is_taken_without_reading_anything():
    found = scale_for(PlugBackConfig(scale=2.5), tiny_llama(), None, {}, WINDOWS)
    assert found == LineSearch(scale=2.5)
