"""The server's part in a protected round (masking or CKKS): carry the messages, then fuse the sums.

Guarantees: the ledger lists what the server learns of a round, and is written from the messages. If too few
clients are left, `RoundAborted` is raised, and `ProtocolAborted` if a check fails; nothing of the round is
used then. A client whose answer is malformed, or names another client, is left out. Sums are checked
against what the settings imply for honest clients, and the fused step is no longer than honest clients' can
be (`step_bound`).

**Not guaranteed**: that a lying client moves the adapter no more than an honest one. Within those bounds
one client can choose every coordinate of the mean, whatever the others sent (`granularity.merge`), and it
can make every attempt abort. A sum does not tell which client lied.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.crypto.primitives import agreement_public, fresh_secret
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, FedProxyError, ProtocolAborted
from fedproxy_secure.federate.fusion.elections import election_of
from fedproxy_secure.federate.server import advance
from fedproxy_secure.protect.base import RoundResult, ServerRound
from fedproxy_secure.protect.broadcast import broadcast_of
from fedproxy_secure.protect.secure_sum import gram as masked_gram
from fedproxy_secure.protect.secure_sum import noise as client_privacy
from fedproxy_secure.protect.secure_sum.step_bound import held, longest_step
from fedproxy_secure.protect.secure_sum.terms import (
    chosen_clip,
    expected_numbers,
    first_clip,
    largest_clip,
    next_clip,
    ring_plan,
    run_name,
)
from fedproxy_secure.record.leakage import Ledger
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.secagg.ckks.gram import GramServer
from fedproxy_secure.secagg.ckks.messages import Encrypted, Hello, KeyGrants, Opened
from fedproxy_secure.secagg.ckks.server import CkksServer
from fedproxy_secure.secagg.control import Expected
from fedproxy_secure.secagg.granularity import Layout, merge
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.messages import Advertise, Confirmation, MaskedInput, Message, Shares, Unmask
from fedproxy_secure.secagg.provision import load_roster
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.steps import Aggregate
from fedproxy_secure.secagg.terms import Roster, Terms

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class RoundInputs:
    """The inputs of the server's steps in one round; `invitation` is the training request with terms."""

    carrier: Carrier
    terms: Terms
    roster: Roster
    private: Secret
    expected: Expected
    invitation: RecordDict
    gram: bool  # whether H-TIES' weights come from encrypted cosines


def sum_round(
    round: ServerRound,
    steps: Callable[[RoundInputs], tuple[Terms, Aggregate]],
    *,
    payload_bytes: Callable[[RingPlan], int],
    error: float = 0.0,
) -> RoundResult:
    """Run one round in which the server learns sums only, and fuse the sums.

    Clients of the cohort that cannot be reached count as dropped in step 1.

    Args:
        steps: the steps of the scheme: `run_masking` or `run_ckks`.
        payload_bytes: how many bytes a client's vector takes in a message.
        error: how far a sum may be off, as a share of its segment's clip, without the ring's rounding.
    """
    if round.state.sizes is None:
        raise ConfigError("server state: has no tensor sizes; masking needs what `initial_state` makes")
    sizes, clip = tuple(round.state.sizes.tolist()), _clip(round)
    terms, aggregate = steps(_work(round, sizes, clip))
    for name, total in aggregate.sums.items():
        round.ledger.note(
            f"sum of {name}",
            to="server",
            reveals=f"{len(total)} sums over {len(aggregate.clients)} clients",
            payload_bytes=total.nbytes,
            computed=True,
        )
    control, election = aggregate.control, election_of(round.job.fusion)
    merged = merge(
        aggregate.sums,
        round.job.granularity,
        Layout(sizes=sizes),
        terms.plan,
        clients=len(aggregate.clients),
        weight=control.weight,
        rho=1.0 if election is None else election.margin(round.job.fusion),
        kept=1.0 if election is None else election.kept_share(round.job.fusion),
        error=error,
    )
    most = _longest(round, terms, aggregate)
    step, cut = held(merged.step, most)
    if cut > 0:
        message = "round %d: the fused step is longer than honest clients can make it; cut by %.1f %% to %g"
        log.warning(message, round.state.round, 100 * cut, most)
    following = min(round.state.round + 1, round.job.federate.rounds - 1)
    new = advance(
        round.state,
        step,
        round.job.fusion,
        conflict=merged.conflict,
        clip=np.array([min(next_clip(clip, control), largest_clip(round.job, following))]),
    )
    metrics = {
        "loss": control.loss / control.clients,
        "clients": float(control.clients),
        "clip": clip,
        "clipped": float(control.clipped),
        "vector_bytes": float(payload_bytes(terms.plan)),
        "step_cut": cut,
    }
    return RoundResult(state=new, metrics=metrics, clients=list(aggregate.clients), sums=aggregate.sums)


