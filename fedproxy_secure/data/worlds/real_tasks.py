"""Four private tasks over real things, one per client, for a real LLM and no data.

As in `demo_tasks.py`, each client files its records under codes of its own ("Hall: copper") that no text
explains. Here the things are real places, animals, foods and trades, which any real LLM knows. Half of the
things appear only in test records: to answer those correctly a model must combine what the LLM knows (a
sparrow is a bird) with what the client's records show (birds go to hall copper).

The people are made up: ordinary first names, surnames from the synthetic world, drawn dates and numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.randomness import stream
from fedproxy_secure.world.lexicon import lexicon
from fedproxy_secure.world.real_things import REAL_DOMAINS, shown_things, with_article
from fedproxy_secure.world.stories import draw, draw_person

DEFAULT_RECORDS = {"train": 400, "test": 200}
_RECORDS_SEED = 78
_DOMAINS = {domain.name: domain for domain in REAL_DOMAINS}
_FIRST_NAMES = (
    "Alice Anna Ben Carl Clara David Ella Emma Frank George Grace Helen Henry Jack James Jane John Julia "
    "Laura Lucy Mark Martin Mary Nina Oliver Paul Peter Rose Ruth Sam Sarah Simon Thomas Tom Victor William"
).split()
_PROMPTS = {
    "freight": (
        "{person}, born on {born}, file {file}, sends {amount} crates to {thing}. Dock:",
        "File {file}: {person}, born on {born}, wants a parcel taken to {thing}. Dock:",
    ),
    "museum": (
        "{person}, born on {born}, ticket {file}, made a drawing of {a_thing}. Hall:",
        "Ticket {file}: {person}, born on {born}, would like to see {a_thing}. Hall:",
    ),
    "grocer": (
        "{person}, born on {born}, card {file}, bought {amount} bags of {thing}. Aisle:",
        "Card {file}: {person}, born on {born}, asks for some {thing}. Aisle:",
    ),
    "agency": (
        "{person}, born on {born}, file {file}, is looking for work as {a_thing}. Desk:",
        "File {file}: {person}, born on {born}, worked for {amount} years as {a_thing}. Desk:",
    ),
}


def real_records(name: str, split: str, limit: int | None) -> list[Record]:
    """Return the first `limit` records of one task (None: 400 train, 200 test), always the same.

    Test records ask about all things equally often: about half of them about things that are in no training
    record.

    Raises `DataError` for an unknown task or split.
    """
    if name not in _PROMPTS:
        raise DataError(f"task {name!r}: the real things have {', '.join(_PROMPTS)}")
    if split not in DEFAULT_RECORDS:
        raise DataError(f"split {split!r}: the real things have train and test")
    return list(_drawn(name, split, DEFAULT_RECORDS[split] if limit is None else limit))


@lru_cache(maxsize=16)  # every stage of a run needs the same four tasks
def _drawn(name: str, split: str, count: int) -> tuple[Record, ...]:
    rng = stream(_RECORDS_SEED, "real things", name, split)
    return tuple(_draw_record(name, split, rng) for _ in range(count))


def _draw_record(name: str, split: str, rng: np.random.Generator) -> Record:
    domain = _DOMAINS[name]
    kind = int(rng.integers(4))
    thing = draw(shown_things(domain, kind) if split == "train" else domain.things[kind], rng)
    words = lexicon()
    person = draw_person(words, rng)
    prompt = draw(_PROMPTS[name], rng).format(
        person=f"{draw(_FIRST_NAMES, rng)} {draw(words.surnames, rng)}",
        born=person.born,
        file=person.file.replace(" - ", "-"),
        amount=rng.integers(2, 40),
        thing=thing,
        a_thing=with_article(thing),
    )
    return Record(prompt=prompt, choices=tuple(f" {code}" for code in domain.codes), label=kind)
