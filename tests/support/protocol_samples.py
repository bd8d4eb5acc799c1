"""One real message of every kind that flows between server and clients, with what takes it in.

`take` hands a decoded message to the party that it is for, in the state in which that party waits for it; a
fresh copy of that state each time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.config import parse_config
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.protect.secure_sum.terms import ring_plan
from fedproxy_secure.proxy_intake.parts import Part
from fedproxy_secure.secagg import messages
from fedproxy_secure.secagg.ckks import gram
from fedproxy_secure.secagg.ckks import messages as ckks
from fedproxy_secure.secagg.ckks.client import CkksClient
from fedproxy_secure.secagg.ckks.row import payload
from fedproxy_secure.secagg.ckks.server import CkksServer
from fedproxy_secure.secagg.control import Control, encode_control
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.ring import quantise
from fedproxy_secure.secagg.selftest import rehearsal as stage
from tests.support.malformed import Sample
from tests.support.tiny import tiny_settings

K, D = 4, 16
KEYS, ROSTER = stage.identities(K)
TERMS = stage.terms_for(stage.ring(K, D), ROSTER)
CONTROL = Control(weight=1.0, clipped=0, loss=0.5, steps=10, largest=0.25)
UPDATE = np.linspace(-0.5, 0.5, D, dtype=np.float32)


def job_of(folder: Path) -> FederationJob:
    """A small job whose proxy has a made-up hash."""

    config = parse_config(tiny_settings(folder, clients=K))
    return FederationJob.from_config(config, seed=0).changed(proxy_sha256="a1" * 32)


def plain_samples(job: FederationJob) -> Iterator[Sample]:
    """Setup, training, update and failure."""
    by_blocks = job.changed(fusion=job.fusion.changed(rule="h_ties"))

    def decoded(name: str, content: RecordDict, decode: Callable[[RecordDict], Any]) -> Sample:
        return Sample(name=name, content=content, decode=decode)

    def own_ring(proposed: Any) -> None:
        ring_plan(by_blocks, [D], clip=proposed.clip, clients=len(proposed.cohort))

    yield decoded("setup", wire.encode_setup(job), wire.decode_setup)
    yield decoded("setup reply", wire.encode_ready(wire.Ready(ready=True, client="c0")), wire.decode_ready)
    part = Part(sha256="a1" * 32, sizes={"config.json": 2, "model.safetensors": 9}, at=2, data=b"weights")
    yield decoded("part", wire.encode_part(part), wire.decode_part)
    broadcast = wire.Broadcast(round=1, adapter=UPDATE, conflict=UPDATE**2, pcr_lambda=0.1, prox_mu=0.0)
    training = RecordDict({**wire.encode_broadcast(broadcast), "terms": wire.encode_terms(TERMS, 1.0)})
    yield decoded("broadcast", training, wire.decode_broadcast)
    yield Sample(name="terms", content=training, decode=wire.decode_terms, take=own_ring)
    update = ClientUpdate(client="c0", update=UPDATE, loss=0.5, steps=10, seconds=1.0, truncated=0)
    yield decoded("update", wire.encode_update(update), lambda c: wire.decode_update(c, d=D))
    yield decoded("failure", wire.encode_failure("DataError", "no records"), wire.decode_failure)


def _clone(server: Any) -> Any:
    """A copy of a server's session, its containers copied too; its secrets are shared."""
    other = copy.copy(server)
    for name, value in vars(server).items():
        if isinstance(value, dict | list | np.ndarray):
            setattr(other, name, value.copy())
    return other


