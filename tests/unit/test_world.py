"""The synthetic world is the same everywhere, and its records carry what leakage is measured on."""

import itertools
import re

import pytest

from fedproxy_secure.data.evaluate import perplexity, text_windows
from fedproxy_secure.data.worlds.demo_tasks import PUBLIC_SEED, demo_records
from fedproxy_secure.models.llm import demo_llm_folder, load_llm, parameter_count
from fedproxy_secure.world import stories as templates
from fedproxy_secure.world.lexicon import lexicon
from fedproxy_secure.world.pretrain import pretrain
from fedproxy_secure.world.stories import stories

TASKS = [d.name for d in lexicon().domains]


def test_texts_and_records_are_the_same_every_time():
    assert list(itertools.islice(stories(3), 5)) == list(itertools.islice(stories(3), 5))
    assert demo_records("clinic", "train", 9) == demo_records("clinic", "train", 9)


def test_no_word_means_two_things():
    words = [w for d in lexicon().domains for w in (*d.kinds, *d.codes, *itertools.chain(*d.things))]
    assert len(words) == len(set(words))


def test_public_texts_never_join_a_thing_to_a_clients_code():
    every = (*templates._FACTS, *templates._QUESTIONS, *itertools.chain(*templates._TELLINGS.values()))
    assert not any("{code" in template for template in every)
    assert not any("{thing}" in template or "{kind}" in template for template in templates._SCENES)


def test_test_records_ask_about_things_that_training_never_shows():
    for name in TASKS:
        things = {t for ts in lexicon().domain(name).things for t in ts}
        shown = {w for r in demo_records(name, "train", None) for w in r.prompt.split()} & things
        asked = {w for r in demo_records(name, "test", None) for w in r.prompt.split()} & things
        assert len(shown) == len(things) / 2
        assert len(asked - shown) >= len(things) / 3


def test_every_record_carries_a_persons_details():
    for name in TASKS:
        for r in demo_records(name, "train", 50):
            assert re.search(r"[A-Z][a-z]+ [A-Z][a-z]+ ", r.prompt)
            assert re.search(r"[A-Z]\d - \d{4}", r.prompt)


def test_the_embedded_llm_is_small_loads_and_has_read_the_world():
    model, tokenizer = load_llm("demo", device="cpu")
    assert parameter_count(model) <= 3e6
    assert sum(f.stat().st_size for f in demo_llm_folder().iterdir()) <= 8e6
    text = "\n".join(itertools.islice(stories(PUBLIC_SEED), 40))
    windows = text_windows(text, tokenizer, window_tokens=128, limit=8)
    assert perplexity(model, windows) < 6


@pytest.mark.slow
def test_pretraining_repeats_bit_for_bit_and_learns():
    losses: list[float] = []
    one, _ = pretrain(steps=4, seed=1, on_step=lambda _, loss: losses.append(loss))
    two, _ = pretrain(steps=4, seed=1)
    assert all((a == b).all() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert losses[-1] < losses[0]
