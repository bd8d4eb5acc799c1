"""An attempt: one attack, played against installed parties and against known-bad ones that lack one check.

Installed parties must stop it, and against known-bad parties it must succeed, because a check that cannot
fail proves nothing. A `Limit` is an attack that nothing here stops. It is played like the others and
printed as "not stopped", never as ok. If it does not succeed, its description is wrong: that is a failure,
too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fedproxy_secure.errors import FedProxyError, ProtocolAborted
from fedproxy_secure.flower.selftest.stage import Heard, World
from fedproxy_secure.secagg.selftest.attempts import Finding

# returns what the attack read or did; raises `FedProxyError` if it was stopped
Attack = Callable[[World], str]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attack that must be stopped.

    Attributes:
        adversary: who attacks, such as `active_server`.
        name: what the adversary does.
        attack: plays the attack.
        known_bad: names the party that lacks a check.
        without: returns the context in which that party lacks its check.
    """

    adversary: str
    name: str
    attack: Attack
    known_bad: str
    without: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An attack that nothing stops; `why` says why not, or what bounds it."""

    adversary: str
    name: str
    attack: Attack
    why: str


def tried(attempt: Attempt | Limit, world: World, heard: Heard) -> Iterator[Finding]:
    """Play an attack and yield its findings: one for a limit; two for an attempt, the second known-bad."""
    outcome, succeeded = _outcome(attempt.attack, world, heard)
    if isinstance(attempt, Limit):
        text = f"not stopped: {outcome}; {attempt.why}" if succeeded else f"is stopped after all: {outcome}"
        yield Finding(
            adversary=attempt.adversary, attempt=attempt.name, ok=succeeded, found=text, limit=True
        )
        return
    text = outcome if succeeded else f"stopped: {outcome}"
    yield Finding(adversary=attempt.adversary, attempt=attempt.name, ok=not succeeded, found=text)
    with attempt.without():
        outcome, succeeded = _outcome(attempt.attack, world, heard)
    yield Finding(
        adversary=attempt.adversary,
        attempt=f"{attempt.name}, known-bad {attempt.known_bad}",
        ok=succeeded,
        found=f"succeeds: {outcome}" if succeeded else f"stopped: {outcome}",
    )


def _outcome(attack: Attack, world: World, heard: Heard) -> tuple[str, bool]:
    """Play an attack, and return what it read or why it was stopped, and whether it succeeded.

    If the server's error says only that too few clients were left, the reason is the first that a client
    logged.
    """
    heard.take()
    try:
        return attack(world), True
    except FedProxyError as error:
        reason = heard.take()
        by_protocol = isinstance(error, ProtocolAborted)
        return str(error) if by_protocol or reason is None else reason, False
