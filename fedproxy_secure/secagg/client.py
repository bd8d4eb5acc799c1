"""The client's side of the masking protocol: a state machine without transport.

Bonawitz et al. 2017, the variant against an active server, on the complete graph. Each step takes the
server's message and returns the client's answer, once and in order; the first failed check ends the
attempt for good. `freeze` and `thaw` carry a session from one process to the next.

Guarantees, against a server that may do anything, together with up to `policy.colluders` clients: it
learns at most one sum, over at least t clients of the cohort, of vectors made for exactly these terms.
Not guaranteed: that the round completes, or that the others' vectors are honest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg import primitives as crypto
from fedproxy_secure.secagg.masks import add_masks
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
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.shamir import SHARE_BYTES, split
from fedproxy_secure.secagg.terms import Roster, Terms

STEPS = ("advertise", "share", "mask", "confirm", "unmask", "over")
T = TypeVar("T")
S = TypeVar("S", Advertise, Unmask)


class ClientSession:
    """One client in one attempt. All its secrets follow from `root`, fresh from the operating system.

    Args:
        name: this client, in the terms' cohort.
        identity: its Ed25519 private key of provisioning.
        terms: accepted beforehand by `Policy.check`.
        roster: this client's own.
    """

    def __init__(
        self, *, name: str, identity: Secret, terms: Terms, roster: Roster, root: Secret | None = None
    ) -> None:
        self.name, self.terms, self.roster = name, terms, roster
        self._identity = identity
        self._root = root or crypto.fresh_secret()
        self._context = terms.context()
        self._step = "advertise"
        self._book: KeyBook | None = None
        self._inbox: Inbox | None = None
        self._survivors: Survivors | None = None
        self._held: dict[str, tuple[Secret, Secret]] = {}  # by sender; computed anew after `thaw`

    # step 1

    def advertise(self) -> Advertise:
        """Fresh public keys, and a commitment to the self mask."""
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

    # step 2

    def share(self, book: KeyBook) -> Shares:
        """Check every key in the book, then deal shares of both secrets to everyone in it."""
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
            sealed.append(
                crypto.seal(
                    self._channel(peer, outgoing=True),
                    pair,
                    associated=self._route(self.name, peer),
                )
            )
        return Shares(client=self.name, receivers=receivers, sealed=sealed)

    # step 3

    def mask(self, inbox: Inbox, words: np.ndarray) -> MaskedInput:
        """Check the shares received, then mask `words` (ring words [plan.words], changed in place)."""
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
            self._shares_from(sender)  # a damaged one is found now, before anything is masked
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

    # step 4

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Sign the sets that this client was shown."""
        return self._once("confirm", lambda: self._confirm(survivors))

    def _confirm(self, survivors: Survivors) -> Confirmation:
        shared = self._known(self._inbox).senders
        self._check_names(survivors.clients, "survivors", within=shared)
        self._survivors = survivors
        message = Confirmation.signed(self._context, shared, survivors.clients)
        return Confirmation(client=self.name, signature=crypto.sign(self._identity, message))

    # step 5

    def unmask(self, confirmations: Confirmations) -> Unmask:
        """Check that t survivors saw the same sets, then give up one share of each client, once."""
        return self._once("unmask", lambda: self._unmask(confirmations))

    def _unmask(self, confirmations: Confirmations) -> Unmask:
        survivors, shared = self._known(self._survivors).clients, self._known(self._inbox).senders
        if len(confirmations.clients) != len(confirmations.signatures):
            raise ProtocolAborted("confirmations: columns must have the same length")
        self._check_names(confirmations.clients, "confirmations", within=survivors, own=False)
        message = Confirmation.signed(self._context, shared, survivors)
        for client, signature in zip(confirmations.clients, confirmations.signatures, strict=True):
            self._check_signature(client, message, signature, f"confirmation of {client}")
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

    # carried from one process to the next

    def freeze(self) -> Secret:
        """Everything this session needs to go on elsewhere; terms and identity are not in it."""
        state = {
            "root": self._root.reveal().hex(),
            "step": self._step,
            "context": self._context.hex(),
            **{
                name: None if message is None else _plain(message.to_fields())
                for name, message in (
                    ("book", self._book),
                    ("inbox", self._inbox),
                    ("survivors", self._survivors),
                )
            },
        }
        return Secret(json.dumps(state).encode())

    @classmethod
    def thaw(
        cls, frozen: Secret, *, name: str, identity: Secret, terms: Terms, roster: Roster
    ) -> ClientSession:
        """Go on where `freeze` left. Raises `ProtocolAborted` if it was frozen under other terms."""
        state = json.loads(frozen.reveal())
        session = cls(
            name=name,
            identity=identity,
            terms=terms,
            roster=roster,
            root=Secret(bytes.fromhex(state["root"])),
        )
        if bytes.fromhex(state["context"]) != session._context:
            raise ProtocolAborted("session: belongs to other terms")
        session._step = state["step"]
        for slot, kind in (("book", KeyBook), ("inbox", Inbox), ("survivors", Survivors)):
            if state[slot] is not None:
                setattr(session, f"_{slot}", kind(**_unplain(state[slot])))
        return session

    # inside

    def _once(self, step: str, action: Callable[[], T]) -> T:
        """Run a step if it is its turn; whatever goes wrong ends the session."""
        if self._step != step:
            raise ProtocolAborted(f"{step}: asked when {self._step} is next; each step runs once, in order")
        try:
            answer = action()
        except BaseException:
            self._end()
            raise
        if self._step == step:
            self._step = STEPS[STEPS.index(step) + 1]
        return answer

    def _end(self) -> None:
        self._step = "over"
        self._root = Secret(b"")
        self._book = self._inbox = self._survivors = None
        self._held = {}

    def _check_signature(self, client: str, message: bytes, signature: bytes, what: str) -> None:
        crypto.verify(self.roster.members[client], message, signature, what=what)

    def _check_names(self, names: list[str], what: str, *, within: Any, own: bool = True) -> None:
        if len(set(names)) != len(names):
            raise ProtocolAborted(f"{what}: a client is there twice")
        if strangers := set(names) - set(within):
            raise ProtocolAborted(f"{what}: {min(strangers)[:80]} does not belong there")
        if own and self.name not in names:
            raise ProtocolAborted(f"{what}: this client is missing")
        if len(names) < self.terms.threshold:
            raise ProtocolAborted(f"{what}: {len(names)} clients; must be >= {self.terms.threshold}")

    def _secret(self, label: str) -> Secret:
        return crypto.derive(self._root, info=label.encode() + b"|" + self._context)

    def _split(self, holders: list[str]) -> tuple[dict[int, Secret], dict[int, Secret]]:
        points = [self.terms.point_of(c) for c in holders]
        made = []
        for label in ("self mask", "mask key"):
            halves = [
                (self._secret(f"{label} {i} high"), self._secret(f"{label} {i} low"))
                for i in range(1, self.terms.threshold)
            ]
            coefficients = [Secret(high.reveal() + low.reveal()) for high, low in halves]
            made.append(split(self._secret(label), points, coefficients))
        return made[0], made[1]

    def _shares_from(self, sender: str) -> tuple[Secret, Secret]:
        """(share of the sender's self mask, share of its mask key) that this client holds."""
        if sender not in self._held:
            self._held[sender] = self._own_shares() if sender == self.name else self._opened(sender)
        return self._held[sender]

    def _own_shares(self) -> tuple[Secret, Secret]:
        point = self.terms.point_of(self.name)
        self_shares, key_shares = self._split(self._known(self._book).clients)
        return self_shares[point], key_shares[point]

    def _opened(self, sender: str) -> tuple[Secret, Secret]:
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
        """The key for shares to or from a peer; each direction has its own."""
        route = self._route(self.name, peer) if outgoing else self._route(peer, self.name)
        return crypto.agree(
            self._secret("share key"), self._row(peer)[0], info=route, what=f"share key of {peer}"
        )

    def _route(self, sender: str, receiver: str) -> bytes:
        return crypto.digest(b"shares", self._context, sender.encode(), receiver.encode())

    def _row(self, client: str) -> tuple[bytes, bytes]:
        book = self._known(self._book)
        i = book.clients.index(client)
        return book.share_keys[i], book.mask_keys[i]

    @staticmethod
    def _known(message: T | None) -> T:
        assert message is not None  # the order of steps sees to it
        return message


