"""The server's broadcast, which starts a round under every protection: sent, checked, trained from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.wire import Broadcast, decode_broadcast

if TYPE_CHECKING:  # they bring torch
    from fedproxy_secure.federate.client import LocalClient
    from fedproxy_secure.federate.server import ServerState
    from fedproxy_secure.federate.update import ClientUpdate


def broadcast_of(job: FederationJob, state: ServerState) -> Broadcast:
    """Return what the server sends to start the next round."""
    return Broadcast(
        round=state.round,
        adapter=state.adapter,
        conflict=state.conflict,
        pcr_lambda=job.fusion.pcr_lambda,
        prox_mu=job.fusion.prox_mu,
    )


def agreed_broadcast(content: RecordDict, job: FederationJob, sizes: Sequence[int]) -> Broadcast:
    """Return the broadcast of a round, if it is what the job says.

    Raises `DataError` for content that is no broadcast, `ProtocolAborted` for penalties other than the
    job's, a conflict map outside [0, 1], or a round after the last.
    """
    broadcast = decode_broadcast(content, d=sum(sizes))
    if not 0 <= broadcast.round < job.federate.rounds:
        raise ProtocolAborted(f"round {broadcast.round}: must be 0 to {job.federate.rounds - 1}")
    for name in ("pcr_lambda", "prox_mu"):
        asked, own = getattr(broadcast, name), getattr(job.fusion, name)
        if asked != own:
            raise ProtocolAborted(f"{name}={asked:g}: must be {own:g}, fusion.{name} of the job")
    conflict = broadcast.conflict
    if conflict is not None and not (conflict.min(initial=0) >= 0 and conflict.max(initial=0) <= 1):
        raise ProtocolAborted("conflict map: must be between 0 and 1")
    return broadcast


def train_from(client: LocalClient, broadcast: Broadcast) -> ClientUpdate:
    """Run the client's local training of the round. Raises as `LocalClient.train`."""
    return client.train(
        round=broadcast.round,
        start=broadcast.adapter,
        conflict=broadcast.conflict,
        pcr_lambda=broadcast.pcr_lambda,
        prox_mu=broadcast.prox_mu,
    )
