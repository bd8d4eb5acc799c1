"""DAGER's published setting: the gradient of a model's own weights, no adapter."""

import numpy as np
import pytest

from tests.support.full_weights import open_model
from tests.support.lab import records


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_gradient_of_a_models_own_weights_gives_a_small_batch_away_word_for_word(kind, count):
    items = records(np.random.default_rng(0), count, tokens=40, length=10)
    named, sequences = open_model(kind).recovered(items, longest=10)
    assert set(np.flatnonzero(named).tolist()) == {t for item in items for t in item.ids[:-1]}
    assert set(sequences) == {item.ids[:-1] for item in items}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_batch_of_more_inputs_than_the_hidden_size_is_not_told_from_any_other(kind):
    items = records(np.random.default_rng(0), 12, tokens=200, length=10)
    assert len({item.ids[:n] for item in items for n in range(1, 10)}) > 64
    named, sequences = open_model(kind).recovered(items, longest=10)
    assert not named.any()
    assert sequences == ()


def test_close_to_the_hidden_size_no_absent_token_is_named_by_chance():
    """With few free dimensions absent tokens come close to the span: here within .02 of it."""
    for seed in range(3):
        items = records(np.random.default_rng(seed), 7, tokens=200, length=10)
        named, _ = open_model("gpt2").recovered(items, longest=10)
        assert set(np.flatnonzero(named).tolist()) <= {t for item in items for t in item.ids[:-1]}
