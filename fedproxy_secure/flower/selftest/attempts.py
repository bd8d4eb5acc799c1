"""An attempt: one attack, played on installed parties and on known-bad parties that lack one check.

Installed parties must stop it, and on known-bad parties it must succeed: a check that cannot fail proves
nothing. A `Limit` is an attack that nothing here stops. It is played like the others and printed as "not
stopped", never as ok. If it does not succeed, its description is wrong, and that is a failure too.
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
    """One attack; `known_bad` names the party that lacks a check while the context `without()` lasts."""

    adversary: str
    name: str
    attack: Attack
    known_bad: str
    without: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An attack that nothing stops; `why` says for what reason, or what bounds it."""

    adversary: str
    name: str
    attack: Attack
    why: str


def tried(one: Attempt | Limit, world: World, heard: Heard) -> Iterator[Finding]:
    """Play an attack and yield its findings: one for a limit; for an attempt, installed and known-bad."""
    outcome, succeeded = _outcome(one.attack, world, heard)
    if isinstance(one, Limit):
        text = f"not stopped: {outcome}; {one.why}" if succeeded else f"is stopped after all: {outcome}"
        yield Finding(adversary=one.adversary, attempt=one.name, ok=succeeded, found=text, limit=True)
        return
    text = outcome if succeeded else f"stopped: {outcome}"
    yield Finding(adversary=one.adversary, attempt=one.name, ok=not succeeded, found=text)
    with one.without():
        outcome, succeeded = _outcome(one.attack, world, heard)
    yield Finding(
        adversary=one.adversary,
        attempt=f"{one.name}, known-bad {one.known_bad}",
        ok=succeeded,
        found=f"succeeds: {outcome}" if succeeded else f"stopped: {outcome}",
    )


def _outcome(attack: Attack, world: World, heard: Heard) -> tuple[str, bool]:
    """Play an attack, and return what it read or why it was stopped, and whether it succeeded.

    If the server says no more than that too few clients were left, the reason is the first one that a
    client logged.
    """
    heard.take()
    try:
        return attack(world), True
    except FedProxyError as error:
        reason = heard.take()
        own = isinstance(error, ProtocolAborted)
        return str(error) if own or reason is None else reason, False
