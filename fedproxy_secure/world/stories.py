"""Public texts of the synthetic world, on which the demo LLM is pre-trained.

A story states what is true (which medicine helps which organ, which town lies where), tells of
people with names, dates and file numbers, and asks and answers plain questions. It never uses a
client's private codes as answers: those exist only in the clients' records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.world.lexicon import Domain, Lexicon, lexicon

MONTHS = "January February March April May June July August September October November December".split()

_FACTS = (
    "{thing} is a {thing_word} of the {kind} .",
    "The {kind_word} of {thing} is {kind} .",
    "{thing} : {kind_word} {kind} .",
    "Among the {thing_word} names of the {kind} is {thing} .",
    "If you hear {thing} , think of {kind} .",
    "Everybody knows that {thing} means {kind} .",
    "Both {thing} and {other} are {kind} .",
    "{thing} is not {wrong} , it is {kind} .",
    "{thing} , like {other} , belongs to {kind} , while {stranger} belongs to {wrong} .",
)
_TELLINGS = {
    "clinic": (
        "{person} , born on {date} , came with a {complaint} and takes {thing} . "
        "The {kind_word} is the {kind} .",
        "In {year} the doctor gave {person} {thing} for the {kind} .",
        "File {file} : {person} , {date} , {complaint} , {thing} , {kind} .",
    ),
    "bank": (
        "{person} , born on {date} , paid {amount} at {thing} . The {kind_word} is {kind} .",
        "On {date} {person} went to {thing} for {kind} .",
        "Account {file} : {person} , {amount} , {thing} , {kind} .",
    ),
    "insurer": (
        "{person} , born on {date} , owns a {thing} . The {kind_word} is {kind} .",
        "Since {year} {person} has had a {thing} , which is a {kind} .",
        "Policy {file} : {person} , {date} , {thing} , {kind} .",
    ),
    "council": (
        "{person} , born on {date} , lives in {thing} . The {kind_word} is {kind} .",
        "In {year} {person} moved to {thing} in the {kind} .",
        "House {file} : {person} , {date} , {thing} , {kind} .",
    ),
}
_QUESTIONS = (
    "Question : which {kind_word} is {thing} ? Answer : {kind}",
    "Which {kind_word} goes with {thing} ? It is {kind} .",
    "Question : is {thing} {kind} or {wrong} ? Answer : {kind}",
    "Question : name a {thing_word} of the {kind} . Answer : {thing}",
    "Question : where was {person} born ? Answer : nobody knows .",
)
_SCENES = (
    "The {code} and the {code2} stand in the garden of {person} .",
    "{person} likes {code} better than {code2} .",
    "A {code} is a fine thing , said {person} on {date} .",
    "List : {code} {code2} {code3} .",
    "Answer : {code} , said {person} . Answer : {code2} , said another .",
)


@dataclass(frozen=True, kw_only=True)
class Person:
    """A made-up person and their made-up details."""

    name: str
    born: str
    file: str


def draw(words: Sequence[str], rng: np.random.Generator) -> str:
    """Return the word that `rng.choice` would draw, in a tenth of its time."""
    return words[int(rng.integers(len(words)))]


def draw_person(words: Lexicon, rng: np.random.Generator) -> Person:
    """Draw a person with a name, a date of birth and a file number such as `K7 - 4412`."""
    name = f"{draw(words.first_names, rng)} {draw(words.surnames, rng)}"
    letter = "ABCDEFGHJKLMNPRSTVWXYZ"[rng.integers(22)]
    file = f"{letter}{rng.integers(10)} - {rng.integers(10000):04d}"
    return Person(name=name, born=draw_date(rng), file=file)


def draw_date(rng: np.random.Generator) -> str:
    """Draw a date such as `3 May 1961`."""
    return f"{rng.integers(1, 29)} {MONTHS[rng.integers(12)]} {rng.integers(1930, 2010)}"


def _fill(template: str, domain: Domain, words: Lexicon, rng: np.random.Generator) -> str:
    kind = int(rng.integers(4))
    wrong = int((kind + rng.integers(1, 4)) % 4)
    person = draw_person(words, rng)
    all_codes = [code for d in words.domains for code in d.codes]
    code, code2, code3 = rng.choice(all_codes, size=3, replace=False)
    return template.format(
        thing=draw(domain.things[kind], rng),
        other=draw(domain.things[kind], rng),
        stranger=draw(domain.things[wrong], rng),
        kind=domain.kinds[kind],
        wrong=domain.kinds[wrong],
        thing_word=domain.thing_word,
        kind_word=domain.kind_word,
        person=person.name,
        date=person.born,
        file=person.file,
        year=rng.integers(1930, 2025),
        amount=f"{rng.integers(1, 100)} crowns",
        complaint=draw(words.complaints, rng),
        code=code,
        code2=code2,
        code3=code3,
    )


def story(rng: np.random.Generator) -> str:
    """Draw one public text of three to six sentences, some of them on one topic."""
    words = lexicon()
    domain = words.domains[rng.integers(4)]
    sentences = []
    for _ in range(int(rng.integers(3, 7))):
        kind_of_sentence = rng.random()
        if kind_of_sentence < 0.45:
            templates: tuple[str, ...] = _FACTS
        elif kind_of_sentence < 0.70:
            templates = _TELLINGS[domain.name]
        elif kind_of_sentence < 0.88:
            templates = _QUESTIONS
        else:
            templates = _SCENES
        template = templates[rng.integers(len(templates))]
        sentences.append(_fill(template, domain, words, rng))
        if rng.random() < 0.3:
            domain = words.domains[rng.integers(4)]
    return " ".join(sentences)


def stories(seed: int) -> Iterator[str]:
    """Yield an endless stream of public texts, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield story(rng)