def commitment(self_mask: Secret, context: bytes, client: str) -> bytes:
    """Hash by which everyone can tell a rightly reconstructed self mask; hides it, as it is random."""
    return crypto.digest(b"commitment", context, client.encode(), self_mask.reveal())


def mask_key(self_mask: Secret, context: bytes) -> Secret:
    """Key of a client's self mask."""
    return crypto.derive(self_mask, info=b"self mask stream|" + context)


def pairwise_key(private: Secret, public: bytes, context: bytes, one: str, other: str) -> Secret:
    """Key of the mask that two clients share; the same from either side."""
    first, second = sorted((one, other))
    return crypto.agree(
        private,
        public,
        info=crypto.digest(b"pair", context, first.encode(), second.encode()),
        what=f"mask key of {other}",
    )


def upload_key(private: Secret, public: bytes, context: bytes, client: str, what: str) -> Secret:
    """Key of the tag on a client's vector; the same from the client's and the server's side."""
    info = crypto.digest(b"upload", context, client.encode())
    return crypto.agree(private, public, info=info, what=what)


def _signed(message: S, identity: Secret, covered: bytes) -> S:
    return replace(message, signature=crypto.sign(identity, covered))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    def hexed(value: Any) -> Any:
        return [{"hex": v.hex()} if isinstance(v, bytes) else v for v in value]

    return {name: hexed(value) for name, value in fields.items()}


def _unplain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for v in value]
        for name, value in fields.items()
    }
