"""Protections in which the answer to the training request is all that a client sends."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fedproxy_secure.errors import DataError
from fedproxy_secure.protect.base import ClientRequest, Protection, RoundResult, ServerRound
from fedproxy_secure.protect.gathering import gather

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.federate.update import ClientUpdate


class OneMessage(Protection):
    """A protection in which the answer to the training request is all that a client sends.

    A subclass defines `sees`, `upload_bytes`, `encode` and `decode`. The server knows which client sent
    each update. `reveals`: what one message reveals, for the ledger.
    """

    reveals: ClassVar[str] = "the client's whole update"

    @abstractmethod
    def encode(self, update: ClientUpdate, job: FederationJob) -> RecordDict:
        """Return the message that carries the update."""

    @abstractmethod
    def decode(self, content: RecordDict, job: FederationJob, *, d: int) -> ClientUpdate:
        """Return the update of `d` numbers in a message. Raises `DataError` for anything malformed."""

    def train(self, asked: ClientRequest) -> RecordDict:
        """Train and send the update, encoded."""
        return self.encode(train(asked), asked.job)

    def run_round(self, round: ServerRound) -> RoundResult:
        """Ask the cohort, read the updates, and fuse them by the job's rule, exactly.

        A client whose answer is malformed, or names another client, is left out.
        """
        from fedproxy_secure.federate.server import fuse_round

        job, d = round.job, len(round.state.adapter)

        def read(name: str, reply: RecordDict) -> ClientUpdate:
            update = self.decode(reply, job, d=d)
            if update.client != name:
                raise DataError("its update names another client")
            return update

        size = self.upload_bytes(job, [d])
        updates = gather(round, read, message="Update", reveals=self.reveals, payload_bytes=size)
        new, metrics = fuse_round(round.state, list(updates.values()), job.fusion)
        return RoundResult(
            state=new,
            metrics=metrics,
            clients=list(updates),
            updates={name: update.update for name, update in updates.items()},
        )


def train(asked: ClientRequest) -> ClientUpdate:
    """Check the broadcast against the job and train from it."""
    from fedproxy_secure.protect.broadcast import agreed_broadcast, train_from

    client = asked.local_client()
    return train_from(client, agreed_broadcast(asked.content, asked.job, client.sizes))
