"""The events of an audit log as lines of text for people."""

from __future__ import annotations

from fedproxy_secure.audit.chain import Entry
from fedproxy_secure.runtime.escape import printable


def event_text(entry: Entry) -> str:
    """Return an event as a line of text, such as `2026-01-02T03:04:05+00:00  round: seed 0; round 2`.

    A mapping with more than eight entries is shown as their number. The log may be unchecked, so the line
    never has a terminal sequence, whatever the log holds.
    """
    return printable(f"{entry.time}  {entry.event}: {_body(entry)}")


def _body(entry: Entry) -> str:
    body = entry.body
    parts = []
    for key, value in body.items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{k} {_short(v)}" for k, v in value.items()) if len(value) <= 8 else ""
            parts.append(f"{key}: {pairs or len(value)}" if value else f"{key}: none")
        elif isinstance(value, list):
            parts.append(f"{key}: {', '.join(map(str, value)) or 'none'}")
        else:
            parts.append(f"{key} {_short(value)}")
    return "; ".join(parts)


def _short(value: object) -> str:
    """Return a value as text, or the first digits of a hash."""
    text = str(value)
    hexed = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:12]}…" if hexed else text
