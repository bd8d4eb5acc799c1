"""Escape text that another party may have chosen, for terminals and Markdown.

Names and details in a report come from settings, attacks and clients. They are shown letter by letter and
have no effect: no markup, no link, no cell or line of a table, no terminal sequence. HTML is escaped by the
page's own templates, JSON by its writer.

Guarantees: text of `printable` has no control, format or surrogate character, so no escape sequence and no
change of the reading direction. Text of `escaped`, in a line or a cell of a table, renders to exactly its
own letters, in CommonMark and in GitHub's Markdown. Not guaranteed: that GitHub does not turn an `@name`
into a mention.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = re.compile(r"[\\`*|~$]|\[(?=\^)|\](?=[(\[:])")  # brackets only if they make a link or a footnote
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # not within a word, where it has no effect
_BLOCK = re.compile(r"^(?:[#+>=:\[-]|\d{1,9}(?=[.)]))")  # starts a block at the start of a line
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already, which `escaped` does not change."""

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
    """Return text as `escaped` does, for the start of a line, an item or a quotation."""
    line = escaped(text)
    if isinstance(text, Markdown):
        return line
    return Markdown(_BLOCK.sub(_behind, line, count=1))


def code(text: str) -> Markdown:
    """Return text of letters, digits, `.`, `_` and `-` as Markdown code, and any other text escaped."""
    return Markdown(f"`{text}`") if re.fullmatch(r"[\w.-]+", text, re.ASCII) else escaped(text)


def _behind(match: re.Match[str]) -> str:
    """Return a matched Markdown sign with a backslash, which in `1.` stands before the dot."""
    return match[0] + "\\" if match[0].isdigit() else "\\" + match[0]
