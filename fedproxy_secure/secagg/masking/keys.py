"""Keys and commitments of one attempt, which clients and server derive alike from its context.

    commitment     hash of a self mask; tells a wrong reconstruction from the right one
    mask_key       seed of a client's self mask
    pairwise_key   seed of the mask that two clients share

Guarantees: the context, and the name or names, enter every derivation, so that no key or commitment serves
in another attempt or for another client.
"""

from __future__ import annotations

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret


def commitment(self_mask: Secret, context: bytes, client: str) -> bytes:
    """Commit to a self mask by a hash, which hides its 256 random bits and lets all check a rebuilt one."""
    return crypto.digest(b"commitment", context, client.encode(), self_mask.reveal())


def mask_key(self_mask: Secret, context: bytes) -> Secret:
    """Derive the key of a client's self mask."""
    return crypto.derive(self_mask, info=b"self mask stream|" + context)


def pairwise_key(private: Secret, public: bytes, context: bytes, one: str, other: str) -> Secret:
    """Derive the key of the mask that two clients share; the same from either side."""
    first, second = sorted((one, other))
    return crypto.agree(
        private,
        public,
        info=crypto.digest(b"pair", context, first.encode(), second.encode()),
        what=f"mask key of {other}",
    )
