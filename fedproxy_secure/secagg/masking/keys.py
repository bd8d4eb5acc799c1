"""Keys and commitments of one attempt, which clients and server derive in the same way.

    commitment     the hash of a self mask, which tells the right reconstruction from a wrong one
    mask_key       the key of the stream that is a client's self mask
    pairwise_key   the key of the mask that two clients share

Guarantees: every derivation includes the attempt's context, so that no key or commitment serves in another
attempt. That of a commitment or a pairwise key also includes the clients' names, so that it serves for no
other client. A `mask_key` follows from the client's own random secret instead.
"""

from __future__ import annotations

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret


def commitment(self_mask: Secret, context: bytes, client: str) -> bytes:
    """Return a hash that hides a self mask (256 random bits) and against which a rebuilt one is checked."""
    return crypto.digest(b"commitment", context, client.encode(), self_mask.reveal())


def mask_key(self_mask: Secret, context: bytes) -> Secret:
    """Derive the key of the stream that a client adds as its self mask."""
    return crypto.derive(self_mask, info=b"self mask stream|" + context)


def pairwise_key(private: Secret, public: bytes, context: bytes, one: str, other: str) -> Secret:
    """Derive the key of the mask that two clients share; both derive the same key.

    `private` is the mask key of one of the two clients, `public` that of the other, in either order. Raises
    `ProtocolAborted`, naming `other`, if `public` cannot be used.
    """
    first, second = sorted((one, other))
    return crypto.agree(
        private,
        public,
        info=crypto.digest(b"pair", context, first.encode(), second.encode()),
        what=f"mask key of {other}",
    )