class _Collector:
    """Carries messages between real sessions and keeps one sample of each kind."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def to_server(self, server: Any, method: str, answers: list[Any]) -> None:
        """The first message becomes a sample; all are taken."""
        before = _clone(server)
        self._keep(answers[0], lambda m: getattr(_clone(before), method)(m))
        for answer in answers:
            getattr(server, method)(answer)

    def to_client(self, client: Any, method: str, message: Any, *more: Any) -> Any:
        """What the client answers; its state before is kept for the sample."""
        frozen, terms, kind, name = client.freeze(), client.terms, type(client), client.name

        def take(decoded: Any) -> Any:
            again = kind.thaw(frozen, name=name, identity=KEYS[name], terms=terms, roster=ROSTER)
            return getattr(again, method)(decoded, *(m() for m in more))

        self._keep(message, take)
        return getattr(client, method)(message, *(m() for m in more))

    def _keep(self, message: Any, take: Callable[[Any], Any]) -> None:
        kind = type(message)
        if all(s.name != kind.__name__ for s in self.samples):
            content = wire.encode_message(message)
            self.samples.append(
                Sample(
                    name=kind.__name__,
                    content=content,
                    decode=lambda c: wire.decode_message(kind, c),
                    take=take,
                )
            )


def masking_samples() -> tuple[Sample, ...]:
    """Of a round of masking in which one client drops out before it sends its vector."""
    collect = _Collector()
    server = ServerSession(terms=TERMS, roster=ROSTER, private=stage.SERVER)
    clients = {n: ClientSession(name=n, identity=KEYS[n], terms=TERMS, roster=ROSTER) for n in TERMS.cohort}
    segments = {"update": UPDATE, **encode_control(CONTROL, TERMS.context())}
    words = quantise(TERMS.plan, segments).words
    collect.to_server(server, "advertised", [c.advertise() for c in clients.values()])
    book = server.key_book()
    shares = [collect.to_client(c, "share", book) for c in clients.values()]
    collect.to_server(server, "shared", shares)
    inboxes = server.inboxes()
    alive = [n for n in TERMS.cohort if n != "c03"]
    masked = [collect.to_client(clients[n], "mask", inboxes[n], words.copy) for n in alive]
    collect.to_server(server, "masked", masked)
    survivors = server.survivors()
    signed = [collect.to_client(clients[n], "confirm", survivors) for n in alive]
    collect.to_server(server, "confirmed", signed)
    signatures = server.confirmations()
    unmasks = [collect.to_client(clients[n], "unmask", signatures) for n in alive]
    collect.to_server(server, "unmasked", unmasks)
    server.finish()
    assert {s.name for s in collect.samples} == {m.__name__ for m in messages.MESSAGES}
    return tuple(collect.samples)


def ckks_samples() -> tuple[Sample, ...]:
    """Of a round of CKKS."""
    collect = _Collector()
    server = CkksServer(terms=TERMS, roster=ROSTER, private=stage.SERVER)
    clients = {n: CkksClient(name=n, identity=KEYS[n], terms=TERMS, roster=ROSTER) for n in TERMS.cohort}
    row = payload(TERMS.plan, {"update": UPDATE}, CONTROL, TERMS.context())
    collect.to_server(server, "advertised", [c.advertise() for c in clients.values()])
    leader, book = server.hello_book()
    collect.to_server(server, "granted", [collect.to_client(clients[leader], "share", book)])
    grants = server.grants()
    encrypted = [collect.to_client(c, "mask", grants[n], lambda: row) for n, c in clients.items()]
    collect.to_server(server, "encrypted", encrypted)
    total = server.total()
    opened = [collect.to_client(clients[n], "unmask", total) for n in total.clients]
    collect.to_server(server, "opened", opened)
    server.finish()
    assert {s.name for s in collect.samples} == {m.__name__ for m in ckks.MESSAGES}
    return tuple(collect.samples)


def gram_samples() -> tuple[Sample, ...]:
    """The two messages that weights from encrypted cosines have of their own."""
    collect = _Collector()
    server = gram.GramServer(terms=TERMS, roster=ROSTER, private=stage.SERVER)
    clients = {
        n: gram.GramClient(name=n, identity=KEYS[n], terms=TERMS, roster=ROSTER) for n in TERMS.cohort
    }
    for client in clients.values():
        server.advertised(client.advertise())
    leader, book = server.hello_book()
    server.granted(clients[leader].share(book))
    grants = server.grants()
    sketches = [c.sketch(grants[n], UPDATE * (i + 1)) for i, (n, c) in enumerate(clients.items())]
    collect.to_server(server, "sketched", sketches)
    products = server.products()

    class Weighing(gram.GramClient):
        def weigh(self, message: Any, *, r0: float = 1.0, delta: float = 0.2) -> Any:
            return super().weigh(message, r0=r0, delta=delta)

    client = clients["c00"]
    client.__class__ = Weighing
    collect.to_client(client, "weigh", products)
    assert {s.name for s in collect.samples} == {m.__name__ for m in gram.MESSAGES}
    return tuple(collect.samples)
