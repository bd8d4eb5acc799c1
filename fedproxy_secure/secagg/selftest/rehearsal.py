"""Whole rounds of the masking protocol without a transport, in which any step can be made to fail.

They are used by tests and by the self-test of an installation, and show how the two state machines fit
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.control import SEGMENTS, Control, encode_control
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.ring import Quantised, RingPlan, Segment, quantise
from fedproxy_secure.secagg.steps import Aggregate
from fedproxy_secure.secagg.terms import Roster, Terms, least_threshold

SERVER = crypto.fresh_secret()  # the server's key in every rehearsal of this process
STEPS = ("advertise", "share", "mask", "confirm", "unmask")
Tamper = Callable[[str, str, Any], Any]  # (step and direction, client, message) -> what arrives


def names(clients: int) -> tuple[str, ...]:
    """Return names for this many clients: c00, c01 ..."""
    return tuple(f"c{i:02d}" for i in range(clients))


def identities(clients: int) -> tuple[dict[str, Secret], Roster]:
    """Return fresh private keys, by client, and the roster of their public keys."""
    keys = {n: crypto.fresh_secret() for n in names(clients)}
    return keys, Roster(members={n: crypto.signing_public(k) for n, k in keys.items()})


def ring(clients: int, d: int, *, bits: int = 32, clip: float = 1.0) -> RingPlan:
    """Return the ring of a real segment `update` of length `d` and the control words."""
    return RingPlan(
        bits=bits, clients=clients, segments=(Segment(name="update", length=d, clip=clip), *SEGMENTS)
    )


def terms_for(plan: RingPlan, roster: Roster, **changes: Any) -> Terms:
    """Return the terms of a round with as many clients as the ring has; `changes` replace fields."""
    settings: dict[str, Any] = {
        "run": "run",
        "round": 0,
        "attempt": 0,
        "cohort": names(plan.clients),
        "threshold": least_threshold(plan.clients, 0),
        "server_key": crypto.agreement_public(SERVER),
        "settings_sha256": b"s" * 32,
        "roster_sha256": roster.sha256(),
        "broadcast_sha256": b"b" * 32,
        "plan": plan,
    }
    return Terms(**(settings | changes))


@dataclass(kw_only=True)
class Cohort:
    """The clients and the server of one round.

    Attributes:
        terms: of the round.
        keys: private keys, by client.
        roster: of their public keys.
        tamper: called for every message with "STEP to client" or "STEP to server", the client's name and
            the message; returns what arrives (None: nothing; to the server also a list: each of them).
        drops: by step, the clients that do not answer from that step on.
        frozen: whether every client is frozen and thawed between steps.
        session: the class of the clients.
        server: the class of the server.
        client_errors: after `run`, the error of each client that aborted.
        server_errors: after `run`, the first error that each client's messages caused at the server.
        quantised: after `run`, each client's vector before masking.
    """

    terms: Terms
    keys: Mapping[str, Secret]
    roster: Roster
    tamper: Tamper = lambda step, client, message: message
    drops: Mapping[str, set[str]] = field(default_factory=dict)
    frozen: bool = False
    session: type[ClientSession] = ClientSession
    server: type[ServerSession] = ServerSession
    client_errors: dict[str, str] = field(default_factory=dict)
    server_errors: dict[str, str] = field(default_factory=dict)
    quantised: dict[str, Quantised] = field(default_factory=dict)

    def run(self, updates: Mapping[str, np.ndarray]) -> Aggregate:
        """Run one round over `updates`, float [d] by client. Raises the errors of closing a step."""
        server = self.server(terms=self.terms, roster=self.roster, private=SERVER)
        clients = {
            n: self.session(name=n, identity=self.keys[n], terms=self.terms, roster=self.roster)
            for n in self.terms.cohort
        }
        context = self.terms.context()
        for n, update in updates.items():
            control = Control(weight=1.0, clipped=0, loss=0.5, steps=10, largest=0.25)
            self.quantised[n] = quantise(
                self.terms.plan, {"update": update, **encode_control(control, context)}
            )
        self._ask("advertise", clients, lambda n, c: c.advertise(), server.advertised)
        book = server.key_book()
        self._ask("share", clients, lambda n, c: c.share(self._down("share", n, book)), server.shared)
        inboxes = server.inboxes()
        self._ask(
            "mask",
            {n: c for n, c in clients.items() if n in inboxes},
            lambda n, c: c.mask(self._down("mask", n, inboxes[n]), self.quantised[n].words.copy()),
            server.masked,
        )
        survivors = server.survivors()
        alive = {n: c for n, c in clients.items() if n in survivors.clients}
        self._ask(
            "confirm", alive, lambda n, c: c.confirm(self._down("confirm", n, survivors)), server.confirmed
        )
        signatures = server.confirmations()
        self._ask(
            "unmask", alive, lambda n, c: c.unmask(self._down("unmask", n, signatures)), server.unmasked
        )
        return server.finish()

    def plain_sum(self, survivors: tuple[str, ...]) -> np.ndarray:
        """Return the sum of the survivors' words as they were before masking."""
        total = np.zeros(self.terms.plan.words, dtype=np.int64)
        for n in survivors:
            total += self.quantised[n].words
        return np.asarray(total & (2**self.terms.plan.bits - 1))

    def _down(self, step: str, name: str, message: Any) -> Any:
        changed = self.tamper(f"{step} to client", name, message)
        if changed is None:
            raise ProtocolAborted("lost")
        return changed

    def _ask(
        self,
        step: str,
        clients: dict[str, ClientSession],
        ask: Callable[[str, ClientSession], Any],
        take: Callable[[Any], None],
    ) -> None:
        gone = set().union(*(self.drops.get(s, set()) for s in STEPS[: STEPS.index(step) + 1]))
        for name in sorted(clients):
            if name in gone or name in self.client_errors:
                continue
            try:
                answer = ask(name, clients[name])
            except ProtocolAborted as error:
                self.client_errors[name] = str(error)
                continue
            if self.frozen and step != "unmask":
                clients[name] = self.session.thaw(
                    clients[name].freeze(),
                    name=name,
                    identity=self.keys[name],
                    terms=self.terms,
                    roster=self.roster,
                )
            answer = self.tamper(f"{step} to server", name, answer)
            for message in answer if isinstance(answer, list) else [answer]:
                if message is None:
                    continue
                try:
                    take(message)
                except ProtocolAborted as error:
                    self.server_errors.setdefault(name, str(error))  # keeps the first
