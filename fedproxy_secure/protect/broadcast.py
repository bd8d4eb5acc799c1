"""The server's broadcast, which starts a round under every protection: sent, checked, trained from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.wire import Broadcast, decode_broadcast

if TYPE_CHECKING:  # these modules import torch
    from fedproxy_secure.federate.client import LocalClient
    from fedproxy_secure.federate.server import ServerState
    from fedproxy_secure.federate.update import ClientUpdate

LEAST_GRID = 32  # points of float32's grid in a training step; an ordinary adapter has thousands


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
    """Return the broadcast of a round, checked against the job.

    Raises `DataError` for content that is no broadcast, `ProtocolAborted` for penalties other than the
    job's, a conflict map outside [0, 1], a round after the last, or, where the server is to learn sums
    only, an adapter with numbers so large that float32 would round updates to their signs.
    """
    broadcast = decode_broadcast(content, d=sum(sizes))
    if not 0 <= broadcast.round < job.federate.rounds:
        raise ProtocolAborted(f"round {broadcast.round}: must be 0 to {job.federate.rounds - 1}")
    for name in ("pcr_lambda", "prox_mu"):
        requested, agreed = getattr(broadcast, name), getattr(job.fusion, name)
        if requested != agreed:
            raise ProtocolAborted(f"{name}={requested:g}: must be {agreed:g}, fusion.{name} of the job")
    conflict = broadcast.conflict
    if conflict is not None and not (conflict.min(initial=0) >= 0 and conflict.max(initial=0) <= 1):
        raise ProtocolAborted("conflict map: must be between 0 and 1")
    if job.privacy.unit == "none" and protection_of(job.protect).server_learns == "sums":
        _check_grid(broadcast, job)
    return broadcast


def _check_grid(broadcast: Broadcast, job: FederationJob) -> None:
    """Raise `ProtocolAborted` if float32 is too coarse, at an adapter's largest number, for its training.

    An update is the difference of two adapters, so it is a multiple of float32's spacing at their values.
    If that spacing is about as large as a training step, each number of an update is -s, 0 or +s for the
    same s, and a sum of updates counts signs.
    A step of AdamW moves a coordinate by about its learning rate; one of SGD, clipped to `max_grad_norm`,
    by that times the learning rate over the square root of the number of coordinates. The step meant here
    is the first of the round, its longest: with a schedule, a round with small rates needs a finer grid.
    """
    adapter, local, step = broadcast.adapter, job.local, job.first_rate(broadcast.round)
    if local.optimizer == "sgd":
        step *= local.max_grad_norm / math.sqrt(max(1, len(adapter)))
    largest = np.abs(adapter).max(initial=0)
    grid = float(np.spacing(largest))
    if grid > step / LEAST_GRID:
        raise ProtocolAborted(
            f"broadcast adapter: has a number of {largest:.3g}, where float32 values are {grid:.1e} apart; "
            f"must be at most {step / LEAST_GRID:.1e}, or updates would be rounded to signs; the owner "
            "must begin with a smaller adapter, or agree on a larger local.learning_rate or another "
            "local.schedule"
        )


def train_from(client: LocalClient, broadcast: Broadcast) -> ClientUpdate:
    """Run the client's local training of the round. Raises as `LocalClient.train`."""
    return client.train(
        round=broadcast.round,
        start=broadcast.adapter,
        conflict=broadcast.conflict,
        pcr_lambda=broadcast.pcr_lambda,
        prox_mu=broadcast.prox_mu,
    )
