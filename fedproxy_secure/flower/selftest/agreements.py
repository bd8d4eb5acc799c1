"""Attacks by a server that asks for more than a client's own policy allows.

It asks for other rounds, smaller cohorts, lower thresholds, or updates in the clear. With `TwoFacedJob` it
shows clients the job that they agreed to but follows another one, so that only the clients' check of a
round's terms can stop it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedproxy_secure import wire
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.selftest import known_bad
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit
from fedproxy_secure.flower.selftest.stage import DropsOut, TwoFacedJob, World, read, small_job, staged

ADVERSARY = "active_server"


class ReadsUpdates(GridAround):
    """A grid that keeps the updates which clients send in the clear, by client."""

    def __init__(self, grid: Grid, *, d: int) -> None:
        super().__init__(grid)
        self._d = d
        self.updates: dict[str, np.ndarray] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies, and keep the update in each."""
        for reply in self._grid.pull_messages(message_ids):
            plain = not reply.has_error() and "metrics" in reply.content
            if plain and reply.metadata.message_type == wire.TRAIN:
                update = wire.decode_update(reply.content, d=self._d)
                self.updates[update.client] = update.update
            yield reply


def in_the_clear(world: World) -> str:
    """Ask for plaintext updates from clients whose policies say masking."""
    with staged(world) as stage:
        grid = ReadsUpdates(stage.grid(), d=len(stage.initial.adapter))
        stage.serve(grid, _changed(stage.job, scheme="unsafe_plaintext"))
        return read(grid.updates[stage.victim], stage.update(), stage.victim)


def more_rounds(world: World) -> str:
    """Ask for two rounds from clients whose policies say one."""
    with staged(world) as stage:
        final = stage.serve(stage.grid(), _rounds(stage.job, 2))
        return f"gets {final.round} sums of a run of 1 round"


def beyond_the_last(world: World) -> str:
    """Show clients the job that they agreed to, and propose terms for the round after its last."""
    with staged(world) as stage:
        agreed = stage.named(stage.job)
        two_faced = TwoFacedJob.of(_rounds(agreed, 2), shown=agreed)
        final = stage.serve(stage.grid(), two_faced, replace(stage.initial, round=1))
        return f"gets the sum of round {final.round - 1} of a run of 1 round, which begins at 0"


def lower_threshold(world: World) -> str:
    """Propose a threshold of 3 to clients whose policies say 4, then let one client drop out."""
    with staged(world, small_job(threshold=4)) as stage:
        agreed = stage.named(stage.job)
        two_faced = TwoFacedJob.of(_changed(agreed, threshold=None), shown=agreed)
        state = stage.serve(stage.grid(DropsOut(wire.MASK, stage.node(-1))), two_faced)
        moved = np.abs(state.adapter - stage.initial.adapter).max()
        return f"gets a sum of 3 clients, where policies say 4; it moves the adapter by {moved:.0e}"


def smaller_cohort(world: World) -> str:
    """Ask a cohort of 3 clients of a roster of 5, which allows no sum of fewer than 4."""
    with staged(world, small_job(5)) as stage:
        smaller_job = stage.job.changed(clients=stage.job.clients[:3])
        state = stage.serve(stage.grid(), smaller_job)
        moved = np.abs(state.adapter - stage.initial.adapter).max()
        return f"gets a sum of 3 clients of 5; it moves the adapter by {moved:.0e}"


def adapter_for_one(world: World) -> str:
    """Send the victim an adapter and all others zeros: their gradients and updates are zero, too."""
    with staged(world) as stage:
        start = np.full_like(stage.initial.adapter, 0.1)
        state = replace(stage.initial, adapter=start)
        after = stage.serve(_SilencesOthers(stage.grid(), stage.node(-1)), state=state)
        return read(stage.sum_of(after, 4, state), stage.update(start=state), stage.victim)


def attempts() -> Iterator[Attempt | Limit]:
    """Yield the attempts in the order in which they are shown."""
    for name, attack in (
        ("plaintext of clients whose policy says masking", in_the_clear),
        ("more rounds than the policy says", more_rounds),
    ):
        yield Attempt(
            adversary=ADVERSARY,
            name=name,
            attack=attack,
            known_bad="client that takes the server's job",
            without=known_bad.trusting_clients,
        )
    for name, attack in (
        ("a round beyond the last", beyond_the_last),
        ("a threshold below the policy's own", lower_threshold),
        ("a cohort smaller than the roster gives", smaller_cohort),
        ("a broadcast adapter for one client, zeros for the others", adapter_for_one),
    ):
        yield Attempt(
            adversary=ADVERSARY,
            name=name,
            attack=attack,
            known_bad="client that signs any terms",
            without=known_bad.signing_clients,
        )


class _SilencesOthers(GridAround):
    """A grid that sends zeros in place of the broadcast adapter to all nodes but one."""

    def __init__(self, grid: Grid, node: int) -> None:
        super().__init__(grid)
        self._node = node

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Replace the adapters, but not the terms, which name the hash of the adapter for the one node."""
        outgoing = list(messages)
        for message in outgoing:
            metadata = message.metadata
            if metadata.message_type == wire.TRAIN and metadata.dst_node_id != self._node:
                adapter = wire.decode_broadcast(message.content).adapter
                zeros = ArrayRecord({"adapter": Array(np.zeros_like(adapter))})
                message.content = RecordDict({**message.content, "vectors": zeros})
        return self._grid.push_messages(outgoing)


def _changed(job: FederationJob, **protect: Any) -> FederationJob:
    return job.changed(protect=job.protect.model_copy(update=protect))


def _rounds(job: FederationJob, rounds: int) -> FederationJob:
    return job.changed(federate=job.federate.model_copy(update={"rounds": rounds}))