def _clip(round: ServerRound) -> float:
    """Return the clip of a round's ring."""
    job, state, chosen = round.job, round.state, chosen_clip(round.job, round.state.round)
    if job.privacy.unit == "client":
        return client_privacy.ring_clip(job.privacy, bits=job.protect.bits, clients=len(round.cohort))
    return chosen or (first_clip(job) if state.clip is None else float(state.clip[0]))


def _work(round: ServerRound, sizes: Sequence[int], clip: float) -> RoundInputs:
    """Return the inputs of the round's steps, with a fresh key of the server and new terms."""
    job, state = round.job, round.state
    broadcast = broadcast_of(job, state)
    if job.protect.keys is None:
        raise ConfigError(f"protect.keys: must name the folder with {ROSTER}")
    roster = load_roster(Path(job.protect.keys))
    clients = tuple(sorted(round.cohort))
    private = fresh_secret()
    terms = Terms(
        run=run_name(job),
        round=state.round,
        attempt=time.time_ns(),  # after a clock was set back, clients refuse until it is later again
        cohort=clients,
        threshold=client_privacy.planned_threshold(job, len(clients)),
        server_key=agreement_public(private),
        settings_sha256=job.agreed_sha256(),
        roster_sha256=roster.sha256(),
        broadcast_sha256=wire.broadcast_sha256(broadcast),
        plan=ring_plan(job, sizes, clip=clip, clients=len(clients)),
    )
    invitation = RecordDict({**wire.encode_broadcast(broadcast), "terms": wire.encode_terms(terms, clip)})
    return RoundInputs(
        carrier=Carrier(round=round),
        terms=terms,
        roster=roster,
        private=private,
        expected=expected_numbers(job, d=len(state.adapter)),
        invitation=invitation,
        gram=job.protect.weights == "encrypted_gram",
    )


def _longest(round: ServerRound, terms: Terms, aggregate: Aggregate) -> float:
    return longest_step(
        round.job,
        round.state.adapter,
        round=round.state.round,
        cohort=len(round.cohort),
        threshold=terms.threshold,
        clients=len(aggregate.clients),
        weight=aggregate.control.weight,
    )


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """Sends the messages of one round, notes them in the ledger, and hands the answers on."""

    round: ServerRound

    def step(
        self,
        kind: str,
        contents: Mapping[str, RecordDict],
        answer: type[M],
        take: Callable[[M], None],
        *,
        look: Callable[[str, RecordDict], None] | None = None,
    ) -> None:
        """Run one step; a client whose answer fails its check counts as dropped.

        `take` gets each message. Before that, `look` gets the content that the message came in.
        """
        for client, reply in self.round.ask(kind, contents, f"round {self.round.state.round}, {kind}"):
            try:
                message = wire.decode_message(answer, reply)
                if getattr(message, "client", None) != client:
                    raise ProtocolAborted(f"{answer.__name__} of {client}: names another client")
                if look is not None:
                    look(client, reply)
                _note(self.round.ledger, message)
                take(message)
            except FedProxyError as error:
                self._leave_out(client, error)
                continue
            if kind == wire.TRAIN and self.round.on_client is not None:
                self.round.on_client(client)

    def take(self, messages: Mapping[str, M], take: Callable[[M], None]) -> None:
        """Hand on messages that came earlier; a client whose message fails its check counts as dropped."""
        for client, message in messages.items():
            try:
                take(message)
            except FedProxyError as error:
                self._leave_out(client, error)

    def _leave_out(self, client: str, error: FedProxyError) -> None:
        log.warning("round %d: %s is left out: %s", self.round.state.round, client, error)
        self.round.note_left_out(client, str(error))

    def send(self, messages: Mapping[str, Message]) -> dict[str, RecordDict]:
        """Note messages in the ledger, and return them encoded, by client."""
        for message in messages.values():
            _note(self.round.ledger, message)
        encoded = {id(m): wire.encode_message(m) for m in messages.values()}  # shared ones once
        return {client: encoded[id(m)] for client, m in messages.items()}


