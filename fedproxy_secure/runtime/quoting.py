"""Quoting of other parties' text, made safe for errors, logs and terminals.

Guarantees: the returned text has no control, format or other unprintable character (no escape sequence, no
line break, no reversal of the reading direction), and a bounded length. The work is bounded for any input.
Not guaranteed: that the text is true, or that it is not markup of some other format.
"""

from __future__ import annotations

MOST_VALUE = 80  # characters of a quoted value
MOST_LINE = 400  # characters of a line from another party
_UNPRINTABLE = "?"


def one_line(text: str, most: int = MOST_LINE) -> str:
    r"""Return another party's text on one line of at most `most` characters, unprintable ones as `?`.

    >>> one_line("fine\x1b[31m\nand more")
    'fine?[31m?and more'
    """
    safe = "".join(c if c.isprintable() else _UNPRINTABLE for c in text[: most + 1])
    return safe if len(safe) <= most else safe[: most - 3] + "..."


def quoted(value: object) -> str:
    """Return a received value as `repr` shows it, but in at most `MOST_VALUE` characters.

    Large integers are described by their number of bits, bytes and containers by type and length.
    """
    if isinstance(value, str):
        return one_line(repr(value[:MOST_VALUE]), MOST_VALUE)
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 64 else f"an integer of {value.bit_length()} bits"
    kind = type(value).__name__[:MOST_VALUE]
    if isinstance(value, bytes | list | tuple | dict):
        return f"{kind} of {len(value)}"
    return kind
