"""Weights `encrypted_gram` over Flower: the client's steps before masking, and the server's.

The update waits, sealed, in the client's state until the client knows how it enters the masked sum.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord, Context, RecordDict

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.flower import masked_client as masked
from fedproxy_secure.flower import wire
from fedproxy_secure.secagg.ckks_messages import Hello, HelloBook, KeyGrant, KeyGrants
from fedproxy_secure.secagg.gram import EncryptedSketch, GramClient, GramProducts, GramServer, agreed_hash
from fedproxy_secure.secagg.messages import Advertise
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.terms import Terms

if TYPE_CHECKING:  # it brings torch
    from fedproxy_secure.federate.client import LocalClient

STATE = "gram"


def train_and_say_hello(
    client: LocalClient, job: FederationJob, content: RecordDict, context: Context
) -> RecordDict:
    """Check the terms, train, keep the update sealed, answer with a fresh key."""
    trained = masked.train(client, job, content, context)
    identity, roster = masked.own_keys(job, client.name)
    session = GramClient(name=client.name, identity=identity, terms=trained.terms, roster=roster)
    answer = session.advertise()
    numbers = {k: v for k, v in trained.update.__dict__.items() if k != "update"}
    context.state.config_records[STATE] = ConfigRecord(
        {
            "update": masked.seal(identity, trained.update.update.tobytes(), b"update"),
            "numbers": masked.seal(identity, json.dumps(numbers).encode(), b"numbers"),
        }
    )
    _keep(context, session, identity)
    return wire.encode_message(answer)


def share(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """The leader's key for its peers."""
    session, identity = _session(job, name, context)
    answer = session.share(wire.decode_message(HelloBook, content))
    _keep(context, session, identity)
    return wire.encode_message(answer)


def sketch(job: FederationJob, name: str, content: RecordDict, context: Context) -> RecordDict:
    """The encrypted sketch of the kept update."""
    session, identity = _session(job, name, context)
    update = _kept_update(identity, context).update
    answer = session.sketch(wire.decode_message(KeyGrant, content), update)
    _keep(context, session, identity)
    return wire.encode_message(answer)


def weigh(client: LocalClient, job: FederationJob, content: RecordDict, context: Context) -> RecordDict:
    """Open the cosines, take the place they give in the sum, and go on with masking's first step."""
    session, identity = _session(job, client.name, context)
    made = session.weigh(
        wire.decode_message(GramProducts, content), r0=job.fusion.r0, delta=job.fusion.delta
    )
    trained = masked.Trained(
        terms=replace(session.terms, gram_sha256=made.gram_sha256),
        update=_kept_update(identity, context),
        previous=None,
    )
    del context.state.config_records[STATE]
    answer = masked.advertise(client, job, trained, context, standing=made.standing)
    return wire.with_gram(wire.encode_message(answer), made.gram_sha256)


def gather(carrier: Any, session: GramServer, invitation: RecordDict) -> tuple[Terms, dict[str, Advertise]]:
    """The server's part: the terms with the cosines' hash in them, and who advertised for masking."""
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


def _session(job: FederationJob, name: str, context: Context) -> tuple[GramClient, Secret]:
    identity, roster = masked.own_keys(job, name)
    record = context.state.config_records.get(STATE)
    if record is None or not record.get("session"):
        raise ProtocolAborted(f"client {name}: has no attempt under way")
    session = GramClient.thaw(
        Secret(masked.unseal(identity, record, "session")),
        name=name,
        identity=identity,
        terms=masked.kept_terms(context.state.config_records[masked.STATE]),
        roster=roster,
    )
    record["session"] = b""  # a step that fails leaves nothing to try again with
    return session, identity


def _keep(context: Context, session: GramClient, identity: Secret) -> None:
    record = context.state.config_records[STATE]
    record["session"] = masked.seal(identity, session.freeze().reveal(), b"session")


def _kept_update(identity: Secret, context: Context) -> ClientUpdate:
    record = context.state.config_records[STATE]
    raw = masked.unseal(identity, record, "update")
    try:
        numbers = json.loads(masked.unseal(identity, record, "numbers"))
        return ClientUpdate(update=np.frombuffer(raw, dtype=np.float32), **numbers)
    except (ValueError, TypeError) as error:
        raise DataError(f"kept update: {error}") from error
