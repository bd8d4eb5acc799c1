"""The messages of the CKKS back end, in the order in which they are sent, and what each reveals.

    client -> server   Hello        agreement key, signature
    server -> leader   HelloBook    all clients' agreement keys
    leader -> server   KeyGrants    a fresh public context; the secret one sealed for every client, signed
    server -> client   KeyGrant     this client's part of the key grants
    client -> server   Encrypted    the encrypted vector, tagged for the server
    server -> client   Total        the encrypted sum, whose vectors are in it, who returns it decrypted
    client -> server   Opened       the decrypted sum (from one client), a signature on its hash (from all)

The two state machines are like those of masking, one round trip shorter. The leader is the client that a
hash of the context selects. A server that tries many contexts can still choose the leader, but gains
nothing by that, because every client has the key.

Guarantees: a curious server that follows the protocol learns the sum over at least t clients and nothing
else. It accepts the sum only if t clients decrypted the same numbers. Every client checks that the
decrypted sum counts the clients that are said to be in it, and decrypts one sum per attempt.

Not guaranteed: anything against a server together with one client, because the client has the key, or
against a server that adds to ciphertexts, because whoever can encrypt can forge the count. Masking
guarantees more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.secagg.messages import HASH, KEY, SIGNATURE, TAG, VECTOR, Message, Size, Surface

PUBLIC = Size(least=0, most=2**25)  # a context with rotation keys takes 18 MB
SEALED_CONTEXT = Size(least=0, most=2**20)  # a context without rotation keys takes half a megabyte


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    """Step 1: a fresh agreement key of one client, signed with its key in the roster."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "that the client takes part"
    sizes: ClassVar[Mapping[str, Size]] = {"share_key": KEY, "signature": SIGNATURE}
    client: str
    share_key: bytes
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """Return what the signature covers."""
        return crypto.digest(b"hello", context, self.client.encode(), self.share_key)


@dataclass(frozen=True, kw_only=True)
class HelloBook(Message):
    """Step 2, to the leader: all clients' agreement keys; row i belongs to `clients[i]`."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "which clients take part"
    sizes: ClassVar[Mapping[str, Size]] = {"share_keys": KEY, "signatures": SIGNATURE}
    clients: list[str]
    share_keys: list[bytes]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class KeyGrants(Message):
    """Step 2, the leader's answer: the public context, and the secret one sealed for each client."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "the public CKKS context"
    sizes: ClassVar[Mapping[str, Size]] = {
        "share_key": KEY,
        "public": PUBLIC,
        "sealed": SEALED_CONTEXT,
        "signatures": SIGNATURE,
    }
    client: str
    share_key: bytes
    public: bytes
    receivers: list[str]
    sealed: list[bytes]
    signatures: list[bytes]


@dataclass(frozen=True, kw_only=True)
class KeyGrant(Message):
    """Step 3: one client's part of the leader's key grants."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "the secret CKKS key, to every client: any one can open every vector"
    sizes: ClassVar[Mapping[str, Size]] = {
        "share_key": KEY,
        "public": PUBLIC,
        "sealed": SEALED_CONTEXT,
        "signature": SIGNATURE,
    }
    leader: str
    share_key: bytes
    public: bytes
    sealed: bytes
    signature: bytes

    def signed(self, context: bytes, receiver: str) -> bytes:
        """Return what the leader's signature covers."""
        parts = (self.leader.encode(), self.share_key, receiver.encode(), self.public, self.sealed)
        return crypto.digest(b"grant", context, *parts)


@dataclass(frozen=True, kw_only=True)
class Encrypted(Message):
    """Step 3, answer: the encrypted vector."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "ciphertexts; to whoever has the secret key, the whole update"
    vector: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Size]] = {"encrypted": VECTOR, "tag": TAG}
    client: str
    encrypted: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class Total(Message):
    """Step 4: the encrypted sum over `clients`; `opener` returns it decrypted, the others its hash."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "the sum, to every client"
    vector: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Size]] = {"encrypted": VECTOR}
    clients: list[str]
    encrypted: bytes
    opener: str


@dataclass(frozen=True, kw_only=True)
class Opened(Message):
    """Step 4, answer: the decrypted sum and a signature on its hash.

    `values`: the bytes of little-endian float64 numbers; empty unless the client is the opener.
    """

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "the sum over the clients, rounded to a grid"
    vector: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Size]] = {"values": VECTOR, "values_sha256": HASH, "signature": SIGNATURE}
    client: str
    values: bytes
    values_sha256: bytes
    signature: bytes

    def signed(self, context: bytes) -> bytes:
        """Return what the signature covers."""
        return crypto.digest(b"opened", context, self.client.encode(), self.values_sha256)


MESSAGES: tuple[type[Message], ...] = (
    Hello,
    HelloBook,
    KeyGrants,
    KeyGrant,
    Encrypted,
    Total,
    Opened,
)
