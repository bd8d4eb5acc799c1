"""Personal details in texts: names, dates, numbers and addresses, found by their form.

The same forms find the details of a client's records and the candidates in a model's texts, so no list of
secrets is needed. They miss details of other forms, and take some common words for names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["address", "date", "number", "name"]
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
FEWEST_DIGITS = 5  # of a number that identifies a person; a year or an amount does not
_FORMS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("address", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")),
    (
        "date",
        re.compile(
            rf"\b\d{{1,2}} (?:{MONTHS}) \d{{4}}\b"
            r"|\b\d{4}-\d\d-\d\d\b|\b\d{1,2}[/.]\d{1,2}[/.]\d{4}\b"
        ),
    ),
    ("number", re.compile(r"\b[A-Z]{0,3}\d+(?: ?[-/] ?\d+)*\b")),
    ("name", re.compile(r"\b[A-Z][a-z]+(?: [A-Z][a-z]+)+\b")),
)


@dataclass(frozen=True, order=True, kw_only=True)
class Detail:
    """A detail and its kind; two are equal if both parts are."""

    kind: Kind
    text: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """A detail, and its place in the characters of a text."""

    detail: Detail
    start: int
    end: int


def find_details(text: str) -> list[Found]:
    """Return the details of a text, in the text's order; they do not overlap.

    >>> [(f.detail.kind, f.detail.text) for f in find_details("File K7 - 4412 : Ana Bel , 3 May 1961 .")]
    [('number', 'K7 - 4412'), ('name', 'Ana Bel'), ('date', '3 May 1961')]
    """
    matches: list[Found] = []
    unread = text
    for kind, form in _FORMS:
        for match in form.finditer(unread):
            start, end = match.span()
            if kind == "number" and sum(c.isdigit() for c in match.group()) < FEWEST_DIGITS:
                continue
            if kind == "name":  # before a name there may be a word that begins a sentence
                start = match.start() + match.group().rfind(" ", 0, match.group().rfind(" ")) + 1
            matches.append(Found(detail=Detail(kind=kind, text=text[start:end]), start=start, end=end))
            blank = "\n" * (end - start)  # so that no other form matches it
            unread = unread[:start] + blank + unread[end:]
    return sorted(matches, key=lambda f: f.start)
