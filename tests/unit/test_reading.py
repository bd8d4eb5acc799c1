"""Logits after chosen tokens are a model's own, packed or padded, and few are held at once."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from attacks.base import Budget, OutOfTime
from attacks.membership.reading import logits_after
from fedproxy_secure.models.packing.packed import can_pack
from tests.support.tiny import VOCABULARY, tiny_llama


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval()


def does_not_pack():
    model = tiny_llama(2)
    model.config.sliding_window = 4  # is read as an attribute alone: the model ignores it
    return model


MODELS = {"llama": lambda: tiny_llama(2), "gpt2": tiny_gpt2, "padded": does_not_pack}
TEXTS = [[1, 40, 41, 42, 43], [1, 50], [1, 60, 61], [1, 70, 71, 72]]
PLACES = [[0, 3], [1], [], [3, 1]]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("most", [2**24, 3 * VOCABULARY])
def test_logits_after_tokens_are_those_of_each_text_alone(kind, most, monkeypatch):
    monkeypatch.setattr("attacks.membership.reading.LOGITS", most)
    model = MODELS[kind]()
    assert can_pack(model) == (kind != "padded")
    found = list(logits_after(model, TEXTS, PLACES))
    assert len(found) == len(TEXTS)
    for text, places, logits in zip(TEXTS, PLACES, found, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([text])).logits[0]
        np.testing.assert_allclose(logits.numpy(), alone[places].numpy(), atol=1e-5)


def test_no_more_logits_are_held_than_fit_beside_a_model(monkeypatch):
    monkeypatch.setattr("attacks.membership.reading.LOGITS", 3 * VOCABULARY)
    model, sizes = tiny_llama(2), []
    model.lm_head.register_forward_hook(lambda module, inputs, out: sizes.append(out.shape[-2]))
    list(logits_after(model, TEXTS * 3, [[0], [0, 1], [0], [1, 2]] * 3))
    assert max(sizes[-6:]) <= 3


def test_reading_stops_when_the_seconds_are_over():
    with pytest.raises(OutOfTime):
        list(logits_after(tiny_llama(2), TEXTS, PLACES, budget=Budget(seconds=1.0, began=0.0)))
