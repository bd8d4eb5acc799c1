"""The server's part in a protected round (masking or CKKS): carry the messages, then fuse the sums.

Guarantees: what the server learns of a round is in the ledger, written from the messages. If a check fails
or too few clients are left, `ProtocolAborted` is raised and nothing of the round is used. A client whose
answer is malformed, or names another client, is left out. Sums are checked against what the settings imply
for honest clients, and the fused step is no longer than theirs can be (`step_bound`).

**Not guaranteed**: that a lying client moves the adapter no more than an honest one. Within those bounds
one client can choose every coordinate of the mean, whatever the others sent (`granularity.merge`), and it
can make every attempt abort. A sum does not tell which client lied.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure.errors import ConfigError, FedProxyError, ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, advance
from fedproxy_secure.flower import client_privacy, masked_gram, wire
from fedproxy_secure.flower.ledger import Ledger
from fedproxy_secure.flower.masked_terms import (
    first_clip,
    kept_share,
    largest_clip,
    next_clip,
    ring_plan,
    run_name,
)
from fedproxy_secure.flower.step_bound import held, longest_step
from fedproxy_secure.secagg.ckks_messages import Encrypted, Hello, KeyGrants, Opened
from fedproxy_secure.secagg.ckks_row import CKKS_ERROR
from fedproxy_secure.secagg.ckks_server import CkksServer
from fedproxy_secure.secagg.control import Expected
from fedproxy_secure.secagg.gram import GramServer
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
from fedproxy_secure.secagg.sketch import LEAST_WEIGHT
from fedproxy_secure.secagg.terms import Terms

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

# (message type, content by client name, what it is called) -> replies as (client name, content)
Ask = Callable[[str, Mapping[str, RecordDict], str], Iterator[tuple[str, RecordDict]]]


def masked_round(
    ask: Ask,
    job: FederationJob,
    state: ServerState,
    cohort: list[str],
    ledger: Ledger,
    on_client: Callable[[str], None] | None = None,
) -> tuple[ServerState, dict[str, float], list[str], dict[str, np.ndarray]]:
    """One round: the next state, numbers for the metrics line, whose updates are in the sums, the sums.

    `cohort`: all that the round is meant for; those that cannot be asked count as drop-outs of step 1.
    """
    if state.sizes is None:
        raise ConfigError("server state: has no tensor sizes; masking needs what `initial_state` makes")
    sizes = state.sizes.tolist()
    clip = job.protect.clip or (first_clip(job.local) if state.clip is None else float(state.clip[0]))
    if job.privacy.unit == "client":
        clip = client_privacy.ring_clip(job.privacy, bits=job.protect.bits, clients=len(cohort))
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
    private = fresh_secret()
    terms = Terms(
        run=run_name(job),
        round=state.round,
        attempt=time.time_ns(),  # later than every earlier attempt, also after a restart
        cohort=clients,
        threshold=client_privacy.planned_threshold(job, len(clients)),
        server_key=agreement_public(private),
        settings_sha256=job.agreed_sha256(),
        roster_sha256=roster.sha256(),
        broadcast_sha256=wire.broadcast_sha256(broadcast),
        plan=ring_plan(job, sizes, clip=clip, clients=len(clients)),
    )
    invitation = RecordDict({**wire.encode_broadcast(broadcast), "terms": wire.encode_terms(terms, clip)})
    carrier = Carrier(ask=ask, ledger=ledger, round=state.round, on_client=on_client)
    expected = expected_numbers(job, d=len(state.adapter))
    if job.protect.scheme == "ckks":
        ckks = CkksServer(terms=terms, roster=roster, private=private, expected=expected)
        made = _run_ckks(carrier, ckks, invitation)
    elif job.protect.weights == "encrypted_gram":
        gram = GramServer(terms=terms, roster=roster, private=private)
        terms, advertised = masked_gram.gather(carrier, gram, invitation)
        session = ServerSession(terms=terms, roster=roster, private=private, expected=expected)
        carrier.take(advertised, session.advertised)
        made = _run(carrier, session)
    else:
        session = ServerSession(terms=terms, roster=roster, private=private, expected=expected)
        cohort_asked = dict.fromkeys(clients, invitation)
        carrier.step(wire.TRAIN, cohort_asked, Advertise, session.advertised)
        made = _run(carrier, session)
    for name, total in made.sums.items():
        ledger.note(
            f"sum of {name}",
            to="server",
            reveals=f"{len(total)} sums over {len(made.clients)} clients",
            payload_bytes=total.nbytes,
        )
    merged = merge(
        made.sums,
        job.granularity,
        Layout(sizes=tuple(sizes)),
        terms.plan,
        clients=len(made.clients),
        weight=made.control.weight,
        rho=1.0 if job.fusion.rule == "ties" else job.fusion.rho,
        kept=kept_share(job.fusion),
        error=CKKS_ERROR if job.protect.scheme == "ckks" else 0.0,
    )
    most = longest_step(
        job,
        state.adapter,
        cohort=len(clients),
        threshold=terms.threshold,
        clients=len(made.clients),
        weight=made.control.weight,
    )
    step, cut = held(merged.step, most)
    if cut > 0:
        log.warning(
            "round %d: the fused step is longer than honest clients can make it; cut by %.1f %% to %g",
            state.round,
            100 * cut,
            most,
        )
    new = advance(
        state,
        step,
        job.fusion,
        conflict=merged.conflict,
        clip=np.array([min(next_clip(clip, made.control), largest_clip(job.local))]),
    )
    metrics = {
        "loss": made.control.loss / made.control.clients,
        "clients": float(made.control.clients),
        "clip": clip,
        "clipped": float(made.control.clipped),
        "masked_bytes": float(terms.plan.upload_bytes),
        "step_norm": float(np.linalg.norm(new.adapter - state.adapter)),
        "step_cut": cut,
    }
    return new, metrics, list(made.clients), made.sums


def expected_numbers(job: FederationJob, *, d: int) -> Expected:
    """What the settings imply for a client's control numbers, for an adapter of length d."""
    weighted = job.fusion.rule == "h_ties" and job.protect.weights != "uniform"
    return Expected(
        least_weight=LEAST_WEIGHT if weighted else 1.0,
        steps=job.local.steps,
        coordinates=d,
        silent=job.privacy.unit == "client",
    )


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """Sends the messages of one round, notes them in the ledger, hands the answers on."""

    ask: Ask
    ledger: Ledger
    round: int
    on_client: Callable[[str], None] | None

    def step(
        self,
        kind: str,
        contents: Mapping[str, RecordDict],
        answer: type[M],
        take: Callable[[M], None],
        *,
        look: Callable[[str, RecordDict], None] | None = None,
    ) -> None:
        """One step; a client whose answer fails its check counts as dropped.

        `look` sees what came beside the message, before it is taken.
        """
        for client, reply in self.ask(kind, contents, f"round {self.round}, {kind}"):
            try:
                message = wire.decode_message(answer, reply)
                if getattr(message, "client", None) != client:
                    raise ProtocolAborted(f"{answer.__name__} of {client}: names another client")
                if look is not None:
                    look(client, reply)
                _note(self.ledger, message)
                take(message)
            except FedProxyError as error:
                log.warning("round %d: %s is left out: %s", self.round, client, error)
                continue
            if kind == wire.TRAIN and self.on_client is not None:
                self.on_client(client)

    def take(self, messages: Mapping[str, M], take: Callable[[M], None]) -> None:
        """Messages that came earlier; one that fails its check counts as dropped."""
        for client, message in messages.items():
            try:
                take(message)
            except FedProxyError as error:
                log.warning("round %d: %s is left out: %s", self.round, client, error)

    def send(self, messages: Mapping[str, Message]) -> dict[str, RecordDict]:
        """Messages by client, as they travel."""
        for message in messages.values():
            _note(self.ledger, message)
        encoded = {id(m): wire.encode_message(m) for m in messages.values()}  # one copy of a shared one
        return {client: encoded[id(m)] for client, m in messages.items()}


