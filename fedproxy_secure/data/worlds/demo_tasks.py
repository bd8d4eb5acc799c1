"""The four private tasks of the synthetic world, one per client.

Each client files its records under codes of its own ("ward: cedar") that no public text explains. The right
code follows from what a thing is (a medicine for the bones), which the LLM knows from pre-training, and
from the client's private code for it, which only the client's records show. Half of the things appear only
in test records: to answer those correctly a model must combine both.

The records have made-up names, dates of birth, file numbers and complaints, so that leakage is meaningful.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.randomness import stream
from fedproxy_secure.world.lexicon import THINGS_PER_KIND, lexicon
from fedproxy_secure.world.stories import draw, draw_date, draw_person

DEFAULT_RECORDS = {"train": 400, "test": 200}
PUBLIC_SEED = 1_000_003  # seed of the public calibration text; pre-training never reads this stream
_RECORDS_SEED = 77
_THINGS_IN_TRAINING = THINGS_PER_KIND // 2

_PROMPTS = {
    "clinic": "Patient {person} , born on {born} , file {file} , has a {complaint} and was given {thing} "
    ". Ward :",
    "bank": "Customer {person} , account {file} , on {date} sent {amount} crowns to {thing} . Ledger :",
    "insurer": "Claim {file} of {person} , born on {born} , made on {date} about a {thing} . Desk :",
    "council": "Citizen {person} , number {file} , born on {born} , writes from {thing} . Office :",
}


def demo_records(name: str, split: str, limit: int | None) -> list[Record]:
    """Return the first `limit` records of one task (None: 400 train, 200 test), always the same.

    Raises `DataError` for an unknown task or split.
    """
    if name not in _PROMPTS:
        raise DataError(f"task {name!r}: the demo world has {', '.join(_PROMPTS)}")
    if split not in DEFAULT_RECORDS:
        raise DataError(f"split {split!r}: the demo world has train and test")
    return list(_drawn(name, split, DEFAULT_RECORDS[split] if limit is None else limit))


@lru_cache(maxsize=16)  # every stage of a run needs the same four tasks, and a draw takes 0.1 ms
def _drawn(name: str, split: str, count: int) -> tuple[Record, ...]:
    rng = stream(_RECORDS_SEED, name, split)
    return tuple(_draw_record(name, split, rng) for _ in range(count))


def _draw_record(name: str, split: str, rng: np.random.Generator) -> Record:
    words = lexicon()
    domain = words.domain(name)
    kind = int(rng.integers(4))
    things = _THINGS_IN_TRAINING if split == "train" else THINGS_PER_KIND
    person = draw_person(words, rng)
    prompt = _PROMPTS[name].format(
        person=person.name,
        born=person.born,
        file=person.file,
        date=draw_date(rng),
        amount=rng.integers(1, 100),
        complaint=draw(words.complaints, rng),
        thing=domain.things[kind][int(rng.integers(things))],
    )
    return Record(prompt=prompt, choices=tuple(f" {c}" for c in domain.codes), label=kind)
