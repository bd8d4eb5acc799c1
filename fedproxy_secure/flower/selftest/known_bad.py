"""Parties with one check taken out: where it is missing, the attack that it stops must succeed.

Journals that grant too much, clients that trust the server's job or terms, servers that believe what
clients say. None of them is reachable from a setting; each lasts as long as its context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure.federate.client_policy import ClientPolicy
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.flower import client_app, masked_client, wire
from fedproxy_secure.journal.rounds import Attempt as Asked
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import writing
from fedproxy_secure.secagg.control import FRACTION, FRACTIONAL, LIMB_BITS, LIMBS, NAMES, Control
from fedproxy_secure.secagg.terms import Policy


@contextlib.contextmanager
def taken_out(*places: tuple[object, str, object]) -> Iterator[None]:
    """Meanwhile, let each (owner, name) of this process be something else."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, instead in places:
            setattr(owner, name, instead)
        yield
    finally:
        for owner, name, was in before:
            setattr(owner, name, was)


class Forgetful(Journal):
    """Grants every step, as a session that lies in Flower's state does to messages at once."""

    def take(self, step: str) -> dict[str, bytes]:
        """What was kept for the step, as often as it is asked for."""
        with writing(self.file) as database:
            kept = dict(database.execute("SELECT name, value FROM kept").fetchall())
            first = {n.removeprefix(f"{step} "): v for n, v in kept.items() if n.startswith(f"{step} ")}
            if not first:
                first = {n: v for n, v in kept.items() if " " not in n}
                rows = [(f"{step} {n}", v) for n, v in first.items()]
                database.executemany("INSERT INTO kept VALUES (?, ?)", rows)
            return first

    def put(self, context: bytes, kept: Any) -> None:
        """Whatever attempt it is of."""
        with writing(self.file) as database:
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", kept.items())

    def release(self, context: bytes, **_: Any) -> None:
        """Nothing is written down."""


class ForgetsRounds(Journal):
    """Forgets what a round was asked with and unmasked for, as Flower's state does in a new run."""

    def begin(self, asked: Asked) -> None:
        """As if no round had been before."""
        with writing(self.file) as database:
            database.execute("DELETE FROM rounds")
        super().begin(asked)


class AgreesToAnyRun(Journal):
    """Takes any proxy, plan and roster under one policy and seed."""

    def agree(self, *, policy: bytes, seed: int, run: str, roster_sha256: bytes) -> None:
        """Nothing is compared."""


class TrustsItsDisk(Journal):
    """Does not ask whether it was put back."""

    def check_not_older(self, *, sequence: int = 0, run: str = "", ledger_events: int = 0) -> None:
        """Nothing is compared."""


class TakesAnyTerms(Policy):
    """Signs whatever terms the server proposes."""

    def check(self, terms: Any, *, name: str, broadcast_sha256: bytes, plan: Any) -> None:
        """Nothing is compared."""


def any_broadcast(content: RecordDict, _job: FederationJob, sizes: Sequence[int]) -> wire.Broadcast:
    """Whatever round and penalties it names."""
    return wire.decode_broadcast(content, d=sum(sizes))


def trusts_the_servers_job(policy: ClientPolicy, asked: FederationJob) -> FederationJob:
    """Takes its records from its policy and everything else from the server."""
    protect = asked.protect.model_copy(update={"keys": policy.protect.keys})
    return replace(asked, clients=(policy.client,), data_root=policy.data_root, protect=protect)


def believed(
    sums: dict[str, np.ndarray], context: bytes, *, clients: int, expected: object = None
) -> Control:
    """What control words say, whatever they say."""
    rows = sums["control"].reshape(len(NAMES), LIMBS)
    values = {
        name: sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(row))
        / (FRACTION if name in FRACTIONAL else 1)
        for row, name in zip(rows, NAMES, strict=True)
    }
    whole = {name: int(values[name]) for name in ("clients", "clipped", "steps")}
    return Control(**{**values, **whole})  # type: ignore[arg-type]


def signing_clients() -> contextlib.AbstractContextManager[None]:
    """Clients that train and sign whatever a round's messages propose."""
    return taken_out(
        (masked_client, "Policy", TakesAnyTerms),
        (masked_client, "agreed_broadcast", any_broadcast),
        (client_app, "agreed_broadcast", any_broadcast),
    )


def trusting_clients() -> contextlib.AbstractContextManager[None]:
    """Clients whose policies say nothing."""
    return taken_out((ClientPolicy, "own_job", trusts_the_servers_job))