def _run(carrier: Carrier, session: ServerSession) -> Aggregate:
    """The steps of masking after the first."""
    book = session.key_book()
    to_all = carrier.send(dict.fromkeys(book.clients, book))
    carrier.step(wire.SHARE, to_all, Shares, session.shared)
    carrier.step(wire.MASK, carrier.send(session.inboxes()), MaskedInput, session.masked)
    survivors = session.survivors()
    to_alive = carrier.send(dict.fromkeys(survivors.clients, survivors))
    carrier.step(wire.CONFIRM, to_alive, Confirmation, session.confirmed)
    signatures = session.confirmations()
    to_sure = carrier.send(dict.fromkeys(signatures.clients, signatures))
    carrier.step(wire.UNMASK, to_sure, Unmask, session.unmasked)
    return session.finish()


def _run_ckks(carrier: Carrier, session: CkksServer, invitation: RecordDict) -> Aggregate:
    """The four steps of CKKS."""
    cohort = dict.fromkeys(session.terms.cohort, invitation)
    carrier.step(wire.TRAIN, cohort, Hello, session.advertised)
    leader, book = session.hello_book()
    carrier.step(wire.SHARE, carrier.send({leader: book}), KeyGrants, session.granted)
    carrier.step(wire.MASK, carrier.send(session.grants()), Encrypted, session.encrypted)
    total = session.total()
    to_alive = carrier.send(dict.fromkeys(total.clients, total))
    carrier.step(wire.UNMASK, to_alive, Opened, session.opened)
    return session.finish()


def _note(ledger: Ledger, message: Message) -> None:
    size = 0
    for value in message.to_fields().values():
        for part in value if isinstance(value, list) else [value]:
            size += len(part if isinstance(part, bytes) else str(part).encode())
    ledger.note(type(message).__name__, to=message.to, reveals=message.reveals, payload_bytes=size)
