"""Attacks by Sybils: with enough clients of its own, a server leaves one honest client in a sum.

How many clients a sum must have follows from the cohort and the roster. If the roster has gained more
Sybils than it had clients, the survivors may be the Sybils and one victim, and the server subtracts from
the sum what its own clients sent. If the roster does not help, the server may bring in strangers, play
honest clients itself (also by a roster that replaces the agreed one within an attempt), or invite fewer
clients than the roster demands.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, MessageType

from fedproxy_secure import wire
from fedproxy_secure.federate.client_policy import load_policy
from fedproxy_secure.flower.selftest import known_bad
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit
from fedproxy_secure.flower.selftest.known_bad import taken_out
from fedproxy_secure.flower.selftest.stage import (
    DropsOut,
    Stage,
    TwoFacedJob,
    World,
    read,
    small_job,
    staged,
)
from fedproxy_secure.journal.newest import SUFFIX as SEQUENCE
from fedproxy_secure.journal.store import SUFFIX as JOURNAL
from fedproxy_secure.protect.secure_sum import attempt as kept
from fedproxy_secure.protect.secure_sum import client as masked_client
from fedproxy_secure.protect.secure_sum import server as masked_server
from fedproxy_secure.runtime.files.names import ROSTER
from fedproxy_secure.secagg import steps
from fedproxy_secure.secagg.provision import load_roster, provision
from fedproxy_secure.secagg.selftest.hostile import TrustsTheServersKeys
from fedproxy_secure.secagg.terms import Roster

ADVERSARY = "sybils"
HONEST, SYBILS = 3, 4
TRUSTING = (masked_client, "ClientSession", TrustsTheServersKeys)
ANY_TERMS = (masked_client, "TermsPolicy", known_bad.TakesAnyTerms)
ANY_ROSTER = (steps, "check_roster", known_bad.takes_any_roster)


class Sybils(DropsOut):
    """A client app in which the server's own nodes refuse nothing, and some honest nodes may be cut off."""

    def __init__(self, sybils: Sequence[int], cut_off: Sequence[int] = ()) -> None:
        super().__init__(wire.MASK, *cut_off)
        self._sybils = sybils

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer for the server's own nodes as the server likes, for all others as installed."""
        if context.node_id not in self._sybils:
            return super().__call__(message, context)
        with taken_out(TRUSTING, ANY_TERMS, ANY_ROSTER), kept.unsafe_journals(known_bad.AgreesToAnyRun):
            return super().__call__(message, context)


@dataclass(frozen=True, kw_only=True)
class TwoFacedRoster(Roster):
    """A roster that a server follows, under the hash of another one, which its terms name."""

    shown: Roster

    def sha256(self) -> bytes:
        """Return the hash of the roster that is shown."""
        return self.shown.sha256()


class SwapsRoster(Sybils):
    """Sybils that replace the victim's roster once the victim has answered the first step."""

    def __init__(self, sybils: Sequence[int], folder: Path, members: Mapping[str, bytes]) -> None:
        super().__init__(sybils)
        self._folder, self._members = folder, members

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as Sybils do, and change the roster after the victim's first answer."""
        reply = super().__call__(message, context)
        if context.node_id not in self._sybils and message.metadata.message_type == MessageType.TRAIN:
            _write_roster(self._folder, self._members)
        return reply


def roster_grows(world: World, *, within: bool = True) -> str:
    """Let four Sybils join three honest clients, and cut off all honest clients but one before they send.

    `within`: the Sybils join after the first round of a run, otherwise before it.
    """
    with staged(world, small_job(HONEST + SYBILS, rounds=2)) as stage:
        state, roster = stage.initial, load_roster(stage.keys)
        if within:
            honest_stage = replace(stage, policies=stage.policies[:HONEST])
            honest = [c.name for c in stage.job.clients[:HONEST]]
            _write_roster(stage.keys, {n: roster.members[n] for n in honest})
            agreed = stage.named(stage.job.changed(clients=stage.job.clients[:HONEST]))
            one_round = agreed.changed(federate=agreed.federate.model_copy(update={"rounds": 1}))
            state = honest_stage.serve(honest_stage.grid(), TwoFacedJob.of(one_round, shown=agreed))
            _write_roster(stage.keys, roster.members)
        state = replace(state, round=1)
        nodes = [stage.node(i) for i in range(HONEST + SYBILS)]
        app = Sybils(nodes[HONEST:], cut_off=nodes[: HONEST - 1])
        total = stage.sum_of(stage.serve(stage.grid(app), state=state), 1 + SYBILS, state)
        sybils_sum = np.sum([stage.update(i, state) for i in range(HONEST, HONEST + SYBILS)], axis=0)
        victim = HONEST - 1
        return read(total - sybils_sum, stage.update(victim, state), stage.job.clients[victim].name)


