"""Protections in which the answer to the training request is all that a client sends."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.protect.base import ClientRequest, Protection, RoundResult, ServerRound

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.federate.update import ClientUpdate

log = logging.getLogger(__name__)


class OneMessage(Protection):
    """A protection in which the answer to the training request is all that a client sends.

    Write `sees`, `upload_bytes`, `encode` and `decode`. The server can tell whose each update is.
    `reveals`: what one message reveals, for the ledger.
    """

    reveals: ClassVar[str] = "the client's whole update"

    @abstractmethod
    def encode(self, update: ClientUpdate, job: FederationJob) -> RecordDict:
        """Return the update as it travels."""

    @abstractmethod
    def decode(self, content: RecordDict, job: FederationJob, *, d: int) -> ClientUpdate:
        """Return what the server reads of it, `d` numbers. Raises `DataError` for anything malformed."""

    def train(self, asked: ClientRequest) -> RecordDict:
        """Train and send the update, encoded."""
        return self.encode(train(asked), asked.job)

    def run_round(self, round: ServerRound) -> RoundResult:
        """Gather the updates and fuse them by the job's rule, exactly."""
        return gather_and_fuse(self, round)


def train(asked: ClientRequest) -> ClientUpdate:
    """Check the broadcast against the job and train from it."""
    from fedproxy_secure.protect.broadcast import agreed_broadcast, train_from

    client = asked.local_client()
    return train_from(client, agreed_broadcast(asked.content, asked.job, client.sizes))


def gather_and_fuse(protection: OneMessage, round: ServerRound) -> RoundResult:
    """Ask the cohort, read the updates, fuse them by the job's rule.

    Updates are ordered by client name, so that sums do not depend on who was fastest. A client whose answer
    is malformed, or names another client, is left out.
    """
    from fedproxy_secure import wire
    from fedproxy_secure.federate.server import fuse_round
    from fedproxy_secure.protect.broadcast import broadcast_of

    job, state = round.job, round.state
    content = wire.encode_broadcast(broadcast_of(job, state))
    size = protection.upload_bytes(job, [len(state.adapter)])
    updates: dict[str, ClientUpdate] = {}
    group = f"round {state.round}"
    for name, reply in round.ask(wire.TRAIN, dict.fromkeys(round.cohort, content), group):
        try:
            update = protection.decode(reply, job, d=len(state.adapter))
        except FedProxyError as error:
            log.warning("%s: %s is left out: %s", group, name, error)
            round.note_left_out(name, str(error))
            continue
        if update.client != name:
            log.warning("%s: %s is left out: its update names another client", group, name)
            round.note_left_out(name, "its update names another client")
            continue
        round.ledger.note(
            "Update", to="server", reveals=protection.reveals, payload_bytes=size, vector=True
        )
        updates[name] = update
        if round.on_client is not None:
            round.on_client(name)
    round.enough(len(updates))
    ordered = [updates[name] for name in sorted(updates)]
    new, metrics = fuse_round(state, ordered, job.fusion)
    return RoundResult(
        state=new,
        metrics=metrics,
        clients=[u.client for u in ordered],
        updates={u.client: u.update for u in ordered},
    )
