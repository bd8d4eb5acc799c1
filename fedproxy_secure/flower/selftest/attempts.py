"""What an attempt is: an attack on parties as installed, beside parties with one check taken out.

On installed ones it must be stopped, on known-bad ones it must succeed: a check that cannot fail proves
nothing. A `Limit` is an attack that nothing here stops. It is played like the others and printed as "not
stopped", never as ok; if it does not go through, what is said about it is wrong, and that is a failure too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fedproxy_secure.errors import FedProxyError, ProtocolAborted
from fedproxy_secure.flower.selftest.stage import Heard, World
from fedproxy_secure.secagg.selftest import Finding

# what the attack read or did; raises `FedProxyError` if it was stopped
Attack = Callable[[World], str]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attack. `known_bad` names the party that lacks a check while `without()` lasts."""

    adversary: str
    name: str
    attack: Attack
    known_bad: str
    without: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An attack that is not stopped, and `why` it cannot be, or what bounds it."""

    adversary: str
    name: str
    attack: Attack
    why: str


def tried(one: Attempt | Limit, world: World, heard: Heard) -> Iterator[Finding]:
    """One finding for a limit, two for an attempt: installed, then known-bad."""
    if isinstance(one, Limit):
        found, succeeded = _played(one.attack, world, heard)
        text = f"not stopped: {found}; {one.why}" if succeeded else f"is stopped, other than said: {found}"
        yield Finding(adversary=one.adversary, attempt=one.name, ok=succeeded, found=text, limit=True)
        return
    found, succeeded = _played(one.attack, world, heard)
    stopped = found if succeeded else f"stopped: {found}"
    yield Finding(adversary=one.adversary, attempt=one.name, ok=not succeeded, found=stopped)
    with one.without():
        found, succeeded = _played(one.attack, world, heard)
    yield Finding(
        adversary=one.adversary,
        attempt=f"{one.name}, known-bad {one.known_bad}",
        ok=succeeded,
        found=f"succeeds: {found}" if succeeded else f"stopped: {found}",
    )


def _played(attack: Attack, world: World, heard: Heard) -> tuple[str, bool]:
    """What came of it, and whether it succeeded. The reason is the first client's own, if one gave one."""
    heard.take()
    try:
        return attack(world), True
    except FedProxyError as error:
        reason = heard.take()
        own = isinstance(error, ProtocolAborted) and "clients; must be >=" not in str(error)
        return str(error) if own or reason is None else reason, False
