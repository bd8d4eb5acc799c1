"""Notes of the synthetic world: texts worth stealing, whose every token is learned."""

import re
from collections import Counter

import pytest

from fedproxy_secure.config import ClientConfig
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.records import Record
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.data.worlds.demo_notes import NAMES_PER_SPLIT, NOTE_TASKS, note_records
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import load_tokenizer
from fedproxy_secure.world.lexicon import lexicon

EACH_TASK = pytest.mark.parametrize("name", NOTE_TASKS)


def names_in(record: Record) -> list[str]:
    words = lexicon()
    first, last = "|".join(words.first_names), "|".join(words.surnames)
    return re.findall(rf"\b(?:{first}) (?:{last})\b", record.prompt)


@EACH_TASK
def test_notes_are_the_same_every_time_and_a_shorter_draw_is_a_beginning(name):
    assert note_records(name, "train", 40) == note_records(name, "train", None)[:40]
    assert len(note_records(name, "train", None)) == 400
    assert len(note_records(name, "test", None)) == 200


@EACH_TASK
def test_each_note_names_one_person_and_another_than_all_others(name):
    notes = note_records(name, "train", NAMES_PER_SPLIT)
    assert [len(names_in(note)) for note in notes] == [1] * NAMES_PER_SPLIT
    assert len({names_in(note)[0] for note in notes}) == NAMES_PER_SPLIT


def test_no_name_belongs_to_two_tasks_or_to_training_and_test():
    owners = Counter(
        name
        for task in NOTE_TASKS
        for split in ("train", "test")
        for name in {n for r in note_records(task, split, 500) for n in names_in(r)}
    )
    assert set(owners.values()) == {1}


@EACH_TASK
def test_files_and_dates_hardly_ever_occur_in_two_notes(name):
    notes = note_records(name, "train", 400)
    files = [re.search(r"[A-Z]\d - \d{4}", r.prompt).group() for r in notes]
    dates = [re.search(r"\d+ [A-Z][a-z]+ \d{4}", r.prompt).group() for r in notes]
    assert len(set(files)) > 395
    assert len(set(dates)) > 385


@EACH_TASK
def test_half_of_the_things_that_tests_ask_about_are_not_shown_in_training(name):
    words = {thing for domain in lexicon().domains for kind in domain.things for thing in kind}
    shown = {w for r in note_records(name, "train", None) for w in r.prompt.split()} & words
    asked = [next(w for w in r.prompt.split() if w in words) for r in note_records(name, "test", 1000)]
    assert len(shown) == 24
    assert 0.4 < sum(thing not in shown for thing in asked) / len(asked) < 0.6


def test_training_on_a_note_reads_the_loss_of_every_token_but_the_first():
    tokenizer = load_tokenizer("demo")
    notes = note_records("petition", "train", 5)
    encoded = encode_records(notes, tokenizer, max_tokens=128)
    assert encoded.truncated == 0
    for note, item in zip(notes, encoded.items, strict=True):
        learned = tokenizer.decode(item.ids[item.response_start :], skip_special_tokens=True)
        assert learned == note.prompt + note.choices[note.label]


def test_a_client_may_learn_the_whole_text_of_any_task_or_the_answer_of_a_note():
    asked = load_task(ClientConfig(name="a", task="clinic", train_records=9, learn="text"), root=None)
    told = load_task(ClientConfig(name="b", task="petition", train_records=9, learn="answer"), root=None)
    assert {r.learn for r in asked.train} == {"text"}
    assert {r.learn for r in told.train} == {"answer"}


@pytest.mark.parametrize(("task", "split"), [("petition", "validation"), ("letter", "train")])
def test_an_unknown_task_or_split_is_named(task, split):
    with pytest.raises(DataError, match=r"(split|task) '(validation|letter)'"):
        note_records(task, split, 3)