def run_masking(work: RoundInputs) -> tuple[Terms, Aggregate]:
    """Run the steps of masking, after those of encrypted cosines if the job asks for them."""
    carrier, terms = work.carrier, work.terms
    advertised: Mapping[str, Advertise] | None = None
    if work.gram:
        gram = GramServer(terms=terms, roster=work.roster, private=work.private)
        terms, advertised = masked_gram.gather(carrier, gram, work.invitation)
    session = ServerSession(terms=terms, roster=work.roster, private=work.private, expected=work.expected)
    if advertised is not None:
        carrier.take(advertised, session.advertised)
    else:
        to_cohort = dict.fromkeys(terms.cohort, work.invitation)
        carrier.step(wire.TRAIN, to_cohort, Advertise, session.advertised)
    book = session.key_book()
    to_all = carrier.send(dict.fromkeys(book.clients, book))
    carrier.step(wire.SHARE, to_all, Shares, session.shared)
    carrier.step(wire.MASK, carrier.send(session.inboxes()), MaskedInput, session.masked)
    survivors = session.survivors()
    to_alive = carrier.send(dict.fromkeys(survivors.clients, survivors))
    carrier.step(wire.CONFIRM, to_alive, Confirmation, session.confirmed)
    signatures = session.confirmations()
    work.carrier.round.note_unmasked(survivors.clients)
    to_sure = carrier.send(dict.fromkeys(signatures.clients, signatures))
    carrier.step(wire.UNMASK, to_sure, Unmask, session.unmasked)
    aggregate = session.finish()
    for client, share_name in session.misfits.items():
        log.warning(
            "round %d: %s gave a false share of the %s, or was dealt it", terms.round, client, share_name
        )
    return terms, aggregate


def run_ckks(work: RoundInputs) -> tuple[Terms, Aggregate]:
    """Run the four steps of CKKS."""
    carrier = work.carrier
    session = CkksServer(terms=work.terms, roster=work.roster, private=work.private, expected=work.expected)
    to_cohort = dict.fromkeys(work.terms.cohort, work.invitation)
    carrier.step(wire.TRAIN, to_cohort, Hello, session.advertised)
    leader, book = session.hello_book()
    carrier.step(wire.SHARE, carrier.send({leader: book}), KeyGrants, session.granted)
    carrier.step(wire.MASK, carrier.send(session.grants()), Encrypted, session.encrypted)
    total = session.total()
    carrier.round.note_unmasked(total.clients)
    to_alive = carrier.send(dict.fromkeys(total.clients, total))
    carrier.step(wire.UNMASK, to_alive, Opened, session.opened)
    return work.terms, session.finish()


def _note(ledger: Ledger, message: Message) -> None:
    parts = [p for v in message.to_fields().values() for p in (v if isinstance(v, list) else [v])]
    size = sum(len(part if isinstance(part, bytes) else str(part).encode()) for part in parts)
    kind = type(message).__name__
    ledger.note(kind, to=message.to, reveals=message.reveals, payload_bytes=size, vector=message.vector)
