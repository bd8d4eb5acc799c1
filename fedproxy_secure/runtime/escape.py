"""Escape text that somebody else may have chosen, for terminals and Markdown.

Names and details in a report come from settings, attacks and clients. They are shown letter by letter and
have no effect: no markup, no link, no cell or line of a table, no terminal sequence. HTML is escaped by the
page's own templates, JSON by its writer.

Guarantees: `printable` holds no control, format or surrogate character, so no escape sequence and no change
of the reading direction. `escaped`, put into a line or a cell of a table, renders to its own letters alone,
in CommonMark and in GitHub's Markdown. Not guaranteed: that GitHub makes no mention of an `@name`.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = re.compile(r"[\\`*|~$]|\[(?=\^)|\](?=[(\[:])")  # brackets where they make a link or a footnote
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # within a word it is a letter
_BLOCK = re.compile(r"^(?:[#+>=:\[-]|\d{1,9}(?=[.)]))")  # begins a block at the beginning of a line
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already: `escaped` leaves it as it is."""

    __slots__ = ()


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text with a space for every unprintable character that is not in `keep`.

    >>> printable("a\x1b[2J\u202eb")
    'a [2J b'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or _is_space(c) else " " for c in text)


def _is_space(character: str) -> bool:
    return unicodedata.category(character) == "Zs"


def escaped(text: str) -> Markdown:
    r"""Return text on one line that Markdown shows letter by letter, within a line or a cell of a table.

    >>> escaped("<b> a|b *c* snake_case")
    '&lt;b&gt; a\\|b \\*c\\* snake_case'
    """
    if isinstance(text, Markdown):
        return text
    line = " ".join(printable(text).split())
    line = "".join(_ENTITIES.get(c, c) for c in line)
    line = _SIGNS.sub(r"\\\g<0>", line)
    line = _UNDERSCORE.sub(r"\\_", line)
    return Markdown(line.replace("://", ":&#47;&#47;").replace("www.", "www&#46;"))


def escaped_line(text: str) -> Markdown:
    """Return what `escaped` returns, for text that begins a line, an item or a quotation."""
    line = escaped(text)
    if isinstance(text, Markdown):
        return line
    return Markdown(_BLOCK.sub(_behind, line, count=1))


def code(text: str) -> Markdown:
    """Return text of letters, digits, `.`, `_` and `-` as Markdown code, and any other text escaped."""
    return Markdown(f"`{text}`") if re.fullmatch(r"[\w.-]+", text, re.ASCII) else escaped(text)


def _behind(match: re.Match[str]) -> str:
    """Return a matched Markdown sign escaped by a backslash; in `1.` the sign is the dot."""
    return match[0] + "\\" if match[0].isdigit() else "\\" + match[0]
