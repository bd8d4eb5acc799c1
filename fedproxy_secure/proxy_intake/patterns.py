"""The regular expressions that a tokenizer may search with: those that take at most quadratic time.

A pattern is written by whoever made the tokenizer, and one that backtracks over nested repetitions stops
the client's process for hours at a text of their choice. So only a small language is allowed: alternatives,
each of them a row of single characters or classes, repeated or not. The patterns of well-known models are
in it.

Guarantees: for a pattern that passes, one search takes at most quadratic time in the text's length. One
attempt at a position backtracks over one repetition at most.
"""

from __future__ import annotations

import re

MOST_PATTERN = 4096  # characters
_MOST_ALTERNATIVES = 32
_MOST_ATOMS = 32  # of an alternative
_MOST_VARIABLE = 4  # atoms of an alternative that are repeated or optional
_MOST_UNBOUNDED = 2  # of these without an upper bound; 1 where something must follow

_CLASS = r"\[\^?(?:\\p\{\^?\w+\}|\\[^pPxuUcCMkgG0-9]|\\x\{[0-9A-Fa-f]{1,6}\}|[^\[\]\\])+\]"
_SIMPLE = rf"(?:\\[pP]\{{\^?\w+\}}|\\[rntsSdDwW]|\\[^\w\s]|{_CLASS}|[^\\\[\](){{}}|*+?^$])"
_WORDS = r"\(\?i?:(?:[^()\[\]\\*+?{}^$.]|\[[^\[\]\\]+\])*\)"  # alternatives of letters
_ATOM = re.compile(
    rf"(?:(?P<words>{_WORDS})(?P<maybe>\?\+?)?|{_SIMPLE}(?:(?P<many>[*+]\+?)|(?P<few>\?\+?|\{{[0-8](?:,[0-8])?\}}))?)"
)
_END = re.compile(r"(?:\(\?!\\S\)|\$)?(?:\||\Z)")  # of an alternative


def why_refused(pattern: str) -> str | None:
    """Return why a search with `pattern` could be slow or cannot be judged; None if it may be used.

    Each alternative has at most 4 characters that are repeated or optional, at most 2 of them without a
    bound, and then nothing that must follow the second.
    """
    at, alternatives = 0, 0
    while True:
        atoms: list[re.Match[str]] = []
        while (atom := _ATOM.match(pattern, at)) is not None:
            atoms.append(atom)
            at = atom.end()
        end = _END.match(pattern, at)
        if end is None:
            return "its regular expression is not one of single characters, repeated or not"
        alternatives += 1
        if alternatives > _MOST_ALTERNATIVES or _repeats_too_much(atoms, end[0]):
            return "its regular expression repeats too much"
        at = end.end()
        if not end[0].endswith("|"):
            return None


def _repeats_too_much(atoms: list[re.Match[str]], end: str) -> bool:
    """Return whether an alternative of these atoms, closed by `end`, may take more than quadratic time."""
    unbounded = [i for i, atom in enumerate(atoms) if atom["many"]]
    optional = [i for i, atom in enumerate(atoms) if atom["few"] or atom["maybe"]]
    fixed = [i for i in range(len(atoms)) if i not in unbounded and i not in optional]
    must_follow = end not in ("", "|") or (unbounded and max(fixed, default=-1) > unbounded[-1])
    return (
        len(unbounded) + len(optional) > _MOST_VARIABLE
        or len(unbounded) > (1 if must_follow else _MOST_UNBOUNDED)
        or len(atoms) > _MOST_ATOMS
    )