def strangers(world: World) -> str:
    """Ask a cohort of the victim and two Sybils that are in no honest client's roster."""
    with staged(world, small_job(5)) as stage:
        everybody = load_roster(stage.keys).members
        sybils = ["c0", "c1"]
        folder = _servers_place(stage, sybils, everybody, new_keys=False)
        _write_roster(stage.keys, {n: k for n, k in everybody.items() if n not in sybils})
        return _alone_among(stage, sybils, folder)


def honest_names(world: World) -> str:
    """Play two of three honest clients, with keys of the server's own."""
    with staged(world, small_job(HONEST)) as stage:
        played = ["c0", "c1"]
        folder = _servers_place(stage, played, load_roster(stage.keys).members, new_keys=True)
        return _alone_among(stage, played, folder)


def roster_changes(world: World) -> str:
    """Play two of three honest clients, by a roster that replaces the victim's between two steps."""
    with staged(world, small_job(HONEST)) as stage:
        played, agreed = ["c0", "c1"], load_roster(stage.keys)
        folder = _servers_place(stage, played, agreed.members, new_keys=True)
        forged = TwoFacedRoster(members=load_roster(folder).members, shown=agreed)
        app = SwapsRoster([stage.node(i) for i in range(len(played))], stage.keys, forged.members)
        with taken_out((masked_server, "load_roster", lambda _folder: forged)):
            return _alone_among(stage, played, folder, app)


def fewer_than_asked(world: World) -> str:
    """Ask the victim and two of four Sybils, where a roster of seven demands five clients."""
    with staged(world, small_job(HONEST + SYBILS)) as stage:
        return _alone_among(stage, ["c0", "c1"], stage.keys)


def attempts() -> Iterator[Attempt | Limit]:
    """Yield the attempts in the order in which they are shown."""
    yield Attempt(
        adversary=ADVERSARY,
        name=f"{SYBILS} Sybils join {HONEST} clients within a run",
        attack=roster_grows,
        known_bad="client whose journal agrees to any roster",
        without=lambda: kept.unsafe_journals(known_bad.AgreesToAnyRun),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="two Sybils that are in no roster, and the victim",
        attack=strangers,
        known_bad="client that takes any terms, any roster and the server's keys",
        without=lambda: taken_out(TRUSTING, ANY_TERMS, ANY_ROSTER),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="two Sybils under honest clients' names, and the victim",
        attack=honest_names,
        known_bad="client that takes the server's roster and keys",
        without=lambda: taken_out(TRUSTING, ANY_TERMS, ANY_ROSTER),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="two Sybils under honest clients' names, by a roster that changes within an attempt",
        attack=roster_changes,
        known_bad="client that takes any roster",
        without=lambda: taken_out(ANY_ROSTER),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="fewer Sybils than the roster asks for, and the victim",
        attack=fewer_than_asked,
        known_bad="client that takes any terms",
        without=lambda: taken_out(ANY_TERMS),
    )
    yield Limit(
        adversary=ADVERSARY,
        name=f"{SYBILS} Sybils are among {HONEST + SYBILS} clients before a run",
        attack=lambda world: roster_grows(world, within=False),
        why="the roster says who is a client; whoever makes it must not be the server",
    )


def _write_roster(folder: Path, members: Mapping[str, bytes]) -> None:
    (folder / ROSTER).write_text(Roster(members=dict(members)).to_json(), encoding="utf-8")


def _servers_place(
    stage: Stage, names: Sequence[str], members: Mapping[str, bytes], *, new_keys: bool
) -> Path:
    """Make a folder with the server's roster and its clients' keys, and name it in their policies."""
    folder = Path(tempfile.mkdtemp(dir=stage.world.folder))
    roster_members = dict(members)
    if new_keys:
        roster_members |= provision(names, folder).members
    else:
        for name in names:
            for suffix in (".key", JOURNAL, SEQUENCE):
                shutil.copy2(stage.keys / f"{name}{suffix}", folder)
    _write_roster(folder, roster_members)
    for name in names:
        file = stage.keys / f"{name}.policy.yaml"
        policy = load_policy(file)
        elsewhere = policy.protect.model_copy(update={"keys": str(folder)})
        policy.model_copy(update={"protect": elsewhere}).write(file)
    return folder


def _alone_among(stage: Stage, sybils: Sequence[str], folder: Path, app: Sybils | None = None) -> str:
    """Run a round of the victim and two Sybils, and subtract what the Sybils sent from its sum."""
    chosen = [i for i, c in enumerate(stage.job.clients) if c.name in (*sybils, stage.victim)]
    job = stage.job.changed(clients=tuple(stage.job.clients[i] for i in chosen))
    servers = job.changed(protect=job.protect.model_copy(update={"keys": str(folder)}))
    small_stage = replace(stage, job=job, policies=tuple(stage.policies[i] for i in chosen))
    app = app or Sybils([small_stage.node(i) for i in range(len(sybils))])
    total = small_stage.sum_of(small_stage.serve(small_stage.grid(app), servers), len(chosen))
    sybils_sum = np.sum([small_stage.update(i) for i in range(len(sybils))], axis=0)
    return read(total - sybils_sum, small_stage.update(), small_stage.victim)
