"""Proxies made to leak have marks that clients see before they read a record; honest proxies have none."""

import logging

import pytest
import torch

from attacks.integrity import proxy_traps
from fedproxy_secure.errors import DataError, ModelError
from fedproxy_secure.models.llm import load_llm, with_blocks
from fedproxy_secure.proxy_intake.public_text import (
    OWN_TEXT,
    bundled_texts,
    check_public_text,
    frequency_loss,
)
from fedproxy_secure.proxy_intake.weights import check_weights, leverage, rows_alike
from tests.support.tiny import tiny_llama, tiny_tokenizer

TOKENS = (500, 700, 900)


@pytest.fixture
def proxy():
    """Half of the embedded LLM, with weights of its own."""
    model, tokenizer = load_llm("demo", device="cpu", dtype="float32")
    return with_blocks(model, [0, 2, 5, 7]), tokenizer


def checked(model, tokenizer):
    check_weights(model, tokenizer)
    check_public_text(model, tokenizer, max_tokens=128)


@pytest.mark.parametrize("kept", [[0, 7], [0, 2, 5, 7], [0, 1, 2, 4, 6, 7]], ids=str)
def test_an_honest_proxy_passes_without_a_word(kept, caplog):
    model, tokenizer = load_llm("demo", device="cpu", dtype="float32")
    checked(with_blocks(model, kept), tokenizer)
    assert not caplog.records


def test_a_model_that_was_not_trained_passes_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        checked(tiny_llama(), tiny_tokenizer())
    assert "which token frequencies reach" in caplog.text


@pytest.mark.parametrize(
    ("craft", "rule"),
    [
        (proxy_traps.zeros, "tokens have a zero embedding"),
        (proxy_traps.column, "on a direction of the embeddings"),
    ],
)
def test_a_trap_in_the_embeddings_is_refused(proxy, craft, rule):
    craft(*proxy, TOKENS)
    with pytest.raises(ModelError, match=rule):
        check_weights(*proxy)


def test_a_number_that_ordinary_text_leaves_at_zero_is_refused_however_many_rare_tokens_have_it(proxy):
    model, tokenizer = proxy
    common = {i for text in bundled_texts() for i in tokenizer(text, add_special_tokens=False)["input_ids"]}
    with torch.no_grad():
        model.get_input_embeddings().weight[sorted(common), 5] = 0.0
    check_weights(model, tokenizer)
    with pytest.raises(ModelError, match="on ordinary text one input coordinate"):
        check_public_text(model, tokenizer, max_tokens=128)


@pytest.mark.parametrize("craft", [proxy_traps.faint, proxy_traps.neuron])
def test_a_trap_whose_maker_knows_the_bounds_passes(proxy, craft):
    """SECURITY.md says what it reads then: differential privacy bounds that, this check does not."""
    craft(*proxy, TOKENS)
    checked(*proxy)


def test_a_row_that_outweighs_all_others_is_refused(proxy):
    model, tokenizer = proxy
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] *= 1e4
    with pytest.raises(ModelError, match="times as long as its median row; must be at most 100"):
        check_weights(model, tokenizer)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e30])
def test_a_block_unlike_the_others_is_refused(proxy, factor):
    model, tokenizer = proxy
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(factor)
    with pytest.raises(ModelError, match="times as large in one block as in another"):
        check_weights(model, tokenizer)


def test_a_client_s_own_text_refuses_a_proxy_that_does_not_know_it(proxy, tmp_path, monkeypatch):
    own = tmp_path / "own.txt"
    monkeypatch.setenv(OWN_TEXT, str(own))
    own.write_text(bundled_texts()[0])
    check_public_text(*proxy, max_tokens=128)
    own.write_text(bundled_texts()[1])  # words that the embedded LLM has never seen
    with pytest.raises(ModelError, match=r"predicts public text at .* nats a token; must be below"):
        check_public_text(*proxy, max_tokens=128)
    own.write_text("too short")
    with pytest.raises(ModelError, match="different tokens of public text; must be 16 or more"):
        check_public_text(*proxy, max_tokens=128)
    own.unlink()
    with pytest.raises(DataError, match="FEDPROXY_PUBLIC_TEXT: cannot be read"):
        check_public_text(*proxy, max_tokens=128)


def test_frequencies_alone_predict_a_text_of_one_token_and_no_text_of_all_different_ones():
    same, different = torch.zeros(1, 101, dtype=torch.int64), torch.arange(101)[None]
    assert frequency_loss(same, vocabulary=1000) == pytest.approx(-torch.tensor(0.5005).log().item())
    assert frequency_loss(different, vocabulary=1000) == pytest.approx(torch.tensor(2000.0).log().item())


def test_leverage_is_1_for_a_row_alone_in_a_direction_and_adds_up_to_the_width():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows[1:, 0] = 0.0
    found = leverage(rows)
    assert float(found[0]) == pytest.approx(1, abs=1e-4)
    assert float(found.sum()) == pytest.approx(4, abs=1e-3)


def test_rows_alike_counts_zeros_and_copies_once():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert rows_alike(rows) == 0.5
