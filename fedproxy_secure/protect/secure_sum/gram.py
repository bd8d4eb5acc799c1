"""Weights `encrypted_gram` over Flower: the client's steps before masking, and the server's.

The update stays sealed in the client's journal until its weight in the masked sum is known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import Context, RecordDict

from fedproxy_secure import wire
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.protect.secure_sum import attempt
from fedproxy_secure.protect.secure_sum import client as masked
from fedproxy_secure.protect.secure_sum.sent import decode_update, encode_update
from fedproxy_secure.secagg.ckks.gram import (
    EncryptedSketch,
    GramClient,
    GramProducts,
    GramServer,
    agreed_hash,
)
from fedproxy_secure.secagg.ckks.messages import Hello, HelloBook, KeyGrant, KeyGrants
from fedproxy_secure.secagg.messages import Advertise, Message
from fedproxy_secure.secagg.terms import Terms

if TYPE_CHECKING:  # it imports torch
    from fedproxy_secure.federate.client import LocalClient

SESSION, UPDATE = "gram session", "update"


def train_and_say_hello(
    client: LocalClient, job: FederationJob, content: RecordDict, context: Context, *, policy: bytes | None
) -> RecordDict:
    """Check the terms, train, keep the update sealed, and answer with a fresh key."""
    trained = masked.train(client, job, content, context, policy=policy)
    identity, roster = attempt.own_keys(job, client.name)
    session = GramClient(name=client.name, identity=identity, terms=trained.terms, roster=roster)
    answer = session.advertise()
    parts = {SESSION: session.freeze().reveal(), UPDATE: encode_update(trained.update)}
    attempt.keep(trained.journal, identity, trained.terms, parts)
    return wire.encode_message(answer)


def share(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer with the leader's key, sealed for its peers."""
    step, session, identity = _session(job, name, "gram_share", context)
    answer = session.share(wire.decode_message(HelloBook, content))
    return _kept(step, session, identity, answer)


def sketch(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """Answer with the encrypted sketch of the kept update."""
    step, session, identity = _session(job, name, "gram_sketch", context)
    update = decode_update(step.opened(identity, UPDATE)).update
    answer = session.sketch(wire.decode_message(KeyGrant, content), update)
    return _kept(step, session, identity, answer)


def weigh(client: LocalClient, job: FederationJob, content: RecordDict, context: Context) -> RecordDict:
    """Open the cosines, weigh the update as they say, and answer masking's first step."""
    step, session, identity = _session(job, client.name, "gram_weigh", context)
    step.journal.open_once(run=job.agreed_sha256().hex(), round=step.terms.round)
    weighing = session.weigh(
        wire.decode_message(GramProducts, content), r0=job.fusion.r0, delta=job.fusion.delta
    )
    trained = masked.Trained(
        journal=step.journal,
        terms=replace(session.terms, gram_sha256=weighing.gram_sha256),
        update=decode_update(step.opened(identity, UPDATE)),
        previous=None,
    )
    answer = masked.advertise(client, job, trained, standing=weighing.standing)
    return wire.with_gram(wire.encode_message(answer), weighing.gram_sha256)


def gather(carrier: Any, session: GramServer, invitation: RecordDict) -> tuple[Terms, dict[str, Advertise]]:
    """Run the server's part; return the terms with the cosines' hash, and the advertisements by client."""
    carrier.step(wire.TRAIN, dict.fromkeys(session.terms.cohort, invitation), Hello, session.advertised)
    leader, book = session.hello_book()
    carrier.step(wire.GRAM_SHARE, carrier.send({leader: book}), KeyGrants, session.granted)
    carrier.step(wire.GRAM_SKETCH, carrier.send(session.grants()), EncryptedSketch, session.sketched)
    products = session.products()
    advertised: dict[str, Advertise] = {}
    hashes: dict[str, bytes] = {}

    def take(message: Advertise) -> None:
        advertised[message.client] = message

    def look(client: str, content: RecordDict) -> None:
        hashes[client] = wire.gram_of(content)

    to_all = carrier.send(dict.fromkeys(products.clients, products))
    carrier.step(wire.GRAM_WEIGH, to_all, Advertise, take, look=look)
    agreed = agreed_hash({c: hashes[c] for c in advertised}, threshold=session.terms.threshold)
    same = {c: m for c, m in advertised.items() if hashes[c] == agreed}
    return replace(session.terms, gram_sha256=agreed), same


def _session(
    job: FederationJob, name: str, step_name: str, context: Context
) -> tuple[attempt.Step, GramClient, Secret]:
    identity, roster = attempt.own_keys(job, name)
    step = attempt.take(job, name, step_name, context)
    session = GramClient.thaw(
        Secret(step.opened(identity, SESSION)),
        name=name,
        identity=identity,
        terms=step.terms,
        roster=roster,
    )
    return step, session, identity


def _kept(step: attempt.Step, session: GramClient, identity: Secret, answer: Message) -> RecordDict:
    """Keep the session and the update for the next step, then return the answer."""
    parts = {SESSION: session.freeze().reveal(), UPDATE: step.opened(identity, UPDATE)}
    attempt.keep(step.journal, identity, step.terms, parts)
    return wire.encode_message(answer)
