"""A server that asks for what a client's own policy does not say.

Other rounds, smaller cohorts, lower thresholds, updates in the clear. `TwoFacedJob` shows clients the job
that they agreed to while the server works by another, so that what is proposed in the round's terms is
judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import wire
from fedproxy_secure.flower.grid_around import GridAround
from fedproxy_secure.flower.selftest import known_bad
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit
from fedproxy_secure.flower.selftest.stage import DropsOut, TwoFacedJob, World, read, small_job, staged

ADVERSARY = "active_server"


class ReadsUpdates(GridAround):
    """Keeps the updates that come in the clear, by client."""

    def __init__(self, grid: Grid, *, d: int) -> None:
        super().__init__(grid)
        self._d = d
        self.updates: dict[str, np.ndarray] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Look at each answer on its way."""
        for reply in self._grid.pull_messages(message_ids):
            plain = not reply.has_error() and "metrics" in reply.content
            if plain and reply.metadata.message_type == wire.TRAIN:
                update = wire.decode_update(reply.content, d=self._d)
                self.updates[update.client] = update.update
            yield reply


def in_the_clear(world: World) -> str:
    """Plaintext of clients whose policies say masking."""
    with staged(world) as stage:
        grid = ReadsUpdates(stage.grid(), d=len(stage.initial.adapter))
        stage.serve(grid, _changed(stage.job, scheme="unsafe_plaintext"))
        return read(grid.updates[stage.victim], stage.update(), stage.victim)


def more_rounds(world: World) -> str:
    """A job of two rounds to clients whose policies say one."""
    with staged(world) as stage:
        final = stage.serve(stage.grid(), _rounds(stage.job, 2))
        return f"gets {final.round} sums of a run of 1 round"


def beyond_the_last(world: World) -> str:
    """The job that they agreed to, and terms of the round after its last."""
    with staged(world) as stage:
        shown = stage.named(stage.job)
        asked = TwoFacedJob.of(_rounds(shown, 2), shown=shown)
        final = stage.serve(stage.grid(), asked, replace(stage.initial, round=1))
        return f"gets the sum of round {final.round - 1} of a run of 1 round, which begins at 0"


def lower_threshold(world: World) -> str:
    """Terms with a threshold of 3 to clients whose policies say 4; then one drops out."""
    with staged(world, small_job(threshold=4)) as stage:
        shown = stage.named(stage.job)
        asked = TwoFacedJob.of(_changed(shown, threshold=None), shown=shown)
        state = stage.serve(stage.grid(DropsOut(wire.MASK, stage.node(-1))), asked)
        moved = np.abs(state.adapter - stage.initial.adapter).max()
        return f"gets a sum of 3 clients, where policies say 4; it moves the adapter by {moved:.0e}"


def smaller_cohort(world: World) -> str:
    """A cohort of 3 of a roster of 5, in which no sum is of fewer than 4."""
    with staged(world, small_job(5)) as stage:
        few = replace(stage.job, clients=stage.job.clients[:3])
        state = stage.serve(stage.grid(), few)
        moved = np.abs(state.adapter - stage.initial.adapter).max()
        return f"gets a sum of 3 clients of 5; it moves the adapter by {moved:.0e}"


def adapter_for_one(world: World) -> str:
    """The victim gets an adapter, all others zeros, which no gradient reaches: they send nothing."""
    with staged(world) as stage:
        start = np.full_like(stage.initial.adapter, 0.1)
        state = replace(stage.initial, adapter=start)
        after = stage.serve(_SilencesOthers(stage.grid(), stage.node(-1)), state=state)
        return read(stage.sum_of(after, 4, state), stage.update(start=state), stage.victim)


def attempts() -> Iterator[Attempt | Limit]:
    """In the order in which they are shown."""
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
    """Zeros in the place of the broadcast adapter, but for one node."""

    def __init__(self, grid: Grid, node: int) -> None:
        super().__init__(grid)
        self._node = node

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """The terms stay: they name the hash of what the one node gets."""
        kept = list(messages)
        for message in kept:
            metadata = message.metadata
            if metadata.message_type == wire.TRAIN and metadata.dst_node_id != self._node:
                adapter = wire.decode_broadcast(message.content).adapter
                zeros = ArrayRecord({"adapter": Array(np.zeros_like(adapter))})
                message.content = RecordDict({**message.content, "vectors": zeros})
        return self._grid.push_messages(kept)


def _changed(job: FederationJob, **protect: Any) -> FederationJob:
    return replace(job, protect=job.protect.model_copy(update=protect))


def _rounds(job: FederationJob, rounds: int) -> FederationJob:
    return replace(job, federate=job.federate.model_copy(update={"rounds": rounds}))
