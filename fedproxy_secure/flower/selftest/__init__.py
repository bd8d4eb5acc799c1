"""Attacks on this installation through Flower messages: on its client app, server, journals and policies.

`fedproxy_secure.secagg.selftest` attacks the protocol without a transport; this package attacks what is
built on the protocol. Installed parties must stop each attempt, and against known-bad parties it must
succeed.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedproxy_secure.flower.selftest import agreements, liars, proxies, renewed, spending, sybils
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit, tried
from fedproxy_secure.flower.selftest.stage import listening, small_world
from fedproxy_secure.secagg.selftest.attempts import Finding


def attempts(*adversaries: str) -> Iterator[Attempt | Limit]:
    """Yield all attempts, or those of the named adversaries."""
    for part in (renewed, spending, agreements, proxies, sybils, liars):
        yield from (a for a in part.attempts() if not adversaries or a.adversary in adversaries)


def findings(*adversaries: str) -> Iterator[Finding]:
    """Play all attempts, or those of the named adversaries, and yield findings as they come.

    All of them take about half a minute.
    """
    with small_world() as world, listening() as heard:
        for attempt in attempts(*adversaries):
            yield from tried(attempt, world, heard)
