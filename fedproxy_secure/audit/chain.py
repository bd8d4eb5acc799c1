"""`audit.jsonl`: one event a line, each bound to the line before it and signed.

    hash      = SHA256("fedproxy-secure audit 1", previous, canonical JSON of seq, time, event, body)
    signature = Ed25519("fedproxy-secure audit 1", hash)

`previous` is the hash of the line before, or zeros in the first line, whose body holds the signer's public
key and a random number of the run. So no line can be changed, left out, moved or taken from another run
without the key. Lines cut off at the end are noticed only if something is signed over the last hash, the
**head**, as a run's report is (see `seal`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from fedproxy_secure.crypto.primitives import digest, sign, verify
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError, ProtocolAborted
from fedproxy_secure.runtime.untrusted import parse_json

SCHEMA_VERSION = 1
DOMAIN = b"fedproxy-secure audit 1"
START = bytes(32).hex()  # stands for the previous hash in the first line
OPENED = "opened"  # the first event
_HASH, _SIGNATURE = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{128}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log.

    `time` is UTC, ISO 8601, by the signer's clock; hashes (32 bytes) and the signature are in hex.
    """

    seq: int
    time: str
    event: str
    body: dict[str, Any]
    previous: str
    hash: str
    signature: str

    def line(self) -> bytes:
        """Return the line as it stands in the file, without the newline."""
        return json.dumps(vars(self), sort_keys=True, allow_nan=False).encode()


def entry_hash(*, previous: str, seq: int, time: str, event: str, body: dict[str, Any]) -> bytes:
    """Return the hash that binds an event to all events before it, 32 bytes."""
    content = {"seq": seq, "time": time, "event": event, "body": body}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return digest(DOMAIN, previous.encode(), canonical.encode())


def make_entry(
    key: Secret, *, previous: str, seq: int, time: str, event: str, body: dict[str, Any]
) -> Entry:
    """Return the next line of a chain whose last hash is `previous`, signed.

    >>> from fedproxy_secure.crypto.primitives import fresh_secret
    >>> make_entry(fresh_secret(), previous=START, seq=0, time="", event="opened", body={}).seq
    0
    """
    body = json.loads(json.dumps(body, allow_nan=False))  # as it will be read: lists, not tuples
    hashed = entry_hash(previous=previous, seq=seq, time=time, event=event, body=body)
    return Entry(
        seq=seq,
        time=time,
        event=event,
        body=body,
        previous=previous,
        hash=hashed.hex(),
        signature=sign(key, digest(DOMAIN, hashed)).hex(),
    )


def parse_line(raw: bytes) -> Entry:
    """Return the entry on a line, which must be byte for byte what `Entry.line` returns.

    Raises `AuditError` for anything else, also for the same JSON in another form.
    """
    try:
        fields = parse_json(raw)
        entry = Entry(**fields)
        types = (int, str, str, dict, str, str, str)
        if not all(type(v) is t for v, t in zip(vars(entry).values(), types, strict=True)):
            raise ValueError("a field of another type")
        if not (is_hash(entry.hash) and is_hash(entry.previous) and _SIGNATURE.fullmatch(entry.signature)):
            raise ValueError("a hash or signature that is none")
        if entry.line() != raw:
            raise ValueError("another form")
        return entry
    except (ValueError, TypeError) as error:
        raise AuditError("is not a line of an audit log") from error


def is_hash(text: str) -> bool:
    """Return whether a text is a hash in the only form that is written: 64 lower-case hex digits."""
    return _HASH.fullmatch(text) is not None


def from_hex(text: str) -> bytes:
    """Read hex digits in the only form that is written. Raises `ValueError` for any other form."""
    raw = bytes.fromhex(text)
    if raw.hex() != text:
        raise ValueError("another form")
    return raw


def check_hash(entry: Entry) -> None:
    """Raise `AuditError` unless the entry has the hash of its own content."""
    expected = entry_hash(
        previous=entry.previous, seq=entry.seq, time=entry.time, event=entry.event, body=entry.body
    )
    if expected.hex() != entry.hash:
        raise AuditError("was altered: its hash is not that of its content")


def check_signature(entry: Entry, public: bytes) -> None:
    """Raise `AuditError` unless the owner of `public`, Ed25519, 32 bytes, signed the entry's hash."""
    try:
        signed = digest(DOMAIN, from_hex(entry.hash))
        verify(public, signed, from_hex(entry.signature), what="signature")
    except (ProtocolAborted, ValueError):
        raise AuditError("was altered: the signature is not the signer's") from None
