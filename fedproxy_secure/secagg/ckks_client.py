"""The client's side of the CKKS back end: a state machine without transport. See `ckks_messages`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Self, TypeVar

import numpy as np

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg import ckks
from fedproxy_secure.secagg import primitives as crypto
from fedproxy_secure.secagg.ckks_messages import (
    Encrypted,
    Hello,
    HelloBook,
    KeyGrant,
    KeyGrants,
    Opened,
    Total,
)
from fedproxy_secure.secagg.ckks_row import leader_of, read_payload, row_length
from fedproxy_secure.secagg.client import upload_key
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.terms import Roster, Terms

T = TypeVar("T")
STEPS = ("advertise", "share", "mask", "unmask", "over")


class CkksClient:
    """One client in one attempt; the steps have the names they have in masking."""

    def __init__(
        self, *, name: str, identity: Secret, terms: Terms, roster: Roster, root: Secret | None = None
    ) -> None:
        self.name, self.terms, self.roster = name, terms, roster
        self._identity = identity
        self._root = root or crypto.fresh_secret()
        self._context = terms.context()
        self._step = "advertise"
        self._key: Secret | None = None

    def advertise(self) -> Hello:
        """Step 1."""
        return self._once("advertise", self._hello)

    def _hello(self) -> Hello:
        key = crypto.agreement_public(self._share_private())
        unsigned = Hello(client=self.name, share_key=key, signature=b"")
        return replace(unsigned, signature=crypto.sign(self._identity, unsigned.signed(self._context)))

    def share(self, book: HelloBook) -> KeyGrants:
        """Step 2, the leader alone: a fresh key for everyone in the book."""
        return self._once("share", lambda: self._grant(book))

    def _grant(self, book: HelloBook) -> KeyGrants:
        if not len(book.clients) == len(book.share_keys) == len(book.signatures):
            raise ProtocolAborted("hello book: columns must have the same length")
        self._check_names(book.clients, "hello book")
        if leader_of(self._context, book.clients) != self.name:
            raise ProtocolAborted(f"hello book: {self.name} does not lead these clients")
        keys = self._make_keys()
        own = crypto.agreement_public(self._share_private())
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
            grant = KeyGrant(leader=self.name, share_key=own, public=public, sealed=letter, signature=b"")
            sealed.append(letter)
            signatures.append(crypto.sign(self._identity, grant.signed(self._context, client)))
        return KeyGrants(
            client=self.name,
            share_key=own,
            public=keys.public,
            receivers=book.clients,
            sealed=sealed,
            signatures=signatures,
        )

    def _make_keys(self) -> ckks.CkksKeys:
        return ckks.make_keys()

    def _public_for_clients(self, keys: ckks.CkksKeys) -> bytes:
        return keys.public

    def mask(self, grant: KeyGrant, row: np.ndarray) -> Encrypted:
        """Step 3: encrypt this client's row (of `payload`) under the granted key."""
        return self._in_turn("mask", lambda: self._encrypt(grant, row))

    def _in_turn(self, step: str, action: Callable[[], T]) -> T:
        """`_once` for the step after `share`, which only the leader has."""
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
        """The granted key, if a client of the cohort made it for this client and this attempt."""
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
        """Step 4: open the sum, once, if it counts the clients it is said to hold."""
        return self._once("unmask", lambda: self._open(total))

    def _open(self, total: Total) -> Opened:
        self._check_names(total.clients, "total")
        assert self._key is not None  # the order of steps sees to it
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

    def freeze(self) -> Secret:
        """Everything this session needs to go on elsewhere; terms and identity are not in it."""
        state = {
            "root": self._root.reveal().hex(),
            "step": self._step,
            "context": self._context.hex(),
            "key": None if self._key is None else self._key.reveal().hex(),
        }
        return Secret(json.dumps(state).encode())

    @classmethod
    def thaw(cls, frozen: Secret, *, name: str, identity: Secret, terms: Terms, roster: Roster) -> Self:
        """Go on where `freeze` left. Raises `ProtocolAborted` if it was frozen under other terms."""
        state = json.loads(frozen.reveal())
        root = Secret(bytes.fromhex(state["root"]))
        session = cls(name=name, identity=identity, terms=terms, roster=roster, root=root)
        if bytes.fromhex(state["context"]) != session._context:
            raise ProtocolAborted("session: belongs to other terms")
        session._step = state["step"]
        session._key = None if state["key"] is None else Secret(bytes.fromhex(state["key"]))
        return session

    def _once(self, step: str, action: Callable[[], T]) -> T:
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
        self._step, self._root, self._key = "over", Secret(b""), None

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
