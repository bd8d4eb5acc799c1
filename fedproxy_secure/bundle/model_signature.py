"""OpenSSF model signatures (model-signing 1.x): one file per model; their tool verifies it offline.

The signature has an elliptic curve key, P-256, as `model_signing verify key` reads it. That library has no
Ed25519, and its keyless methods need a network. The key is derived from the run's audit key by HKDF-SHA256,
so nobody has to keep a second key; its public half is a file of the bundle, which the audit key signs.
Signatures are made here and not by the library, which draws a random number for each: by RFC 6979 equal
models give equal bytes, and no private key is written to a disk.

  model_signing verify key MODEL --public_key keys/models.pem --signature model-signatures/seed-0/fused.sig
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedproxy_secure.bundle.envelope import PAYLOAD_TYPE, STATEMENT_TYPE, pae
from fedproxy_secure.crypto.primitives import derive
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import AuditError
from fedproxy_secure.runtime.artifacts import json_bytes
from fedproxy_secure.runtime.untrusted import parse_json

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "https://model_signing/signature/v1.0"
SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [".git", ".gitattributes", ".github", ".gitignore"],
}


def model_key(audit_key: Secret) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key that signs models, derived from the audit key."""
    parts = [derive(audit_key, info=b"fedproxy-secure model signing 1 " + half) for half in (b"a", b"b")]
    number = int.from_bytes(b"".join(part.reveal() for part in parts), "big")  # 512 bits: no bias below
    curve = ec.SECP256R1()
    return ec.derive_private_key(number % (curve.group_order - 1) + 1, curve)


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def root_digest(files: Mapping[str, str]) -> str:
    """Return the digest of a model, hex: SHA-256 over its files' digests in the order of their names."""
    return hashlib.sha256(b"".join(bytes.fromhex(files[name]) for name in _ordered(files))).hexdigest()


def sign_model(name: str, files: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the signature of a model folder called `name`; `files`: relative path -> SHA-256, hex."""
    payload = json.dumps(_statement(name, files), sort_keys=True).encode()
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    signature = key.sign(pae(payload), algorithm)
    return json_bytes(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": hashlib.sha256(public_pem(key)).hexdigest()},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def check_model_signature(raw: bytes, pem: bytes, name: str, files: Mapping[str, str]) -> None:
    """Raise `AuditError` unless `raw` is the signature of a model with these files by the key in `pem`."""
    try:
        public = load_pem_public_key(pem)
        envelope = parse_json(raw)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("another kind of key")
        public.verify(signature, pae(payload), ec.ECDSA(hashes.SHA256()))
        stated = parse_json(payload)
    except (InvalidSignature, ValueError, LookupError, TypeError) as error:
        raise AuditError("is no signature by the key in keys/models.pem") from error
    if stated != _statement(name, files):
        raise AuditError("is the signature of another model")


def _statement(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    resources = [{"algorithm": "sha256", "digest": files[n], "name": n} for n in _ordered(files)]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root_digest(files)}}],
        "predicateType": PREDICATE,
        "predicate": {"resources": resources, "serialization": SERIALIZATION},
    }


def _ordered(files: Mapping[str, str]) -> list[str]:
    return sorted(files, key=PurePosixPath)
