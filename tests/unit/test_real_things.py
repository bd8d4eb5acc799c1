"""Tasks over real things: a real LLM knows the things, and only a client's records tell its codes."""

import itertools
import re

import pytest
import torch

from fedproxy_secure.config import ClientConfig, Config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.data.worlds.demo_tasks import PUBLIC_SEED, demo_records
from fedproxy_secure.data.worlds.real_tasks import real_records
from fedproxy_secure.errors import DataError
from fedproxy_secure.experiments.stages import public_windows
from fedproxy_secure.models.llm import load_tokenizer
from fedproxy_secure.world.lexicon import Domain
from fedproxy_secure.world.real_texts import real_texts
from fedproxy_secure.world.real_things import CAPITALS, REAL_DOMAINS, shown_things

EACH_DOMAIN = pytest.mark.parametrize("domain", REAL_DOMAINS, ids=lambda d: d.name)
CODES = [code for domain in REAL_DOMAINS for code in domain.codes]


def thing_in(text: str, domain: Domain) -> str:
    (thing,) = [t for t in itertools.chain(*domain.things) if re.search(rf"\b{re.escape(t)}\b", text)]
    return thing


def shown(domain: Domain) -> set[str]:
    return {thing for kind in range(4) for thing in shown_things(domain, kind)}


@EACH_DOMAIN
def test_records_are_the_same_every_time_and_a_shorter_draw_is_a_beginning(domain):
    assert real_records(domain.name, "train", 40) == real_records(domain.name, "train", None)[:40]
    assert len(real_records(domain.name, "train", None)) == 400
    assert len(real_records(domain.name, "test", None)) == 200
    assert len(real_records(domain.name, "test", 1000)) == 1000


def test_training_records_have_parts_so_that_settings_can_be_chosen_on_some_of_them():
    def records(split, limit=None):
        client = ClientConfig(
            name="a", source="real_things", task="museum", train_split=split, train_records=limit
        )
        return load_task(client, root=None).train

    whole = records("train")
    assert records("train[:-100]") + records("train[-100:]") == whole
    assert records("train[300:]", 20) == whole[300:320]
    assert len(records("train[400:450]")) == 50  # beyond the usual number


def test_public_texts_are_the_same_every_time():
    first, second, other = (list(itertools.islice(real_texts(seed), 5)) for seed in (3, 3, 4))
    assert first == second != other


@EACH_DOMAIN
def test_test_records_ask_about_things_that_training_never_shows(domain):
    trained = {thing_in(r.prompt, domain) for r in real_records(domain.name, "train", 2000)}
    asked = [thing_in(r.prompt, domain) for r in real_records(domain.name, "test", 2000)]
    assert trained == shown(domain)
    assert set(asked) == set(itertools.chain(*domain.things))
    assert 0.45 < sum(thing not in trained for thing in asked) / len(asked) < 0.55


@EACH_DOMAIN
def test_the_kinds_of_things_are_balanced(domain):
    assert {len(things) for things in domain.things} == {24}
    assert {len(shown_things(domain, kind)) for kind in range(4)} == {12}
    labels = [r.label for r in real_records(domain.name, "train", 2000)]
    assert all(0.2 < labels.count(kind) / len(labels) < 0.3 for kind in range(4))


def test_a_country_and_its_capital_are_shown_together_or_not_at_all():
    places = shown(REAL_DOMAINS[0])
    assert len(CAPITALS) == 48
    assert all((country in places) == (capital in places) for country, capital in CAPITALS.items())


@EACH_DOMAIN
def test_the_right_answer_is_the_code_of_the_things_kind(domain):
    for record in real_records(domain.name, "test", 200):
        assert record.choices == tuple(f" {code}" for code in domain.codes)
        assert thing_in(record.prompt, domain) in domain.things[record.label]


@EACH_DOMAIN
def test_no_thing_is_two_things_or_part_of_another(domain):
    things = list(itertools.chain(*domain.things))
    assert len(things) == len(set(things))
    assert all(thing_in(thing, domain) == thing for thing in things)


def test_no_code_is_used_by_two_clients_and_all_are_of_one_length():
    """With choices of one length, accuracy by likelihood and accuracy per character are the same."""
    assert len(CODES) == len(set(CODES)) == 16
    assert {len(code) for code in CODES} == {6}


def test_no_code_occurs_in_a_public_text_in_a_prompt_or_among_the_things():
    texts = list(itertools.islice(real_texts(PUBLIC_SEED), 4000))
    prompts = [r.prompt for d in REAL_DOMAINS for r in real_records(d.name, "train", None)]
    things = [thing for d in REAL_DOMAINS for thing in itertools.chain(*d.things)]
    code = re.compile(rf"\b({'|'.join(CODES)})(s|es)?\b", re.IGNORECASE)
    assert not [text for text in (*texts, *prompts, *things) if code.search(text)]


@EACH_DOMAIN
def test_every_record_is_a_short_english_sentence_about_a_made_up_person(domain):
    for record in real_records(domain.name, "test", 300):
        assert 13 <= len(record.prompt.split()) <= 22, record.prompt
        assert re.search(r"[A-Z][a-z]+ [A-Z][a-z]+, born on \d{1,2} [A-Z][a-z]+ \d{4}, ", record.prompt)
        assert re.search(r"\b[A-Z]\d-\d{4}\b", record.prompt)
        assert not re.search(r" [.,:]|  |\ba [aeiou]|\{", record.prompt), record.prompt


def test_records_and_public_texts_are_ascii():
    for domain in REAL_DOMAINS:
        assert all(r.prompt.isascii() for r in real_records(domain.name, "test", 1000))
    assert all(text.isascii() for text in itertools.islice(real_texts(PUBLIC_SEED), 1000))


def test_public_sentences_are_whole_and_seldom_repeat():
    text = " ".join(itertools.islice(real_texts(PUBLIC_SEED), 700))
    sentences = re.split(r"(?<=\.) ", text)
    assert len(set(sentences)) > 0.8 * len(sentences)
    assert not re.search(r"[{}]| [.,?:]|  |\b[Aa] [aeio]", text)
    assert len(text.split()) > 300 * 128  # with at least a token a word: 300 windows of 128 tokens


def test_a_client_can_name_real_things_as_its_source():
    client = ClientConfig(
        name="animals", task="museum", source="real_things", train_records=30, test_records=20
    )
    task = load_task(client, root=None)
    assert list(task.train) == real_records("museum", "train", 30)
    assert list(task.test) == real_records("museum", "test", 20)
    assert not set(task.train) & set(demo_records("clinic", "train", 30))


def test_calibration_can_read_public_text_about_real_things():
    settings = {"public_text": "real_things"}
    config = Config.model_validate({"data": settings, "compress": {"calibration_sequences": 300}})
    tokenizer = load_tokenizer("demo")
    windows = public_windows(config, tokenizer)
    assert windows.shape == (600, 128)
    assert windows.dtype == torch.int64


@pytest.mark.parametrize(("task", "split"), [("clinic", "train"), ("museum", "validation")])
def test_an_unknown_task_or_split_is_refused_in_one_line(task, split):
    with pytest.raises(
        DataError, match=f"'{split if task == 'museum' else task}': the real things have"
    ) as it:
        real_records(task, split, 3)
    assert "\n" not in str(it.value)
