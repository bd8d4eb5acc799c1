"""What holds for every record: responses survive cutting, records do not couple."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.data.choices import choice_loglikelihoods
from fedproxy_secure.data.encode import batch_loss, encode_records, prompt_ids, training_batch
from fedproxy_secure.data.records import Record
from tests.support.tiny import tiny_llama, tiny_tokenizer

MODEL, TOKENIZER = tiny_llama(2), tiny_tokenizer()
TEXT = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=40)
RECORDS = st.builds(
    lambda prompt, choices, label: Record(
        prompt=prompt, choices=tuple(f" {c[:20]}" for c in choices), label=label % len(choices)
    ),
    TEXT,
    st.lists(TEXT, min_size=1, max_size=3),
    st.integers(0, 5),
)
# Each example runs a model; deadlines would measure the machine.
few = settings(max_examples=25, deadline=None)


@given(record=RECORDS, max_tokens=st.integers(24, 70))
@settings(max_examples=100, deadline=None)
def test_cutting_never_touches_the_response_and_keeps_the_prompts_end(record, max_tokens):
    found = encode_records([record], TOKENIZER, max_tokens=max_tokens)
    (item,) = found.items
    assert len(item.ids) <= max_tokens
    assert item.ids[0] == TOKENIZER.bos_token_id
    response = TOKENIZER(record.choices[record.label], add_special_tokens=False)["input_ids"]
    assert list(item.ids[item.response_start :]) == [*response, TOKENIZER.eos_token_id]
    prompt, kept = prompt_ids(record.prompt, TOKENIZER), list(item.ids[1 : item.response_start])
    assert kept == prompt[len(prompt) - len(kept) :]
    assert found.truncated == (len(kept) + 1 < len(prompt))


@given(records=st.lists(RECORDS, min_size=1, max_size=6))
@few
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_records(records):
    items = encode_records(records, TOKENIZER, max_tokens=70).items
    with torch.no_grad():
        together = batch_loss(MODEL, training_batch(items, pad_id=0, device="cpu"))
        alone = [batch_loss(MODEL, training_batch([i], pad_id=0, device="cpu")) for i in items]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)


@given(records=st.lists(RECORDS, min_size=1, max_size=5))
@few
def test_a_records_scores_do_not_depend_on_the_records_beside_it_or_their_order(records):
    together = choice_loglikelihoods(MODEL, TOKENIZER, records, max_tokens=70)
    turned = choice_loglikelihoods(MODEL, TOKENIZER, records[::-1], max_tokens=70)[::-1]
    for record, a, b in zip(records, together, turned, strict=True):
        (alone,) = choice_loglikelihoods(MODEL, TOKENIZER, [record], max_tokens=70)
        assert a == pytest.approx(alone, abs=1e-3)
        assert b == pytest.approx(alone, abs=1e-3)
