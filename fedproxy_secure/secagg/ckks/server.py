"""The server's side of the CKKS back end: a state machine without transport.

`ckks.messages` has the order of messages and the guarantees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError, ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.ckks import context as ckks
from fedproxy_secure.secagg.ckks.messages import (
    Encrypted,
    Hello,
    HelloBook,
    KeyGrant,
    KeyGrants,
    Opened,
    Total,
)
from fedproxy_secure.secagg.ckks.probe import Kind, Probe
from fedproxy_secure.secagg.ckks.row import leader_of, read_payload, row_length
from fedproxy_secure.secagg.control import Expected
from fedproxy_secure.secagg.steps import OVER, Aggregate, SteppedServer
from fedproxy_secure.secagg.terms import Roster, Terms


class CkksServer(SteppedServer):
    """The server in one attempt.

    The order of calls is: `advertised`*, `hello_book`, `granted`, `grants`, `encrypted`*, `total`,
    `opened`*, `finish` (* once per client that answers).
    """

    STEPS: ClassVar[tuple[str, ...]] = ("advertise", "share", "mask", "unmask", OVER)

    def __init__(
        self, *, terms: Terms, roster: Roster, private: Secret, expected: Expected | None = None
    ) -> None:
        super().__init__(terms=terms, roster=roster, private=private, expected=expected)
        self._hellos: dict[str, Hello] = {}
        self._grants: KeyGrants | None = None
        self._sum: ckks.CkksSum | None = None
        self._probe: Probe | None = None
        self._added: list[str] = []
        self._opened: dict[str, Opened] = {}

    def advertised(self, message: Hello) -> None:
        """Accept a client's key.

        Raises `ProtocolAborted` if its key in the roster did not sign it, or if it is of low order, because
        that would make the leader abort.
        """
        self._expect("advertise", message.client, self.terms.cohort, self._hellos)
        self._verify(message.client, message.signed(self._context), message.signature)
        crypto.agree(self._private, message.share_key, info=b"usable", what=f"key of {message.client}")
        self._hellos[message.client] = message

    def hello_book(self) -> tuple[str, HelloBook]:
        """Close step 1; return the leader's name, and the message for the leader."""
        self._close("advertise", len(self._hellos))
        names = sorted(self._hellos)
        book = HelloBook(
            clients=names,
            share_keys=[self._hellos[n].share_key for n in names],
            signatures=[self._hellos[n].signature for n in names],
        )
        return leader_of(self._context, names), book

    def granted(self, message: KeyGrants) -> None:
        """Accept the leader's key grants."""
        names = sorted(self._hellos)
        leader = leader_of(self._context, names)
        self._expect("share", message.client, [leader], [] if self._grants is None else [leader])
        if message.receivers != names or not len(message.sealed) == len(message.signatures) == len(names):
            raise ProtocolAborted(f"key grants of {message.client}: must be one for each client")
        self._take_public(message)
        self._grants = message

    def _take_public(self, message: KeyGrants) -> None:
        """Check the leader's public context, and prepare to receive ciphertexts under it."""
        length = row_length(self.terms.plan)
        self._probe = self._tried("sum", message, length)
        self._sum = ckks.CkksSum(message.public, length)

    def _tried(self, kind: Kind, message: KeyGrants, length: int) -> Probe:
        """Return a probe for ciphertexts under the leader's context, after it has parsed the context."""
        try:
            return Probe(kind, message.public, length)
        except DataError as error:
            raise ProtocolAborted(f"key grants of {message.client}: {error}") from error

    def _public_for_clients(self, grants: KeyGrants) -> bytes:
        """Return the public context that each client's key grant contains."""
        return grants.public

    def grants(self) -> dict[str, KeyGrant]:
        """Close step 2; return each client's grant. Raises `RoundAborted` if the leader did not answer."""
        self._go_on("share")
        grants = self._grants
        if grants is None:
            self._step = OVER
            raise RoundAborted("share: the leader sent no key")
        return {
            client: KeyGrant(
                leader=grants.client,
                share_key=grants.share_key,
                public=self._public_for_clients(grants),
                sealed=sealed,
                signature=signature,
            )
            for client, sealed, signature in zip(
                grants.receivers, grants.sealed, grants.signatures, strict=True
            )
        }

    def encrypted(self, message: Encrypted) -> None:
        """Check an encrypted vector and add it to the sum; the vector itself is not kept."""
        self._expect("mask", message.client, self._hellos, self._added)
        self._check_upload(message.client, message.encrypted, message.tag)
        assert self._sum is not None  # ensured by `grants`
        self._sum.add(message.encrypted)
        self._added.append(message.client)

    def _check_upload(self, client: str, encrypted: bytes, tag: bytes) -> None:
        """Raise `ProtocolAborted` unless the client sent these bytes and the probe can parse them."""
        self._check_tag(client, self._hellos[client].share_key, encrypted, tag)
        assert self._probe is not None  # ensured by `grants`
        try:
            self._probe.check(encrypted)
        except DataError as error:
            raise ProtocolAborted(f"{client}: {error}") from error

    def total(self) -> Total:
        """Close step 3 and return the encrypted sum, for all clients in it."""
        self._close("mask", len(self._added))
        assert self._sum is not None
        self._added.sort()
        return Total(
            clients=list(self._added),
            encrypted=self._sum.packed(),
            opener=leader_of(b"opener" + self._context, self._added),
        )

    def opened(self, message: Opened) -> None:
        """Accept a decrypted sum from the opener, or the hash of it from another client."""
        self._expect("unmask", message.client, self._added, self._opened)
        if len(message.values) not in (0, 8 * row_length(self.terms.plan)):
            raise ProtocolAborted(f"opened by {message.client}: has {len(message.values)} bytes")
        self._verify(message.client, message.signed(self._context), message.signature)
        if message.values and crypto.digest(message.values) != message.values_sha256:
            raise ProtocolAborted(f"opened by {message.client}: does not have the hash it signed")
        self._opened[message.client] = message

    def finish(self) -> Aggregate:
        """Close step 4 and return the sums, if t clients decrypted the same numbers.

        Raises `RoundAborted` if not, or if the opener did not send the numbers, and `ProtocolAborted` for
        numbers that fail a check.
        """
        self._go_on("unmask")
        opener = leader_of(b"opener" + self._context, self._added)
        if opener not in self._opened or not self._opened[opener].values:
            raise RoundAborted(f"unmask: {opener} did not send the opened sum")
        raw = self._opened[opener]
        agree = sum(o.values_sha256 == raw.values_sha256 for o in self._opened.values())
        self._enough("unmask, opened alike", agree)
        values = np.frombuffer(raw.values, dtype="<f8")
        aggregate = read_payload(self.terms.plan, values, self._context, len(self._added), self._expected)
        return replace(aggregate, clients=tuple(self._added))
