"""The words of the synthetic world: invented people, places and things, and what is true of them.

Everything is drawn from one seed, so two machines agree on every word. Nothing here names a real
person, medicine, company or place: words are built from syllables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

WORLD_SEED = 20260
THINGS_PER_KIND = 12  # invented things of each kind; a domain has four kinds

_ONSETS = "b br d dr f fl g gr h j k kl l m n p pr r s sk st t tr v w z".split()
_VOWELS = "a e i o u".split()
_CODAS = "l m n r s".split()


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One branch of the world's knowledge: things, each of exactly one of four kinds.

    `kinds` are common words; `codes` are the private words one client uses for them, in the same
    order; `things[k]` are the invented words of kind `kinds[k]`.
    """

    name: str
    thing_word: str
    kind_word: str
    kinds: tuple[str, str, str, str]
    codes: tuple[str, str, str, str]
    things: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """All words of the world. Build it with `lexicon()`."""

    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    complaints: tuple[str, ...]
    domains: tuple[Domain, ...]

    def domain(self, name: str) -> Domain:
        """Return the domain called `name`. Raises `StopIteration` if there is none."""
        return next(d for d in self.domains if d.name == name)


_DOMAINS = (
    ("clinic", "medicine", "organ", "heart lungs bones skin", "alder birch cedar maple"),
    ("bank", "shop", "trade", "food travel music books", "amber coral ivory olive"),
    ("insurer", "brand", "goods", "car house boat farm", "falcon heron raven swan"),
    ("council", "town", "region", "north south east west", "copper silver iron tin"),
)
_COMPLAINTS = "cough fever ache rash fall burn cramp chill"


@cache
def lexicon() -> Lexicon:
    """Return the world's words, always the same.

    >>> [d.name for d in lexicon().domains]
    ['clinic', 'bank', 'insurer', 'council']
    """
    rng = np.random.default_rng(WORLD_SEED)
    used: set[str] = set(" ".join(" ".join(d) for d in _DOMAINS).split())

    def word(syllables: int) -> str:
        while True:
            parts = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(syllables)]
            candidate = "".join(parts) + str(rng.choice(_CODAS))
            if candidate not in used:
                used.add(candidate)
                return candidate

    domains = tuple(
        Domain(
            name=name,
            thing_word=thing_word,
            kind_word=kind_word,
            kinds=tuple(kinds.split()),  # type: ignore[arg-type]
            codes=tuple(codes.split()),  # type: ignore[arg-type]
            things=tuple(tuple(word(2) for _ in range(THINGS_PER_KIND)) for _ in range(4)),
        )
        for name, thing_word, kind_word, kinds, codes in _DOMAINS
    )
    return Lexicon(
        first_names=tuple(word(1).capitalize() for _ in range(48)),
        surnames=tuple(word(2).capitalize() for _ in range(64)),
        complaints=tuple(_COMPLAINTS.split()),
        domains=domains,
    )
