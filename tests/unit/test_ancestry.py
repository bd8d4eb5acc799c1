"""Ancestry: a copy is found through rotation, permutation, cut blocks and training; strangers are not."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from attacks.base import Budget
from attacks.cli import app
from attacks.extraction.ancestry import Ancestry, ancestry, centred, likeness, turning
from attacks.extraction.lessons import predict, teach
from attacks.extraction.texts import story_windows
from fedproxy_secure.compress.defences.rotated import random_rotation, rotate
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import blocks_of, load_tokenizer, with_blocks
from tests.support.extraction import gpt2, qwen2
from tests.support.tiny import save_tiny, tiny_llama, tiny_tokenizer

BUDGET = Budget(seconds=3600)
BAR = 0.5  # far from both: strangers are below a quarter here, descendants above three quarters


@pytest.fixture(scope="module")
def stories():
    """Public text whose tokens are cut to the tiny model's, so that next tokens can be learned."""
    return story_windows(load_tokenizer("demo"), count=136, tokens=32, seed=0) % 259


def disguised(model, seed):
    """The model rotated, its channels in another order and its heads, too: the same function."""
    twin, rng = copy.deepcopy(model), np.random.default_rng(seed)
    hidden, channels = blocks_of(twin)[0].mlp.down_proj.weight.shape
    orders = [torch.from_numpy(rng.permutation(channels)) for _ in blocks_of(twin)]
    rotate(twin, random_rotation(hidden, rng), orders)
    with torch.no_grad():
        for block in blocks_of(twin):
            part = block.self_attn
            swapped = torch.cat([torch.arange(8, 16), torch.arange(8)])  # the two heads of eight numbers
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(part, name).weight.copy_(getattr(part, name).weight[swapped].clone())
            part.o_proj.weight.copy_(part.o_proj.weight[:, swapped].clone())
    return twin


def trained(model, texts, *, steps, rate=1e-3):
    twin = copy.deepcopy(model)
    teach(
        twin,
        [twin],
        predict,
        texts[:-8],
        texts[-8:],
        steps=steps,
        batch=8,
        rng=np.random.default_rng(0),
        budget=BUDGET,
        rate=rate,
        checks=1,
        keeps_best=False,
    )
    return twin


