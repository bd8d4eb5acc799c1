"""The cryptographic functions that the protocols use, all from the library `cryptography`.

    sign, verify             Ed25519 (RFC 8032)
    agree                    X25519 (RFC 7748), then HKDF-SHA256 (RFC 5869)
    derive                   HKDF-SHA256
    digest                   SHA-256 over a list of byte strings
    seal, unseal             ChaCha20-Poly1305 (RFC 8439), with a random nonce in front
    tag, check_tag           AES-256-GCM without plaintext (NIST SP 800-38D); faster than a hash
    keystream                AES-256 in counter mode (NIST SP 800-38A), which generates masks

Private keys and derived keys are `Secret`s; public keys, signatures and tags are bytes.

Guarantees: `verify`, `agree`, `unseal` and `check_tag` raise the same `ProtocolAborted` for every failure.
It names what was checked, never why the check failed.

Not guaranteed: that secrets are wiped. Python cannot wipe memory: a `Secret` that is no longer referenced
may stay in memory until the memory is reused.
"""

from __future__ import annotations

import hashlib
import json
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted

KEY_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES = 12
TAG_BYTES = 16


def fresh_secret() -> Secret:
    """Return 32 random bytes from the operating system."""
    return Secret(os.urandom(KEY_BYTES))


def signing_public(private: Secret) -> bytes:
    """Return the Ed25519 public key of a private key, 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private.reveal()).public_key().public_bytes_raw()


def key_id(public: bytes) -> str:
    """Return the id of an Ed25519 public key, hex: SHA-256 of its canonical JSON in securesystemslib."""
    form = {"keytype": "ed25519", "keyval": {"public": public.hex()}, "scheme": "ed25519"}
    return hashlib.sha256(json.dumps(form, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sign(private: Secret, message: bytes) -> bytes:
    """Return the Ed25519 signature of a message, 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private.reveal()).sign(message)


def verify(public: bytes, message: bytes, signature: bytes, *, subject: str) -> None:
    """Raise `ProtocolAborted`, naming `subject`, unless the key `public` signed this message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise ProtocolAborted(f"{subject}: verification failed") from None


def agreement_public(private: Secret) -> bytes:
    """Return the X25519 public key of a private key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private.reveal()).public_key().public_bytes_raw()


def agree(private: Secret, public: bytes, *, info: bytes, subject: str) -> Secret:
    """Return a 32-byte key that only the owners of the two X25519 keys can compute.

    Args:
        private: of one owner.
        public: of the other owner, 32 bytes.
        info: the purpose; another purpose gives an independent key.
        subject: what `public` is, for the error.

    Raises `ProtocolAborted`, naming `subject`, for a public key of low order or of another length.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private.reveal()).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        raise ProtocolAborted(f"{subject}: verification failed") from None
    return derive(Secret(shared), info=info)


def derive(secret: Secret, *, info: bytes) -> Secret:
    """Return 32 bytes for the purpose `info`, derived from a secret by HKDF-SHA256 without salt."""
    return Secret(
        HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret.reveal())
    )


def digest(*parts: bytes) -> bytes:
    """Return SHA-256 over the parts, 32 bytes.

    Each part is preceded by its length, so that two lists of parts never give the same input to the hash.
    """
    hasher = hashes.Hash(hashes.SHA256())
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.finalize()


def seal(key: Secret, plaintext: bytes, *, associated: bytes) -> bytes:
    """Return nonce | ciphertext | tag. The tag also authenticates `associated`, which is not included.

    Nonces are random, so a key may seal at most 2^32 messages.
    """
    nonce = os.urandom(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key.reveal()).encrypt(nonce, plaintext, associated)


def unseal(key: Secret, sealed: bytes, *, associated: bytes, subject: str) -> bytes:
    """Return the plaintext of what `seal` returned.

    Raises `ProtocolAborted`, naming `subject`, if `sealed` or `associated` was changed or the key is wrong.
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise ProtocolAborted(f"{subject}: verification failed")
    try:
        return ChaCha20Poly1305(key.reveal()).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated
        )
    except InvalidTag:
        raise ProtocolAborted(f"{subject}: verification failed") from None


def tag(key: Secret, message: bytes) -> bytes:
    """Return a tag on the message, 16 bytes, that only holders of the key can compute.

    A key must tag only one message, because the nonce is fixed.
    """
    return AESGCM(key.reveal()).encrypt(bytes(NONCE_BYTES), b"", message)


def check_tag(key: Secret, message: bytes, tagged: bytes, *, subject: str) -> None:
    """Raise `ProtocolAborted`, naming `subject`, unless `tagged` is the message's tag under the key."""
    try:
        AESGCM(key.reveal()).decrypt(bytes(NONCE_BYTES), tagged, message)
    except (InvalidTag, ValueError):
        raise ProtocolAborted(f"{subject}: verification failed") from None


def keystream(key: Secret, *, from_byte: int = 0) -> CipherContext:
    """Return AES-256-CTR, whose `update_into(zeros, out)` writes the next bytes of the key's mask.

    `from_byte`: the first byte of the mask to write; a multiple of 16, the bytes of a block.

    The counter begins at 0. A key must generate only one mask, so that no counter repeats.
    """
    counter = (from_byte // 16).to_bytes(16, "big")
    return Cipher(AES256(key.reveal()), CTR(counter)).encryptor()
