"""Four free-text tasks of the synthetic world, one per client: notes whose whole text is learned.

A note is about one made-up person: name, a date, a file number, and a thing. It ends with the client's
private code, as the records of `demo_tasks` do, so that a test record can still be judged by its answer.
Training reads the loss of every token, so a model that reads a note often memorises its details, which
attacks on privacy look for. Notes are short and use the words of the public stories, because the demo's
small proxy learns longer notes too slowly to memorise them.

Guarantees: a name belongs to one task and one split, and to one note as long as there are no more than
`NAMES_PER_SPLIT` notes. Numbers and dates are drawn anew for every note. Public stories draw from the same
first names and surnames, but with other details.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from fedproxy_secure.data.records import Record
from fedproxy_secure.data.worlds.demo_tasks import DEFAULT_RECORDS
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.randomness import stream
from fedproxy_secure.world.lexicon import THINGS_PER_KIND, lexicon
from fedproxy_secure.world.stories import draw, draw_person

_RECORDS_SEED = 79
_THINGS_IN_TRAINING = THINGS_PER_KIND // 2
# task -> the world's domain, the words before the code, and the wordings of a note
_NOTES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "discharge_note": (
        "clinic",
        "Ward :",
        (
            "File {file} : {person} , born on {date} , came with a {complaint} and takes {thing} .",
            "{person} , born on {date} , file {file} , {complaint} , takes {thing} .",
            "The doctor gave {person} {thing} for a {complaint} . Born on {date} , file {file} .",
        ),
    ),
    "bank_letter": (
        "bank",
        "Ledger :",
        (
            "Account {file} : {person} , born on {date} , paid {amount} crowns at {thing} .",
            "{person} , born on {date} , account {file} , paid {amount} crowns at {thing} .",
            "On {date} {person} went to {thing} and paid {amount} crowns . Account {file} .",
        ),
    ),
    "claim_letter": (
        "insurer",
        "Desk :",
        (
            "Policy {file} : {person} , born on {date} , owns a {thing} .",
            "{person} , born on {date} , policy {file} , has had a {thing} .",
            "Since {date} {person} has had a {thing} . Policy {file} .",
        ),
    ),
    "petition": (
        "council",
        "Office :",
        (
            "House {file} : {person} , born on {date} , lives in {thing} .",
            "{person} , born on {date} , house {file} , moved to {thing} .",
            "On {date} {person} moved to {thing} . House {file} .",
        ),
    ),
}
NOTE_TASKS = tuple(_NOTES)
_SPLITS = tuple(DEFAULT_RECORDS)
NAMES_PER_SPLIT = 384  # 48 first names x 64 surnames, over 4 tasks and 2 splits


def note_records(name: str, split: str, limit: int | None) -> list[Record]:
    """Return the first `limit` notes of one task (None: 400 train, 200 test), always the same.

    Raises `DataError` for an unknown task or split.
    """
    if name not in _NOTES:
        raise DataError(f"task {name!r}: the demo world's notes are {', '.join(_NOTES)}")
    if split not in DEFAULT_RECORDS:
        raise DataError(f"split {split!r}: the demo world has train and test")
    return list(_drawn(name, split, DEFAULT_RECORDS[split] if limit is None else limit))


@lru_cache(maxsize=16)  # every stage of a run needs the same four tasks
def _drawn(name: str, split: str, count: int) -> tuple[Record, ...]:
    rng, names = stream(_RECORDS_SEED, "notes", name, split), _names(name, split)
    return tuple(_draw_note(name, split, names[number % NAMES_PER_SPLIT], rng) for number in range(count))


@cache
def _names(name: str, split: str) -> tuple[str, ...]:
    """Return the names of one task and one split, in the order in which notes use them."""
    words = lexicon()
    everybody = [f"{first} {surname}" for first in words.first_names for surname in words.surnames]
    order = stream(_RECORDS_SEED, "names").permutation(len(everybody))
    place = NOTE_TASKS.index(name) * len(_SPLITS) + _SPLITS.index(split)
    chosen = order[place * NAMES_PER_SPLIT : (place + 1) * NAMES_PER_SPLIT]
    return tuple(everybody[i] for i in chosen)


def _draw_note(name: str, split: str, person: str, rng: np.random.Generator) -> Record:
    domain_name, code_word, ways = _NOTES[name]
    words = lexicon()
    domain = words.domain(domain_name)
    kind = int(rng.integers(4))
    things = _THINGS_IN_TRAINING if split == "train" else THINGS_PER_KIND
    details = draw_person(words, rng)
    text = draw(ways, rng).format(
        person=person,
        date=details.born,
        file=details.file,
        amount=rng.integers(1, 1000),
        complaint=draw(words.complaints, rng),
        thing=domain.things[kind][int(rng.integers(things))],
    )
    return Record(
        prompt=f"{text} {code_word}",
        choices=tuple(f" {code}" for code in domain.codes),
        label=kind,
        learn="text",
    )