@torch.no_grad()
def outputs(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def test_a_disguised_copy_computes_the_same_and_scores_one(stories):
    llm = tiny_llama()
    copied = disguised(llm, 1)
    assert torch.allclose(outputs(copied, stories[:2]), outputs(llm, stories[:2]), atol=1e-4)
    ours, theirs = (dict(m.named_parameters()) for m in (copied, llm))
    assert not any(torch.equal(p, theirs[n]) for n, p in ours.items() if p.dim() == 2 and n in theirs)
    assert likeness(copied, llm)[0] == pytest.approx(1, abs=1e-6)


def test_a_copy_is_found_after_blocks_were_dropped_and_100_steps_of_training(stories):
    """The known-answer case: rotated, permuted, half the blocks, then all weights trained."""
    llm = tiny_llama(6)
    stolen = trained(disguised(with_blocks(llm, [0, 2, 5]), 1), stories, steps=100)
    moved = [
        float((p - q).norm() / q.norm())
        for p, q in zip(
            _matrices(stolen), _matrices(disguised(with_blocks(llm, [0, 2, 5]), 1)), strict=True
        )
    ]
    assert min(moved) > 0.01  # every matrix was trained
    score, pairs = likeness(stolen, llm)
    assert score > BAR
    assert pairs == ((0, 0), (1, 2), (2, 5))


def _matrices(model):
    return [p for p in model.parameters() if p.dim() == 2]


def test_no_pair_of_models_of_other_seeds_is_taken_for_relatives():
    """The false positive rate over 66 pairs: none, so below 4.5 % with 95 % confidence (rule of three)."""
    models = [tiny_llama(4, seed) for seed in range(12)]
    scores = [likeness(a, b)[0] for a, b in itertools.combinations(models, 2)]
    assert len(scores) == 66
    assert max(scores) < BAR


def test_strangers_that_were_trained_on_the_same_text_are_told_from_a_descendant(stories):
    """Training makes strangers more alike, and still less than a copy that was trained as long."""
    starts = [tiny_llama(2, seed) for seed in range(3)]
    tuned = [trained(m, stories, steps=40, rate=3e-3) for m in starts]
    strangers = [likeness(a, b)[0] for a, b in itertools.combinations(tuned, 2)]
    descendants = [likeness(disguised(t, 9), m)[0] for t, m in zip(tuned, starts, strict=True)]
    assert min(descendants) > max(strangers) + 0.1


@pytest.mark.parametrize("kind", [gpt2, qwen2])
def test_other_families_are_compared_too(kind):
    a, b = kind(3), kind(3)
    with torch.no_grad():
        torch.manual_seed(5)
        for p in b.parameters():
            if p.dim() == 2:
                p.copy_(torch.randn_like(p))
    assert likeness(a, a)[0] == pytest.approx(1, abs=1e-6)
    assert likeness(a, b)[0] < BAR


def test_folders_are_compared_beside_strangers(tmp_path):
    save_tiny(tmp_path / "llm")
    save_model(disguised(tiny_llama(), 1), tiny_tokenizer(), tmp_path / "copy")
    others = tuple(save_tiny(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3))
    found = ancestry(tmp_path / "copy", tmp_path / "llm", strangers=others)
    assert found.score > np.mean(found.strangers) + 5 * np.std(found.strangers)
    assert len(found.strangers) == 3
    alone = ancestry(others[0], tmp_path / "llm")
    assert len(alone.strangers) == 3  # of random weights
    assert alone.score < BAR < found.score


def told(*args):
    done = CliRunner().invoke(app, ["ancestry", *map(str, args)])
    return done.exit_code, done.output


def test_the_command_finds_a_disguised_half_of_the_llm_and_no_stranger(tmp_path):
    llm = save_tiny(tmp_path / "llm")
    save_model(with_blocks(disguised(tiny_llama(), 1), [0, 3]), tiny_tokenizer(), tmp_path / "half")
    others = [save_tiny(tmp_path / str(seed), seed=seed) for seed in range(1, 5)]
    named = [part for other in others[:3] for part in ("--stranger", other)]
    code, said = told(tmp_path / "half", "--llm", llm, *named)
    assert code == 0
    assert "score      1.000" in said
    assert "0=0, 1=3" in said
    assert "descends from the LLM: above every stranger, with a chance of at most 0.001" in said
    assert "by rank    0.25  the same without that assumption; 3 strangers show no less than 0.25" in said
    assert "random weights" not in said
    code, said = told(others[3], "--llm", llm, *named)
    assert code == 1
    assert "nothing says that it descends" in said
    assert "no proof of the opposite" in said


def test_the_command_says_that_random_strangers_are_no_ground_for_an_accusation(tmp_path):
    llm, other = save_tiny(tmp_path / "llm"), save_tiny(tmp_path / "other", seed=1)
    code, said = told(llm, "--llm", llm)
    assert code == 1
    assert "beside random weights: no ground for an accusation" in said
    assert "name three or more with --stranger" in said
    code, said = told(other, "--llm", llm)
    assert code == 1
    assert "nothing says that it descends from the LLM: the score is below 0.5" in said


def test_two_named_strangers_are_no_ground_for_an_accusation_and_three_are(tmp_path):
    llm = save_tiny(tmp_path / "llm")
    named = [
        part for seed in (1, 2, 3) for part in ("--stranger", save_tiny(tmp_path / str(seed), seed=seed))
    ]
    code, said = told(llm, "--llm", llm, *named[:4])
    assert code == 1
    assert "no ground for an accusation" in said
    assert "some or all with random weights" in said
    assert told(llm, "--llm", llm, *named)[0] == 0


def test_a_stranger_counts_once_however_it_is_named(tmp_path):
    llm, other = save_tiny(tmp_path / "llm"), save_tiny(tmp_path / "other", seed=1)
    link = tmp_path / "link"
    link.symlink_to(other)
    twin = save_tiny(tmp_path / "twin", seed=1)  # the same weights in a folder of their own
    for again in (other, link, twin):
        code, said = told(llm, "--llm", llm, "--stranger", other, "--stranger", again)
        assert code == 2
        assert "is the same model as" in said
        assert said.count("\n") == 1


def test_the_command_ends_in_one_line_for_what_cannot_be_compared(tmp_path):
    llm, big = save_tiny(tmp_path / "llm"), tiny_llama(1)
    big.resize_token_embeddings(300)
    save_model(big, tiny_tokenizer(), tmp_path / "big")
    for args, why in (
        ((tmp_path / "big", "--llm", llm), "has 300 tokens, the LLM 259"),
        ((tmp_path / "none", "--llm", llm), "none"),
        ((llm, "--llm", llm, "--error", 1), "--error 1: must be between 0 and 1"),
    ):
        code, said = told(*args)
        assert code == 2
        assert why in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_a_suspect_is_judged_by_how_far_it_is_from_strangers_and_few_of_them_tell_little():
    def judged(score, *strangers, untrained=False):
        return Ancestry(score=score, pairs=(), strangers=strangers, untrained=untrained)

    many, few = judged(0.8, 0.1, 0.2, 0.15, 0.2), judged(0.8, 0.1, 0.2)
    assert many.chance < 1e-3 < few.chance
    assert many.descends(1e-3)
    assert not few.descends(1e-3)
    assert not judged(0.8, 0.1, 0.2, 0.15, 0.2, untrained=True).descends(1e-3)
    assert judged(0.02, 0.01, 0.02, 0.03).chance == pytest.approx(0.5)
    # by simulation: one more number of the same kind reaches this chance as often as it says
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    chances = np.array([judged(row[0], *row[1:]).chance for row in draws])
    assert abs((chances <= 0.1).mean() - 0.1) < 4 * np.sqrt(0.09 / 4000)


@pytest.mark.parametrize(
    ("score", "strangers"),
    [
        (0.2, (0.01, 0.02, 0.03, 0.02)),  # a small chance, but strangers reach a quarter
        (0.05, (0.0100, 0.0105, 0.0110)),
        (0.05, (0.03, 0.03, 0.03)),  # equal scores show no spread
        (0.9, (0.03, 0.03, 0.03)),
        (0.6, (0.1, 0.1, 0.7)),  # a stranger is more alike
    ],
)
def test_close_or_equal_strangers_accuse_nobody(score, strangers):
    found = Ancestry(score=score, pairs=(), strangers=strangers, untrained=False)
    assert not found.alike(1e-3)
    assert not found.descends(1e-3)


def test_without_an_assumption_few_strangers_show_no_small_chance():
    def by_rank(score, *strangers):
        return Ancestry(score=score, pairs=(), strangers=strangers, untrained=False).by_rank

    assert by_rank(0.9, 0.1, 0.2, 0.3) == 0.25
    assert by_rank(0.25, 0.1, 0.2, 0.3) == 0.5
    assert by_rank(0.1, 0.1, 0.2, 0.3) == 1


def test_models_of_other_tokens_are_refused():
    big = tiny_llama(1)
    big.resize_token_embeddings(300)
    with pytest.raises(ModelError, match="has 300 tokens, the LLM 259"):
        likeness(big, tiny_llama(1))


def unbiased_cka(k, q):
    return float(centred(k).flatten() @ centred(q).flatten())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(4, 12), scale=st.floats(0.01, 100))
def test_cka_is_one_for_a_multiple_and_the_rotation_is_found(seed, n, scale):
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 2 * n, generator=rng, dtype=torch.float64)
    kernel = features @ features.T
    assert unbiased_cka(kernel, scale * kernel) == pytest.approx(1)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
    x = torch.randn(4 * n, n, generator=rng, dtype=torch.float64)
    assert torch.allclose(turning(x, x @ q + 3), q, atol=1e-8)


def test_unbiased_cka_is_zero_on_average_for_independent_kernels_where_the_biased_is_not():
    """Two-sided, 400 pairs of kernels over 12 things: the mean is within 4 standard errors of 0."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 12, 40, generator=rng, dtype=torch.float64) for _ in range(2))
    values = np.array([unbiased_cka(a @ a.T, b @ b.T) for a, b in zip(x, y, strict=True)])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    centre = torch.eye(12, dtype=torch.float64) - 1 / 12

    def biased(a, b):
        k, q = (centre @ m @ m.T @ centre for m in (a, b))
        return float((k * q).sum() / (k.norm() * q.norm()))

    assert np.mean([biased(a, b) for a, b in zip(x, y, strict=True)]) > 0.5
