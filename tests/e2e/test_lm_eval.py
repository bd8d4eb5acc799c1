"""lm-evaluation-harness and our own scoring agree on a tiny random Llama."""

import sys

import pytest

from fedproxy_secure.data.evaluate import Correct, choice_correct
from fedproxy_secure.data.lm_eval_task import HarnessAccuracy, lm_eval_accuracy
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from tests.support.tiny import tiny_llama, tiny_tokenizer

WORDS = "red green blue grey black white amber violet".split()


def records(count: int = 40) -> list[Record]:
    return [
        Record(
            prompt=f"Question: which one is item {i} of {WORDS[i % 8]}?\nAnswer:",
            choices=tuple(f" {WORDS[(i + j) % 8]}" for j in range(2 + i % 3)),
            label=i % 2,
        )
        for i in range(count)
    ]


def means(ours: Correct) -> HarnessAccuracy:
    return HarnessAccuracy(acc=ours.acc.mean(), acc_norm=ours.acc_norm.mean())


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.nightly) for s in (1, 2))])
def test_lm_evals_acc_and_acc_norm_equal_ours_on_choices_of_many_tokens_and_lengths(seed):
    model, tokenizer, items = tiny_llama(2, seed).train(), tiny_tokenizer(), records()
    ours = choice_correct(model, tokenizer, items, max_tokens=128)
    assert 0 < ours.acc.mean() < 1
    assert (ours.acc != ours.acc_norm).any()
    assert lm_eval_accuracy(model, tokenizer, items, "colours") == means(ours)
    assert model.training


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_choice_of_several_words_is_counted_in_characters_and_without_its_leading_space():
    """With the space counted, or bytes instead of characters, `acc_norm` would differ."""
    model, tokenizer = tiny_llama(2, 9), tiny_tokenizer()
    answers = (" éé", " a vent of the bank", " é àü", " an oak", " blue whale", " ow")
    items = [
        Record(prompt=f"Q{i} {'abcdefg'[i % 7] * (i % 5)}:", choices=answers, label=i % 6)
        for i in range(60)
    ]
    ours = choice_correct(model, tokenizer, items, max_tokens=128)
    assert ours.acc.mean() != ours.acc_norm.mean()
    assert lm_eval_accuracy(model, tokenizer, items, "words") == means(ours)


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_one_token_choices_and_braces_in_a_prompt_agree_too():
    model, tokenizer = tiny_llama(2), tiny_tokenizer()
    items = [Record(prompt=f"{{{{ {i} }}}} is", choices=("a", "b", "c"), label=i % 3) for i in range(30)]
    ours = choice_correct(model, tokenizer, items, max_tokens=64)
    assert lm_eval_accuracy(model, tokenizer, items, "letters") == means(ours)


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_tokenizer_without_a_start_token_agrees_too():
    model, tokenizer, items = tiny_llama(2), tiny_tokenizer(), records()
    tokenizer.bos_token = None
    ours = choice_correct(model, tokenizer, items, max_tokens=128)
    assert lm_eval_accuracy(model, tokenizer, items, "colours") == means(ours)


@pytest.mark.change
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_record_that_lm_eval_would_cut_is_refused():
    long = Record(prompt="x" * 200, choices=(" a", " b"), label=0)
    with pytest.raises(DataError, match="record 0: has 203 tokens; must have <= 128"):
        lm_eval_accuracy(tiny_llama(2), tiny_tokenizer(), [long], "long")


def test_choices_of_which_some_lack_the_space_are_refused():
    mixed = Record(prompt="x", choices=(" a", "b"), label=0)
    with pytest.raises(DataError, match="choices: some begin with a space and some do not"):
        lm_eval_accuracy(tiny_llama(2), tiny_tokenizer(), [mixed], "mixed")


def test_no_records_are_refused():
    with pytest.raises(DataError, match="task none: has 0 records"):
        lm_eval_accuracy(tiny_llama(2), tiny_tokenizer(), [], "none")


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    with pytest.raises(DataError, match="install the extra lm-eval"):
        lm_eval_accuracy(tiny_llama(2), tiny_tokenizer(), records(2), "colours")
