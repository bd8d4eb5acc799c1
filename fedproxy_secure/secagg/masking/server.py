"""The server's side of the masking protocol: a state machine without transport.

In each step the caller passes on the clients' messages as they arrive, decides how long to wait, and then
closes the step. A message that fails a check raises and changes nothing; its sender counts as dropped.
Closing a step with fewer than t clients ends the attempt.

Guarantees: `finish` returns the exact sum over the survivors or raises `RoundAborted` (`ProtocolAborted` if
a check failed). The sums of control words are sums that honest clients with the expected settings can have.
Memory is a few vectors, whatever the number of clients.

Not guaranteed: that a client's words are within the clip. The server sees sums only, and no vector comes
with a proof. One malicious client can set each coordinate of the sum to any value within +- K clips,
whatever the other K - 1 clients sent, but not beyond, because the ring ends there. `granularity.merge` says
what that does to the fused step.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.control import Expected, decode_control
from fedproxy_secure.secagg.masking.keys import commitment, mask_key, pairwise_key
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.masking.rebuild import Rebuilder
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
from fedproxy_secure.secagg.ring import add_packed, read_sum
from fedproxy_secure.secagg.steps import OVER, Aggregate, SteppedServer
from fedproxy_secure.secagg.terms import Roster, Terms


class ServerSession(SteppedServer):
    """The server in one attempt at one round.

    The order of calls is: `advertised`*, `key_book`, `shared`*, `inboxes`, `masked`*, `survivors`,
    `confirmed`*, `confirmations`, `unmasked`*, `finish` (* once per client that answers).

    Attributes:
        misfits: after `finish`, by client that gave a share that did not fit, the secret it did not fit.
    """

    STEPS = ("advertise", "share", "mask", "confirm", "unmask", OVER)

    def __init__(
        self, *, terms: Terms, roster: Roster, private: Secret, expected: Expected | None = None
    ) -> None:
        super().__init__(terms=terms, roster=roster, private=private, expected=expected)
        self._advertised: dict[str, Advertise] = {}
        self._shares: dict[str, Shares] = {}
        self._survivors: list[str] = []
        self._total = np.zeros(terms.plan.words, dtype=terms.plan.word_type)
        self._confirmations: dict[str, bytes] = {}
        self._unmasks: dict[str, Unmask] = {}
        self.misfits: dict[str, str] = {}

    # step 1

    def advertised(self, message: Advertise) -> None:
        """Accept a client's keys.

        Raises `ProtocolAborted` if its key in the roster did not sign them, or if they would make every
        other client abort at the key book: keys of low order, or keys that another client has sent.
        """
        self._expect("advertise", message.client, self.terms.cohort, self._advertised)
        self._verify(message.client, message.signed(self._context), message.signature)
        taken = {key for a in self._advertised.values() for key in (a.share_key, a.mask_key)}
        if message.share_key == message.mask_key or taken & {message.share_key, message.mask_key}:
            raise ProtocolAborted(f"keys of {message.client}: one is there twice; keys must differ")
        for key in (message.share_key, message.mask_key):
            crypto.agree(self._private, key, info=b"usable", what=f"keys of {message.client}")
        self._advertised[message.client] = message

    def key_book(self) -> KeyBook:
        """Close step 1 and return all advertised keys, for all clients in the book."""
        self._close("advertise", len(self._advertised))
        rows = [self._advertised[c] for c in sorted(self._advertised)]
        return KeyBook(
            clients=[r.client for r in rows],
            share_keys=[r.share_key for r in rows],
            mask_keys=[r.mask_key for r in rows],
            commitments=[r.commitment for r in rows],
            signatures=[r.signature for r in rows],
        )

    # step 2

    def shared(self, message: Shares) -> None:
        """Accept a client's sealed shares, one pair for every other client in the key book."""
        self._expect("share", message.client, self._advertised, self._shares)
        receivers = sorted(set(self._advertised) - {message.client})
        if message.receivers != receivers or len(message.sealed) != len(receivers):
            raise ProtocolAborted(f"shares of {message.client}: must be one for each other client")
        self._shares[message.client] = message

    def inboxes(self) -> dict[str, Inbox]:
        """Close step 2 and return the inbox of every client that sent shares."""
        self._close("share", len(self._shares))
        senders = sorted(self._shares)
        sealed = {
            (sender, receiver): letter
            for sender, message in self._shares.items()
            for receiver, letter in zip(message.receivers, message.sealed, strict=True)
        }
        return {
            receiver: Inbox(senders=senders, sealed=[sealed.get((s, receiver), b"") for s in senders])
            for receiver in senders
        }

    # step 3

    def masked(self, message: MaskedInput) -> None:
        """Check a masked vector's tag and add the vector to the total; the vector itself is not kept."""
        self._expect("mask", message.client, self._shares, self._survivors)
        public = self._advertised[message.client].share_key
        self._check_tag(message.client, public, message.masked, message.tag)
        try:
            add_packed(self.terms.plan, self._total, message.masked)
        except DataError as error:
            raise ProtocolAborted(f"{message.client}: {error}") from error
        self._survivors.append(message.client)

    def survivors(self) -> Survivors:
        """Close step 3 and return the clients whose vectors arrived."""
        self._close("mask", len(self._survivors))
        self._survivors.sort()
        return Survivors(clients=list(self._survivors))

    # step 4

    def confirmed(self, message: Confirmation) -> None:
        """Accept a survivor's signature on the two sets, of clients that sent shares and of survivors."""
        self._expect("confirm", message.client, self._survivors, self._confirmations)
        covered = Confirmation.signed(self._context, sorted(self._shares), self._survivors)
        self._verify(message.client, covered, message.signature)
        self._confirmations[message.client] = message.signature

    def confirmations(self) -> Confirmations:
        """Close step 4 and return the signatures, for all clients that signed."""
        self._close("confirm", len(self._confirmations))
        names = sorted(self._confirmations)
        return Confirmations(clients=names, signatures=[self._confirmations[n] for n in names])

    # step 5

    def unmasked(self, message: Unmask) -> None:
        """Accept the shares, from a client that confirmed, of self masks and of drop-outs' mask keys."""
        self._expect("unmask", message.client, self._confirmations, self._unmasks)
        self._verify(message.client, message.signed(self._context), message.signature)
        if (
            message.survivors != self._survivors
            or message.dropped != self._dropped
            or len(message.self_shares) != len(message.survivors)
            or len(message.key_shares) != len(message.dropped)
        ):
            raise ProtocolAborted(f"shares of {message.client}: must be one for each client of the step")
        self._unmasks[message.client] = message

    def finish(self) -> Aggregate:
        """Close step 5: rebuild the secrets, remove the masks, check the sentinels and return the sums.

        A false share is left out if enough others came, and recorded in `misfits` (see `Rebuilder`).

        Raises `RoundAborted` if too few clients sent shares, and `ProtocolAborted` if a secret cannot be
        rebuilt as its owner committed to it or a sum fails its check.
        """
        self._close("unmask", len(self._unmasks))
        rebuilder = Rebuilder({g: self.terms.point_of(g) for g in self._unmasks}, self.terms.threshold)
        self.misfits = rebuilder.misfits
        # each survivor added its self mask, and added or subtracted the mask that it shares with each
        # drop-out: undo that
        plus: list[Secret] = []
        minus: list[Secret] = []
        for i, client in enumerate(self._survivors):
            shares = {giver: message.self_shares[i] for giver, message in self._unmasks.items()}
            self_mask = rebuilder.secret(
                shares, self._is_self_mask_of(client), what=f"self mask of {client}"
            )
            minus.append(mask_key(self_mask, self._context))
        for i, client in enumerate(self._dropped):
            shares = {giver: message.key_shares[i] for giver, message in self._unmasks.items()}
            private = rebuilder.secret(shares, self._is_mask_key_of(client), what=f"mask key of {client}")
            for survivor in self._survivors:
                public = self._advertised[survivor].mask_key
                key = pairwise_key(private, public, self._context, client, survivor)
                (minus if survivor < client else plus).append(key)
        add_masks(self._total, plus=plus, minus=minus, threads=os.cpu_count() or 1)
        sums = read_sum(self.terms.plan, self._total)
        control = decode_control(sums, self._context, clients=len(self._survivors), expected=self._expected)
        return Aggregate(clients=tuple(self._survivors), sums=sums, control=control)

    def _is_self_mask_of(self, client: str) -> Callable[[Secret], bool]:
        committed = self._advertised[client].commitment
        return lambda secret: commitment(secret, self._context, client) == committed

    def _is_mask_key_of(self, client: str) -> Callable[[Secret], bool]:
        advertised = self._advertised[client].mask_key
        return lambda secret: crypto.agreement_public(secret) == advertised

    @property
    def _dropped(self) -> list[str]:
        return sorted(set(self._shares) - set(self._survivors))
