"""Signed JSON documents (Ed25519), which sites and owner send each other outside a run.

    {"kind": "kit", "body": {...}, "public": "...", "signature": "..."}

Guarantees: a document that `read_document` returns was signed, as this kind, by the holder of the key that
it names; the caller gives the expected key with `by`. Not guaranteed: that it is the newest document; kits
have an epoch for that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.crypto.primitives import digest, sign, signing_public, verify
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.runtime.artifacts import json_bytes, write_bytes
from fedproxy_secure.runtime.untrusted import parse_json

FORMAT = 1
MOST_BYTES = 2**22
# making two lists of members with one fingerprint takes about 2^96 tries (birthday bound on 192 bits)
_FINGERPRINT_BYTES = 24


@dataclass(frozen=True, kw_only=True)
class Document:
    """A signed document: its kind, its content, the public key of its signer (32 bytes), its own bytes.

    To keep a document, write `raw`: the file that it was read from may have changed since.
    """

    kind: str
    body: dict[str, Any]
    public: bytes
    raw: bytes

    @property
    def fingerprint(self) -> str:
        """The 192-bit hash of content and signer, which two people compare on another channel."""
        return fingerprint(_signed(self.kind, self.body) + self.public)


def fingerprint(content: bytes) -> str:
    """Return the first 192 bits of a hash, as twelve groups of four hex digits.

    >>> fingerprint(b"")[:9]
    'af55-70f5'
    """
    digits = digest(content)[:_FINGERPRINT_BYTES].hex()
    return "-".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def plain(fingerprint: str) -> str:
    """Return a fingerprint in lower case, without hyphens and spaces, to compare it with another."""
    return fingerprint.replace("-", "").replace(" ", "").lower()


def write_document(file: Path, kind: str, body: dict[str, Any], key: Secret) -> Document:
    """Sign a document and write it atomically. Raises `RunFolderError` if that fails."""
    public, signature = signing_public(key), sign(key, _signed(kind, body))
    raw = json_bytes({"kind": kind, "body": body, "public": public.hex(), "signature": signature.hex()})
    write_bytes(file, raw)
    return Document(kind=kind, body=body, public=public, raw=raw)


def read_document(file: Path, kind: str, *, by: bytes | None = None) -> Document:
    """Return a document of this kind that is signed with the key `by`; without `by`, with any key.

    Raises `ConfigError` for a file that cannot be read, holds something else, or has another signer.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"has more than {MOST_BYTES:,} bytes")
        fields = parse_json(raw)
        actual_kind, body = fields["kind"], fields["body"]
        public, signature = bytes.fromhex(fields["public"]), bytes.fromhex(fields["signature"])
        signed = _signed(kind, body)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is no {kind}: {error}") from None
    if actual_kind != kind or not isinstance(body, dict):
        raise ConfigError(f"{file}: is a {str(actual_kind)[:40]!r}: must be a {kind}")
    if by is not None and public != by:
        raise ConfigError(
            f"{file}: is signed by {public.hex()[:16]}...: must be signed by {by.hex()[:16]}...; get the "
            "file from the holder of that key"
        )
    try:
        verify(public, signed, signature, subject=str(file))
    except ProtocolAborted:
        raise ConfigError(f"{file}: its signature is invalid; altered or cut short, get it anew") from None
    if body.get("format") != FORMAT:
        raise ConfigError(f"{file}: format={body.get('format')!r}: must be {FORMAT}; use the same version")
    return Document(kind=kind, body=body, public=public, raw=raw)


def _signed(kind: str, body: dict[str, Any]) -> bytes:
    """Return the bytes that a signature covers: kind and body, led by this project's name."""
    text = json.dumps({"kind": kind, "body": body}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return b"fedproxy-secure deploy\n" + text.encode()
