"""The client's side of the masking protocol: a state machine without transport.

The protocol is that of Bonawitz et al. 2017, in the variant against an active server, in which every pair
of clients shares a mask. Each step takes the server's message (see `messages`) and returns the client's
answer, once and in order; the first failed check ends the attempt for good. `freeze` and `thaw` carry a
session from one process to the next.

Guarantees: a server that may do anything, and up to `protect.colluders` clients that help it, learn at most
one sum, over at least t clients of the cohort, of vectors made for exactly these terms.

Not guaranteed: that the round completes, or that other clients' vectors are honest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import SHARE_BYTES, split
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.masking.keys import commitment, mask_key, pairwise_key
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.messages import (
    Advertise,
    Confirmation,
    Confirmations,
    Inbox,
    KeyBook,
    MaskedInput,
    Shares,
    Survivors,
    Unmask,
)
from fedproxy_secure.secagg.ring import pack
from fedproxy_secure.secagg.steps import OVER, SteppedSession, upload_key
from fedproxy_secure.secagg.terms import Roster, Terms

T = TypeVar("T")
S = TypeVar("S", Advertise, Unmask)


class ClientSession(SteppedSession):
    """One client in one attempt: `advertise`, `share`, `mask`, `confirm`, `unmask`, in this order."""

    STEPS = ("advertise", "share", "mask", "confirm", "unmask", OVER)

    def __init__(
        self, *, name: str, identity: Secret, terms: Terms, roster: Roster, root: Secret | None = None
    ) -> None:
        super().__init__(name=name, identity=identity, terms=terms, roster=roster, root=root)
        self._book: KeyBook | None = None
        self._inbox: Inbox | None = None
        self._survivors: Survivors | None = None
        self._held: dict[str, tuple[Secret, Secret]] = {}  # shares by sender, opened again after `thaw`

    def advertise(self) -> Advertise:
        """Return fresh public keys and a commitment to the self mask, signed (step 1)."""
        return self._once("advertise", self._advertise)

    def _advertise(self) -> Advertise:
        unsigned = Advertise(
            client=self.name,
            share_key=crypto.agreement_public(self._secret("share key")),
            mask_key=crypto.agreement_public(self._secret("mask key")),
            commitment=commitment(self._secret("self mask"), self._context, self.name),
            signature=b"",
        )
        return _signed(unsigned, self._identity, unsigned.signed(self._context))

    def share(self, book: KeyBook) -> Shares:
        """Check all keys in the book, then return sealed shares of both secrets for the others (step 2)."""
        return self._once("share", lambda: self._share(book))

    def _share(self, book: KeyBook) -> Shares:
        rows = len(book.clients)
        if {rows} != {len(c) for c in (book.share_keys, book.mask_keys, book.commitments, book.signatures)}:
            raise ProtocolAborted("key book: columns must have the same length")
        self._check_names(book.clients, "key book", within=self.terms.cohort)
        keys = [*book.share_keys, *book.mask_keys]
        if len(set(keys)) != len(keys):
            raise ProtocolAborted("key book: a key is there twice; keys must differ")
        for i, client in enumerate(book.clients):
            row = Advertise(
                client=client,
                share_key=book.share_keys[i],
                mask_key=book.mask_keys[i],
                commitment=book.commitments[i],
                signature=book.signatures[i],
            )
            if client == self.name and row.to_fields() | {"signature": b""} != (
                self._advertise().to_fields() | {"signature": b""}
            ):
                raise ProtocolAborted("key book: this client's own row was changed")
            self._check_signature(
                client, row.signed(self._context), row.signature, f"key book, signature of {client}"
            )
        self._book = book
        self_shares, key_shares = self._split(book.clients)
        receivers = [c for c in book.clients if c != self.name]
        sealed = []
        for peer in receivers:
            point = self.terms.point_of(peer)
            pair = self_shares[point].reveal() + key_shares[point].reveal()
            key, route = self._channel(peer, outgoing=True), self._route(self.name, peer)
            sealed.append(crypto.seal(key, pair, associated=route))
        return Shares(client=self.name, receivers=receivers, sealed=sealed)

    def mask(self, inbox: Inbox, words: np.ndarray) -> MaskedInput:
        """Check the shares received, then mask `words`, ring words [plan.words], in place (step 3)."""
        return self._once("mask", lambda: self._mask(inbox, words))

    def _mask(self, inbox: Inbox, words: np.ndarray) -> MaskedInput:
        if len(inbox.senders) != len(inbox.sealed):
            raise ProtocolAborted("inbox: columns must have the same length")
        self._check_names(inbox.senders, "inbox", within=self._known(self._book).clients)
        if words.shape != (self.terms.plan.words,) or words.dtype != self.terms.plan.word_type:
            raise ProtocolAborted(
                f"vector of {words.dtype} {words.shape}: must be {self.terms.plan.words} words of "
                f"{np.dtype(self.terms.plan.word_type)}"
            )
        self._inbox = inbox
        for sender in inbox.senders:
            self._shares_from(sender)  # finds damaged shares before anything is masked
        plus: list[Secret] = [mask_key(self._secret("self mask"), self._context)]
        minus: list[Secret] = []
        for peer in inbox.senders:
            if peer != self.name:
                key = pairwise_key(
                    self._secret("mask key"), self._row(peer)[1], self._context, self.name, peer
                )
                (plus if self.name < peer else minus).append(key)
        add_masks(words, plus=plus, minus=minus)
        key = upload_key(
            self._secret("share key"), self.terms.server_key, self._context, self.name, "server key"
        )
        packed = pack(self.terms.plan, words)
        return MaskedInput(client=self.name, masked=packed, tag=crypto.tag(key, packed))

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Sign two sets as this client saw them: who sent shares, and who survived (step 4)."""
        return self._once("confirm", lambda: self._confirm(survivors))

    def _confirm(self, survivors: Survivors) -> Confirmation:
        shared = self._known(self._inbox).senders
        self._check_names(survivors.clients, "survivors", within=shared)
        self._survivors = survivors
        message = Confirmation.signed(self._context, shared, survivors.clients)
        return Confirmation(client=self.name, signature=crypto.sign(self._identity, message))

    def unmask(self, confirmations: Confirmations) -> Unmask:
        """Check that t survivors signed the same sets, then return one share of each client (step 5)."""
        return self._once("unmask", lambda: self._unmask(confirmations))

    def _unmask(self, confirmations: Confirmations) -> Unmask:
        survivors, shared = self._known(self._survivors).clients, self._known(self._inbox).senders
        if len(confirmations.clients) != len(confirmations.signatures):
            raise ProtocolAborted("confirmations: columns must have the same length")
        self._check_names(confirmations.clients, "confirmations", within=survivors, with_own=False)
        message = Confirmation.signed(self._context, shared, survivors)
        for client, signature in zip(confirmations.clients, confirmations.signatures, strict=True):
            self._check_confirmation(client, message, signature)
        alive = sorted(survivors)
        dropped = sorted(set(shared) - set(survivors))
        unsigned = Unmask(
            client=self.name,
            survivors=alive,
            self_shares=[self._shares_from(c)[0].reveal() for c in alive],
            dropped=dropped,
            key_shares=[self._shares_from(c)[1].reveal() for c in dropped],
            signature=b"",
        )
        answer = _signed(unsigned, self._identity, unsigned.signed(self._context))
        self._end()
        return answer

    # the state between steps

    def _frozen_fields(self) -> dict[str, Any]:
        messages = {"book": self._book, "inbox": self._inbox, "survivors": self._survivors}
        return {n: None if m is None else _to_json(m.to_fields()) for n, m in messages.items()}

    def _thaw_fields(self, state: Mapping[str, Any]) -> None:
        for slot, kind in (("book", KeyBook), ("inbox", Inbox), ("survivors", Survivors)):
            if state[slot] is not None:
                setattr(self, f"_{slot}", kind(**_from_json(state[slot])))

    def _forget(self) -> None:
        self._book = self._inbox = self._survivors = None
        self._held = {}

    # checks

    def _check_signature(self, client: str, message: bytes, signature: bytes, what: str) -> None:
        crypto.verify(self.roster.members[client], message, signature, what=what)

    def _check_confirmation(self, client: str, message: bytes, signature: bytes) -> None:
        self._check_signature(client, message, signature, f"confirmation of {client}")

    def _check_names(self, names: list[str], what: str, *, within: Any, with_own: bool = True) -> None:
        if len(set(names)) != len(names):
            raise ProtocolAborted(f"{what}: a client is there twice")
        if strangers := set(names) - set(within):
            raise ProtocolAborted(f"{what}: {min(strangers)[:80]} does not belong there")
        if with_own and self.name not in names:
            raise ProtocolAborted(f"{what}: this client is missing")
        if len(names) < self.terms.threshold:
            raise ProtocolAborted(f"{what}: {len(names)} clients; must be >= {self.terms.threshold}")

    # secrets and shares

    def _secret(self, label: str) -> Secret:
        """Return the secret of this attempt with this label; it is derived from the root each time."""
        return crypto.derive(self._root, info=label.encode() + b"|" + self._context)

    def _split(self, holders: list[str]) -> tuple[dict[int, Secret], dict[int, Secret]]:
        """Return shares, by the holders' points, of the self mask and of the mask key."""
        points = [self.terms.point_of(c) for c in holders]
        dealt = []
        for label in ("self mask", "mask key"):
            halves = [
                (self._secret(f"{label} {i} high"), self._secret(f"{label} {i} low"))
                for i in range(1, self.terms.threshold)
            ]
            coefficients = [Secret(high.reveal() + low.reveal()) for high, low in halves]
            dealt.append(split(self._secret(label), points, coefficients))
        return dealt[0], dealt[1]

    def _shares_from(self, sender: str) -> tuple[Secret, Secret]:
        """Return the shares of a sender's self mask and of its mask key that this client holds."""
        if sender not in self._held:
            self._held[sender] = self._own_shares() if sender == self.name else self._opened(sender)
        return self._held[sender]

    def _own_shares(self) -> tuple[Secret, Secret]:
        point = self.terms.point_of(self.name)
        self_shares, key_shares = self._split(self._known(self._book).clients)
        return self_shares[point], key_shares[point]

    def _opened(self, sender: str) -> tuple[Secret, Secret]:
        """Return the pair of shares that a sender sealed for this client."""
        inbox = self._known(self._inbox)
        pair = crypto.unseal(
            self._channel(sender, outgoing=False),
            inbox.sealed[inbox.senders.index(sender)],
            associated=self._route(sender, self.name),
            what=f"shares from {sender}",
        )
        if len(pair) != 2 * SHARE_BYTES:
            raise ProtocolAborted(f"shares from {sender}: verification failed")
        return Secret(pair[:SHARE_BYTES]), Secret(pair[SHARE_BYTES:])

    def _channel(self, peer: str, *, outgoing: bool) -> Secret:
        """Return the key that seals shares to or from a peer; each direction has its own."""
        route = self._route(self.name, peer) if outgoing else self._route(peer, self.name)
        return crypto.agree(
            self._secret("share key"), self._row(peer)[0], info=route, what=f"share key of {peer}"
        )

    def _route(self, sender: str, receiver: str) -> bytes:
        return crypto.digest(b"shares", self._context, sender.encode(), receiver.encode())

    def _row(self, client: str) -> tuple[bytes, bytes]:
        """Return a client's public share key and mask key, from the key book."""
        book = self._known(self._book)
        i = book.clients.index(client)
        return book.share_keys[i], book.mask_keys[i]

    @staticmethod
    def _known(message: T | None) -> T:
        assert message is not None  # ensured by the order of steps
        return message


def _signed(message: S, identity: Secret, covered: bytes) -> S:
    return replace(message, signature=crypto.sign(identity, covered))


def _to_json(fields: dict[str, Any]) -> dict[str, Any]:
    def hexed(value: Any) -> Any:
        return [{"hex": v.hex()} if isinstance(v, bytes) else v for v in value]

    return {name: hexed(value) for name, value in fields.items()}


def _from_json(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for v in value]
        for name, value in fields.items()
    }
