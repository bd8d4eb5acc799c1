"""Known-bad parties: each lacks one check, so the attack that the check stops must succeed on it.

There are journals that grant too much, clients that trust the server's job or terms, and servers that
believe what clients say. No setting enables any of them; each lasts as long as its `with` block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedproxy_secure import wire
from fedproxy_secure.federate.client_policy import ClientPolicy
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.journal.rounds import Attempt as Asked
from fedproxy_secure.journal.rounds import Journal
from fedproxy_secure.journal.store import writing
from fedproxy_secure.protect import broadcast
from fedproxy_secure.protect.secure_sum import client as masked_client
from fedproxy_secure.secagg.control import FRACTION, FRACTIONAL, LIMB_BITS, LIMBS, NAMES, Control
from fedproxy_secure.secagg.terms import Roster, Terms, TermsPolicy


@contextlib.contextmanager
def taken_out(*places: tuple[object, str, object]) -> Iterator[None]:
    """Replace attributes in this process, given as (owner, name, replacement), in a `with` block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, replacement in places:
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


class Forgetful(Journal):
    """A journal that grants every step again, as a session in Flower's state would to parallel messages."""

    def take(self, step: str) -> dict[str, bytes]:
        """Return the values that were kept for the step, however often they are requested."""
        with writing(self.file) as database:
            kept = dict(database.execute("SELECT name, value FROM kept").fetchall())
            first = {n.removeprefix(f"{step} "): v for n, v in kept.items() if n.startswith(f"{step} ")}
            if not first:
                first = {n: v for n, v in kept.items() if " " not in n}
                rows = [(f"{step} {n}", v) for n, v in first.items()]
                database.executemany("INSERT INTO kept VALUES (?, ?)", rows)
            return first

    def put(self, context: bytes, kept: Any) -> None:
        """Keep the values, whichever attempt they belong to."""
        with writing(self.file) as database:
            database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", kept.items())

    def release(self, context: bytes, **_: Any) -> None:
        """Write nothing down."""


class ForgetsRounds(Journal):
    """A journal that forgets the rounds it began and unmasked, like Flower's state in a new run."""

    def begin(self, asked: Asked) -> None:
        """Begin an attempt as if there had been no round before."""
        with writing(self.file) as database:
            database.execute("DELETE FROM rounds")
        super().begin(asked)


class AgreesToAnyRun(Journal):
    """A journal that takes any proxy, plan and roster under one policy and seed."""

    def agree(self, *, policy: bytes, seed: int, run: str, roster_sha256: bytes) -> None:
        """Accept the run without comparing anything."""


class TrustsItsDisk(Journal):
    """A journal that does not check whether an older copy took its place."""

    def check_not_older(
        self, *, sequence: int = 0, run: str = "", ledger_events: Callable[[], int] = lambda: 0
    ) -> None:
        """Accept the journal without comparing anything."""


class TakesAnyTerms(TermsPolicy):
    """A client's policy on terms that demands nothing: the client signs whatever the server proposes."""

    def check(self, terms: Any, *, name: str, broadcast_sha256: bytes, plan: Any) -> None:
        """Accept the terms without comparing anything."""


def takes_any_roster(roster: Roster, terms: Terms) -> None:
    """Accept a roster without comparing it with the one that the terms name."""


def any_broadcast(content: RecordDict, _job: FederationJob, sizes: Sequence[int]) -> wire.Broadcast:
    """Decode a broadcast, and accept whatever round and penalties it names."""
    return wire.decode_broadcast(content, d=sum(sizes))


def trusts_the_servers_job(policy: ClientPolicy, asked: FederationJob) -> FederationJob:
    """Return the server's job, with nothing but the records and the keys taken from the policy."""
    protect = asked.protect.model_copy(update={"keys": policy.protect.keys})
    return asked.changed(clients=(policy.client,), data_root=policy.data_root, protect=protect)


def believed(
    sums: dict[str, np.ndarray], context: bytes, *, clients: int, expected: object = None
) -> Control:
    """Decode the control words without judging what they say."""
    rows = sums["control"].reshape(len(NAMES), LIMBS)
    values = {
        name: sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(row))
        / (FRACTION if name in FRACTIONAL else 1)
        for row, name in zip(rows, NAMES, strict=True)
    }
    whole = {name: int(values[name]) for name in ("clients", "clipped", "steps")}
    return Control(**{**values, **whole})  # type: ignore[arg-type]


def signing_clients() -> contextlib.AbstractContextManager[None]:
    """Return a context in which clients train and sign whatever a round's messages propose."""
    return taken_out(
        (masked_client, "TermsPolicy", TakesAnyTerms),
        (masked_client, "agreed_broadcast", any_broadcast),
        (broadcast, "agreed_broadcast", any_broadcast),
    )


def trusting_clients() -> contextlib.AbstractContextManager[None]:
    """Return a context in which clients take the server's job, whatever their policies say."""
    return taken_out((ClientPolicy, "own_job", trusts_the_servers_job))
