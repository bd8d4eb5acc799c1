"""Attacks on this installation through Flower messages: its own client app, server, journals and policies.

`fedproxy_secure.secagg.selftest` attacks the protocol without a transport; this attacks what is built on
it. Each attempt must be stopped by parties as installed and must succeed on known-bad ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedproxy_secure.flower.selftest import agreements, liars, proxies, renewed, spending, sybils
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit, tried
from fedproxy_secure.flower.selftest.stage import listening, small_world
from fedproxy_secure.secagg.selftest import Finding


def attempts(*adversaries: str) -> Iterator[Attempt | Limit]:
    """All of them, or those of some adversaries."""
    for part in (renewed, spending, agreements, proxies, sybils, liars):
        yield from (a for a in part.attempts() if not adversaries or a.adversary in adversaries)


def findings(*adversaries: str) -> Iterator[Finding]:
    """Play all attempts, or those of some adversaries; about half a minute for all, as they come."""
    with small_world() as world, listening() as heard:
        for one in attempts(*adversaries):
            yield from tried(one, world, heard)
