"""The server's part in a masked round: carry the protocol's messages, then fuse the sums.

Guarantees: what the server learns of a round is in the ledger, written from the messages. If a check fails
or too few clients are left, `ProtocolAborted` is raised and nothing of the round is used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, advance
from fedproxy_secure.flower import wire
from fedproxy_secure.flower.ledger import Ledger
from fedproxy_secure.flower.masked_terms import first_clip, next_clip, ring_plan
from fedproxy_secure.secagg.granularity import Layout, merge
from fedproxy_secure.secagg.messages import (
    Advertise,
    Confirmation,
    MaskedInput,
    Message,
    Shares,
    Unmask,
)
from fedproxy_secure.secagg.primitives import agreement_public, fresh_secret
from fedproxy_secure.secagg.provision import load_roster
from fedproxy_secure.secagg.server import Aggregate, ServerSession
from fedproxy_secure.secagg.terms import Terms, least_threshold

log = logging.getLogger(__name__)

# (message type, content by client name, what it is called) -> replies as (client name, content)
Ask = Callable[[str, Mapping[str, RecordDict], str], Iterator[tuple[str, RecordDict]]]


def masked_round(
    ask: Ask,
    job: FederationJob,
    state: ServerState,
    cohort: list[str],
    ledger: Ledger,
    on_client: Callable[[str], None] | None = None,
) -> tuple[ServerState, dict[str, float], list[str]]:
    """One round: the next state, numbers for the metrics line, and whose updates are in the sum."""
    if state.sizes is None:
        raise ConfigError("server state: has no tensor sizes; masking needs what `initial_state` makes")
    sizes = state.sizes.tolist()
    clip = job.protect.clip or (first_clip(job.local) if state.clip is None else float(state.clip[0]))
    broadcast = wire.Broadcast(
        round=state.round,
        adapter=state.adapter,
        conflict=state.conflict,
        pcr_lambda=job.fusion.pcr_lambda,
        prox_mu=job.fusion.prox_mu,
    )
    if job.protect.keys is None:
        raise ConfigError("protect.keys: must name the folder with roster.json")
    roster = load_roster(Path(job.protect.keys))
    clients = tuple(sorted(cohort))
    least = least_threshold(len(clients), job.protect.colluders)
    private = fresh_secret()
    terms = Terms(
        run=job.agreed_sha256().hex()[:16],
        round=state.round,
        attempt=time.time_ns(),  # later than every earlier attempt, also after a restart
        cohort=clients,
        threshold=max(job.protect.threshold or least, job.federate.min_clients),
        server_key=agreement_public(private),
        settings_sha256=job.agreed_sha256(),
        roster_sha256=roster.sha256(),
        broadcast_sha256=wire.broadcast_sha256(broadcast),
        plan=ring_plan(job, sizes, clip=clip, clients=len(clients)),
    )
    session = ServerSession(terms=terms, roster=roster, private=private)
    made = _run(ask, session, wire.encode_broadcast(broadcast), clip, ledger, on_client)
    merged = merge(
        made.sums,
        job.granularity,
        Layout(sizes=tuple(sizes)),
        terms.plan,
        clients=len(made.clients),
        weight=made.control.weight,
        rho=1.0 if job.fusion.rule == "ties" else job.fusion.rho,
    )
    new = advance(
        state,
        merged.step,
        job.fusion,
        conflict=merged.conflict,
        clip=np.array([next_clip(clip, made.control)]),
    )
    metrics = {
        "loss": made.control.loss / made.control.clients,
        "clients": float(made.control.clients),
        "clip": clip,
        "clipped": float(made.control.clipped),
        "masked_bytes": float(terms.plan.upload_bytes),
        "step_norm": float(np.linalg.norm(new.adapter - state.adapter)),
    }
    return new, metrics, list(made.clients)


def _run(
    ask: Ask,
    session: ServerSession,
    broadcast: RecordDict,
    clip: float,
    ledger: Ledger,
    on_client: Callable[[str], None] | None,
) -> Aggregate:
    """The five steps over any transport; a client whose message fails its check counts as dropped."""
    terms = session.terms

    def step(
        kind: str,
        contents: Mapping[str, RecordDict],
        answer: type[Message],
        take: Callable[[Message], None],
    ) -> None:
        for client, reply in ask(kind, contents, f"round {terms.round}, {kind}"):
            try:
                message = wire.decode_message(answer, reply)
                if message.to_fields()["client"] != client:
                    raise ProtocolAborted(f"{answer.__name__} of {client}: names another client")
                _note(ledger, message)
                take(message)
                if answer is Advertise and on_client is not None:
                    on_client(client)
            except (ProtocolAborted, DataError) as error:
                log.warning("round %d: %s is left out: %s", terms.round, client, error)

    def send(clients: list[str], message: Message) -> dict[str, RecordDict]:
        for _ in clients:
            _note(ledger, message)
        return dict.fromkeys(clients, wire.encode_message(message))

    invitation = RecordDict({**broadcast, "terms": wire.encode_terms(terms, clip)})
    step(wire.TRAIN, dict.fromkeys(terms.cohort, invitation), Advertise, session.advertised)  # type: ignore[arg-type]
    book = session.key_book()
    step(wire.SHARE, send(book.clients, book), Shares, session.shared)  # type: ignore[arg-type]
    inboxes = session.inboxes()
    for inbox in inboxes.values():
        _note(ledger, inbox)
    step(wire.MASK, {c: wire.encode_message(m) for c, m in inboxes.items()}, MaskedInput, session.masked)  # type: ignore[arg-type]
    survivors = session.survivors()
    step(wire.CONFIRM, send(survivors.clients, survivors), Confirmation, session.confirmed)  # type: ignore[arg-type]
    signatures = session.confirmations()
    step(wire.UNMASK, send(signatures.clients, signatures), Unmask, session.unmasked)  # type: ignore[arg-type]
    made = session.finish()
    for name, total in made.sums.items():
        ledger.note(
            f"sum of {name}",
            to="server",
            reveals=f"{len(total)} sums over {len(made.clients)} clients",
            payload_bytes=total.nbytes,
        )
    return made


def _note(ledger: Ledger, message: Message) -> None:
    size = 0
    for value in message.to_fields().values():
        for part in value if isinstance(value, list) else [value]:
            size += len(part if isinstance(part, bytes) else str(part).encode())
    ledger.note(type(message).__name__, to=message.to, reveals=message.reveals, payload_bytes=size)
