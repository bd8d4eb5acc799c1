"""The client's side of the CKKS back end: a state machine without transport.

`ckks.messages` has the order of messages and the guarantees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError, ProtocolAborted
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
from fedproxy_secure.secagg.ckks.row import leader_of, read_payload, row_length
from fedproxy_secure.secagg.steps import OVER, SteppedSession, upload_key
from fedproxy_secure.secagg.terms import Roster, Terms

T = TypeVar("T")


class CkksClient(SteppedSession):
    """One client in one attempt: `advertise`, `share` (only the leader), `mask`, `unmask`.

    The steps are named as in masking.
    """

    STEPS = ("advertise", "share", "mask", "unmask", OVER)

    def __init__(
        self, *, name: str, identity: Secret, terms: Terms, roster: Roster, root: Secret | None = None
    ) -> None:
        super().__init__(name=name, identity=identity, terms=terms, roster=roster, root=root)
        self._key: Secret | None = None

    def advertise(self) -> Hello:
        """Return a fresh public agreement key, signed (step 1)."""
        return self._once("advertise", self._hello)

    def _hello(self) -> Hello:
        key = crypto.agreement_public(self._share_private())
        unsigned = Hello(client=self.name, share_key=key, signature=b"")
        return replace(unsigned, signature=crypto.sign(self._identity, unsigned.signed(self._context)))

    def share(self, book: HelloBook) -> KeyGrants:
        """Make a fresh CKKS key and seal it for every client in the book (step 2, only the leader)."""
        return self._once("share", lambda: self._grant(book))

    def _grant(self, book: HelloBook) -> KeyGrants:
        if not len(book.clients) == len(book.share_keys) == len(book.signatures):
            raise ProtocolAborted("hello book: columns must have the same length")
        self._check_names(book.clients, "hello book")
        if leader_of(self._context, book.clients) != self.name:
            raise ProtocolAborted(f"hello book: {self.name} does not lead these clients")
        keys = self._make_keys()
        share_key = crypto.agreement_public(self._share_private())
        sealed, signatures = [], []
        for client, key, signature in zip(book.clients, book.share_keys, book.signatures, strict=True):
            row = Hello(client=client, share_key=key, signature=signature)
            what = f"hello book, signature of {client}"
            crypto.verify(self.roster.members[client], row.signed(self._context), signature, what=what)
            channel = crypto.agree(
                self._share_private(), key, info=self._route(self.name, client), what=what
            )
            letter = crypto.seal(channel, keys.secret.reveal(), associated=self._route(self.name, client))
            public = self._public_for_clients(keys)
            grant = KeyGrant(
                leader=self.name, share_key=share_key, public=public, sealed=letter, signature=b""
            )
            sealed.append(letter)
            signatures.append(crypto.sign(self._identity, grant.signed(self._context, client)))
        return KeyGrants(
            client=self.name,
            share_key=share_key,
            public=keys.public,
            receivers=book.clients,
            sealed=sealed,
            signatures=signatures,
        )

    def _make_keys(self) -> ckks.CkksKeys:
        """Return the keys that this client makes if it leads."""
        return ckks.make_keys()

    def _public_for_clients(self, keys: ckks.CkksKeys) -> bytes:
        """Return the public context that a key grant contains."""
        return keys.public

    def mask(self, grant: KeyGrant, row: np.ndarray) -> Encrypted:
        """Encrypt this client's row, which `row.payload` returned, under the granted key (step 3)."""
        return self._in_turn("mask", lambda: self._encrypt(grant, row))

    def _in_turn(self, step: str, action: Callable[[], T]) -> T:
        """Run the step after `share` once; clients other than the leader skip `share`."""
        if self._step == "share":
            self._step = step
        return self._once(step, action)

    def _encrypt(self, grant: KeyGrant, row: np.ndarray) -> Encrypted:
        self._accept(grant)
        encrypted = ckks.encrypt(grant.public, row)
        key = upload_key(
            self._share_private(), self.terms.server_key, self._context, self.name, "server key"
        )
        return Encrypted(client=self.name, encrypted=encrypted, tag=crypto.tag(key, encrypted))

    def _accept(self, grant: KeyGrant) -> Secret:
        """Return the granted key.

        Raises `ProtocolAborted` unless a client of the cohort granted it to this client in this attempt.
        """
        if grant.leader not in self.terms.cohort:
            raise ProtocolAborted(f"key grant: {grant.leader[:80]} does not belong there")
        what = f"key grant of {grant.leader}"
        signed = grant.signed(self._context, self.name)
        crypto.verify(self.roster.members[grant.leader], signed, grant.signature, what=what)
        route = self._route(grant.leader, self.name)
        channel = crypto.agree(self._share_private(), grant.share_key, info=route, what=what)
        self._key = Secret(crypto.unseal(channel, grant.sealed, associated=route, what=what))
        return self._key

    def unmask(self, total: Total) -> Opened:
        """Decrypt the sum, once, if it counts the clients that the message names (step 4)."""
        return self._once("unmask", lambda: self._open(total))

    def _open(self, total: Total) -> Opened:
        self._check_names(total.clients, "total")
        assert self._key is not None  # ensured by the order of steps
        length = row_length(self.terms.plan)
        try:
            values = ckks.decrypt(self._key, total.encrypted, length)
        except DataError as error:
            raise ProtocolAborted(f"total: {error}") from error
        read_payload(self.terms.plan, values, self._context, len(total.clients))
        raw = values.astype("<f8").tobytes()
        unsigned = Opened(
            client=self.name,
            values=raw if total.opener == self.name else b"",
            values_sha256=crypto.digest(raw),
            signature=b"",
        )
        answer = replace(unsigned, signature=crypto.sign(self._identity, unsigned.signed(self._context)))
        self._end()
        return answer

    def _frozen_fields(self) -> dict[str, Any]:
        return {"key": None if self._key is None else self._key.reveal().hex()}

    def _thaw_fields(self, state: Mapping[str, Any]) -> None:
        self._key = None if state["key"] is None else Secret(bytes.fromhex(state["key"]))

    def _forget(self) -> None:
        self._key = None

    def _check_names(self, names: list[str], what: str) -> None:
        if len(set(names)) != len(names) or set(names) - set(self.terms.cohort):
            raise ProtocolAborted(f"{what}: must name clients of the cohort, each once")
        if self.name not in names:
            raise ProtocolAborted(f"{what}: this client is missing")
        if len(names) < self.terms.threshold:
            raise ProtocolAborted(f"{what}: {len(names)} clients; must be >= {self.terms.threshold}")

    def _share_private(self) -> Secret:
        return crypto.derive(self._root, info=b"share key|" + self._context)

    def _route(self, sender: str, receiver: str) -> bytes:
        return crypto.digest(b"key grant", self._context, sender.encode(), receiver.encode())
