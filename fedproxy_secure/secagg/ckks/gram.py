"""Weights `encrypted_gram`: the server computes H-TIES' cosines between clients on encrypted sketches.

These messages precede masking in the same attempt, after the exchange of a key by Hello, HelloBook,
KeyGrants and KeyGrant of `ckks.messages`:

    client -> server   EncryptedSketch   a count sketch of the update under the leader's fresh key
    server -> client   GramProducts      the encrypted inner products of all pairs
    client -> server   masking's Advertise, with a hash of the cosines that it opened

Guarantees: a server that follows the protocol, and that no client helps, learns none of the cosines. Every
client learns all of them.

Not guaranteed: anything against a server that deviates. It can send all clients the same products of its
own choice (of a sketch with a vector of its own, for example), and read from the sum of weights what the
clients computed from them: a linear functional of one client's update per attempt. A client helps to unmask
such a round once, so a round gives one such number; the reports of runs with these weights say so. Nor
anything against a server together with one client: the client has the key, which opens every sketch, 4096
numbers of each update. They are the same numbers in all attempts at a round (`Terms.sketch_seed`).

How the hash is used: it is part of the masking context. If clients were shown different products, their
signatures do not verify at the key book, and the attempt aborts. The hash is salted with the clients' key,
so the server cannot find the cosines by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import DataError, ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.ckks import products as ckks_gram
from fedproxy_secure.secagg.ckks.client import CkksClient
from fedproxy_secure.secagg.ckks.context import CkksKeys
from fedproxy_secure.secagg.ckks.messages import KeyGrant, KeyGrants
from fedproxy_secure.secagg.ckks.server import CkksServer
from fedproxy_secure.secagg.messages import TAG, Message, Size, Surface
from fedproxy_secure.secagg.ring import MAX_CLIENTS
from fedproxy_secure.secagg.sketch import GRID, SKETCH, Standing, count_sketch, gram_of, standing
from fedproxy_secure.secagg.steps import OVER, upload_key

CIPHERTEXT = Size(least=0, most=2**19)  # a sketch takes 235 kB, a product 131 kB


@dataclass(frozen=True, kw_only=True)
class EncryptedSketch(Message):
    """A client's sketch in one ciphertext, tagged for the server."""

    to: ClassVar[Surface] = "server"
    reveals: ClassVar[str] = "a ciphertext; to whoever has the secret key, 4096 numbers of the update"
    vector: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Size]] = {"encrypted": CIPHERTEXT, "tag": TAG}
    client: str
    encrypted: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class GramProducts(Message):
    """The encrypted inner products of all pairs (i, j), i < j, of `clients`, row by row."""

    to: ClassVar[Surface] = "clients"
    reveals: ClassVar[str] = "the cosine of every two clients' updates, to every client"
    vector: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Size]] = {
        "products": Size(least=0, most=CIPHERTEXT.most, rows=MAX_CLIENTS * (MAX_CLIENTS - 1) // 2)
    }
    clients: list[str]
    products: list[bytes]


@dataclass(frozen=True, kw_only=True)
class GramWeight:
    """What a client reads from the cosines: its weight, its retention, and a hash of all cosines."""

    standing: Standing
    gram_sha256: bytes


class GramClient(CkksClient):
    """One client in one attempt: `advertise`, `share` (only the leader), `sketch`, `weigh`."""

    def _make_keys(self) -> CkksKeys:
        return ckks_gram.make_keys()

    def _public_for_clients(self, keys: CkksKeys) -> bytes:
        return b""  # clients encrypt with the secret context, which they are granted

    def sketch(self, grant: KeyGrant, update: np.ndarray) -> EncryptedSketch:
        """Encrypt a sketch of this client's update, float [d], under the granted key (step 3)."""
        return self._in_turn("mask", lambda: self._sketch(grant, update))

    def _sketch(self, grant: KeyGrant, update: np.ndarray) -> EncryptedSketch:
        key = self._accept(grant)
        try:
            encrypted = ckks_gram.encrypt(key, count_sketch(update, self.terms.sketch_seed()))
        except DataError as error:
            raise ProtocolAborted(f"sketch: {error}") from error
        tag_key = upload_key(
            self._share_private(), self.terms.server_key, self._context, self.name, "server key"
        )
        return EncryptedSketch(client=self.name, encrypted=encrypted, tag=crypto.tag(tag_key, encrypted))

    def weigh(self, message: GramProducts, *, r0: float, delta: float) -> GramWeight:
        """Decrypt the products, once, and return this client's weight and retention (step 4).

        `r0` and `delta`: the settings of H-TIES' retention.
        """
        return self._once("unmask", lambda: self._weigh(message, r0, delta))

    def _weigh(self, message: GramProducts, r0: float, delta: float) -> GramWeight:
        self._check_names(message.clients, "products")
        if message.clients != sorted(message.clients):
            raise ProtocolAborted("products: clients must be sorted")
        assert self._key is not None  # ensured by the order of steps
        try:
            opened = ckks_gram.open_products(self._key, message.products)
        except DataError as error:
            raise ProtocolAborted(f"products: {error}") from error
        cosines = gram_of(len(message.clients), opened)
        salt = crypto.derive(self._key, info=b"gram salt|" + self._context).reveal()
        steps = np.round(cosines / GRID).astype("<i4").tobytes()
        weighed = GramWeight(
            standing=standing(cosines, message.clients.index(self.name), r0=r0, delta=delta),
            gram_sha256=crypto.digest(salt, *(c.encode() for c in message.clients), steps),
        )
        self._end()
        return weighed


class GramServer(CkksServer):
    """The server in one attempt.

    The order of calls is: `advertised`*, `hello_book`, `granted`, `grants`, `sketched`*, `products` (* once
    per client that answers).
    """

    STEPS = ("advertise", "share", "sketch", OVER)

    def _take_public(self, message: KeyGrants) -> None:
        self._probe = self._tried("sketch", message, SKETCH)
        self._sketches: dict[str, bytes] = {}

    def _public_for_clients(self, grants: KeyGrants) -> bytes:
        return b""  # as the leader signed it

    def sketched(self, message: EncryptedSketch) -> None:
        """Check an encrypted sketch and keep it for the products."""
        self._expect("sketch", message.client, self._hellos, self._sketches)
        self._check_upload(message.client, message.encrypted, message.tag)
        self._sketches[message.client] = message.encrypted

    def products(self) -> GramProducts:
        """Close step 3 and return the encrypted products.

        Raises `RoundAborted` for too few sketches, `ProtocolAborted` if some cannot be multiplied.
        """
        self._close("sketch", len(self._sketches))
        names, grants = sorted(self._sketches), self._grants
        assert grants is not None  # ensured by `grants`
        try:
            encrypted = ckks_gram.products(grants.public, [self._sketches[n] for n in names])
        except DataError as error:
            raise ProtocolAborted(f"sketch: {error}") from error
        return GramProducts(clients=names, products=encrypted)


def agreed_hash(hashes: dict[str, bytes], *, threshold: int) -> bytes:
    """Return the hash that most clients sent; clients with another hash count as dropped in masking.

    `hashes`: of the cosines that each client opened, by client.

    Raises `RoundAborted` if fewer than `threshold` clients sent it.
    """
    values = sorted(hashes.values())
    most: Callable[[bytes], int] = values.count
    best = max(values, key=most, default=b"")
    if values.count(best) < threshold:
        raise RoundAborted(
            f"products: {values.count(best)} clients opened the same cosines; must be >= {threshold}"
        )
    return best


MESSAGES: tuple[type[Message], ...] = (EncryptedSketch, GramProducts)
