"""DSSE envelopes: an in-toto Statement with an Ed25519 signature by a run's audit key.

    PAE       = "DSSEv1", length and text of the payload's type, length and bytes of the payload
    signature = Ed25519(PAE)

The envelope is the JSON of DSSE 1.0, so that other tools can verify it. Its `keyid` is the one that
securesystemslib computes for the same key. An id only finds a key; the signature is the proof.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from fedproxy_secure.crypto.primitives import key_id, sign, signing_public, verify
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError, ProtocolAborted
from fedproxy_secure.runtime.artifacts import json_bytes
from fedproxy_secure.runtime.untrusted import parse_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MEMBERS = {"payload", "payloadType", "signatures"}  # of an envelope


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the bytes to sign: DSSE's pre-authentication encoding of a payload.

    >>> pae(b"hello", "text")
    b'DSSEv1 4 text 5 hello'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal_statement(statement: Mapping[str, Any], key: Secret) -> bytes:
    """Return the JSON envelope of a statement signed with an Ed25519 key; equal input gives equal bytes."""
    payload = json.dumps(statement, sort_keys=True, allow_nan=False).encode()
    signature = {
        "keyid": key_id(signing_public(key)),
        "sig": base64.b64encode(sign(key, pae(payload))).decode(),
    }
    return json_bytes(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [signature],
        }
    )


def open_envelope(raw: bytes, public: bytes) -> dict[str, Any]:
    """Return the statement in an envelope that the owner of `public`, Ed25519, 32 bytes, signed.

    Raises `AuditError` for another signer, and for anything but one envelope with one signature, byte for
    byte as `seal_statement` writes it, because no hash covers the bytes beside the payload.
    """
    try:
        envelope = parse_json(raw)
        (signature,) = envelope["signatures"]
        if {*envelope} != MEMBERS or {*signature} != {"keyid", "sig"} or json_bytes(envelope) != raw:
            raise ValueError("another form")
        payload = _decoded(envelope["payload"])
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError("another type")
        signed, named = _decoded(signature["sig"]), signature["keyid"]
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError("is no DSSE envelope with one signature over an in-toto Statement") from error
    if named != key_id(public):
        raise AuditError(f"names the key {str(named)[:16]}, not {key_id(public)[:16]} of --key")
    try:
        verify(public, pae(payload), signed, subject="signature")
        statement = parse_json(payload)
    except (ProtocolAborted, ValueError):
        raise AuditError("was altered: the signature is not that of --key") from None
    if not isinstance(statement, dict):
        raise AuditError("holds no in-toto Statement")
    return statement


def _decoded(text: Any) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error
    if base64.b64encode(decoded).decode() != text:  # unused bits of the last digit
        raise ValueError("is not the one base64 of its bytes")
    return decoded
