"""Attacks on this installation's masking protocol: each one is tried, and must fail.

A check that cannot fail proves nothing, so every attack on privacy is also tried on a **known-bad mode**, a
client without one of its checks. There the attack must succeed and read a client's vector.

These attacks are on the protocol alone, without a transport. `fedproxy_secure.flower.selftest` attacks the
federation built on it, over Flower messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.ring import read_sum
from fedproxy_secure.secagg.selftest.hostile import (
    CLIENTS,
    LENGTH,
    TARGET,
    AcceptsAnyThreshold,
    SkipsConsistency,
    TakesAnyTag,
    TrustsTheServersKeys,
    impersonate_peers,
    split_view,
    split_view_with_help,
)
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, Tamper, identities, names, ring, terms_for
from fedproxy_secure.secagg.steps import Aggregate
from fedproxy_secure.secagg.terms import TermsPolicy

WITH_CLIENT = "server with a client"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one attempt.

    Attributes:
        adversary: who attacks: nobody, the server, the network, a client, or the server with a client.
        attempt: what the adversary does.
        ok: whether the attack failed or, on a known-bad mode, succeeded, as it must.
        found: what happened.
        limit: whether nothing is meant to stop the attack.
    """

    adversary: str
    attempt: str
    ok: bool
    found: str
    limit: bool = False


def findings() -> Iterator[Finding]:
    """Run all attempts, which takes a second or two, and yield their findings."""
    yield _honest_round()
    for adversary, attempt, attack, bad in _ATTACKS:
        yield _must_fail(adversary, attempt, lambda a=attack: a(ClientSession))  # type: ignore[misc]
        yield _must_succeed(adversary, attempt, bad, lambda a=attack, c=bad: a(c))  # type: ignore[misc]
    yield _must_fail("server", "lowers the threshold", lambda: _lowered_threshold(2, colluders=0))
    yield _must_succeed(
        "server",
        "lowers the threshold",
        AcceptsAnyThreshold,
        lambda: split_view(AcceptsAnyThreshold, apart=True),
    )
    yield _must_fail(WITH_CLIENT, "lowers the threshold by one", lambda: _lowered_threshold(3, colluders=1))
    yield _must_fail(
        WITH_CLIENT,
        "shows two sets of survivors, both signed by it",
        lambda: split_view_with_help(ClientSession),
    )
    yield _must_succeed(
        WITH_CLIENT,
        "shows two sets of survivors, both signed by it",
        AcceptsAnyThreshold,
        lambda: split_view_with_help(AcceptsAnyThreshold, threshold=3),
    )
    yield _must_fail("server", "broadcasts another adapter to one client", _other_broadcast)
    for adversary, attempt, step, change in _TAMPERINGS:
        yield _tampering(adversary, attempt, step, change)
    for attempt, change in (("alters a vector", _flip_high), ("adds to a vector", _shift)):
        yield _altered_unnoticed(attempt, change)


def _honest_round() -> Finding:
    cohort, updates = _cohort(ClientSession), _updates()
    aggregate = cohort.run(updates)
    plan = cohort.terms.plan
    error = float(np.abs(aggregate.sums["update"] - sum(u.astype(float) for u in updates.values())).max())
    return Finding(
        adversary="nobody",
        attempt="an honest round",
        ok=error <= CLIENTS * (plan.step_of(plan.segment("update")) + 2**-24),  # the sum is float32
        found=f"sum of {len(aggregate.clients)} clients, off by {error:.1e}",
    )


def _must_fail(adversary: str, attempt: str, attack: Callable[[], str]) -> Finding:
    try:
        outcome, ok = attack(), False
    except RoundAborted as error:
        outcome, ok = f"stopped: {error}", True
    return Finding(adversary=adversary, attempt=attempt, ok=ok, found=outcome)


def _must_succeed(
    adversary: str, attempt: str, bad: type[ClientSession], attack: Callable[[], str]
) -> Finding:
    name = f"{attempt}, known-bad client {bad.__name__}"
    try:
        return Finding(adversary=adversary, attempt=name, ok=True, found=f"succeeds: {attack()}")
    except RoundAborted as error:
        return Finding(adversary=adversary, attempt=name, ok=False, found=f"stopped: {error}")


def _cohort(session: type[ClientSession], tamper: Tamper | None = None) -> Cohort:
    keys, roster = identities(CLIENTS)
    terms = terms_for(ring(CLIENTS, LENGTH), roster)
    return Cohort(terms=terms, keys=keys, roster=roster, session=session, tamper=tamper or _untouched)


def _untouched(step: str, client: str, message: Any) -> Any:
    return message


def _updates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.uniform(-1, 1, LENGTH).astype(np.float32) for n in names(CLIENTS)}


def _lowered_threshold(threshold: int, *, colluders: int) -> str:
    _, roster = identities(CLIENTS)
    plan = ring(CLIENTS, LENGTH)
    terms = terms_for(plan, roster, threshold=threshold)
    policy = TermsPolicy(
        roster=roster, settings_sha256=terms.settings_sha256, colluders=colluders, rounds=1
    )
    policy.check(terms, name=TARGET, broadcast_sha256=terms.broadcast_sha256, plan=plan)
    return f"the client accepts threshold {threshold} of 5"


def _other_broadcast() -> str:
    _, roster = identities(CLIENTS)
    plan = ring(CLIENTS, LENGTH)
    terms = terms_for(plan, roster)
    policy = TermsPolicy(roster=roster, settings_sha256=terms.settings_sha256, colluders=0, rounds=1)
    policy.check(terms, name=TARGET, broadcast_sha256=bytes(32), plan=plan)
    return "the client trains from an adapter that the others do not have"


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _flip_high(data: bytes) -> bytes:
    """Flip a bit of the third byte; a change of the lowest bits would not show in a sum in float32."""
    return data[:2] + _flip(data[2:])


def _shift(data: bytes) -> bytes:
    """Add an eighth of the clip to every coordinate of the update."""
    words = np.frombuffer(data, dtype="<u4").copy()
    words[:LENGTH] += np.uint32(2**28 // CLIENTS)
    return words.tobytes()


def _change(column: str, how: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda message: replace(message, **{column: how(getattr(message, column))})


# (adversary, attempt, the attack, the client without the check that stops it)
_ATTACKS: tuple[tuple[str, str, Callable[[type[ClientSession]], str], type[ClientSession]], ...] = (
    ("server", "plays all of a client's peers", impersonate_peers, TrustsTheServersKeys),
    ("network", "plays all of a client's peers", impersonate_peers, TrustsTheServersKeys),
    ("server", "shows two sets of survivors", split_view, SkipsConsistency),
)
# (adversary, attempt, which message of the target, how it is changed); the target then counts as dropped
_TAMPERINGS: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("network", "alters a key", "advertise to server", _change("mask_key", _flip)),
    ("network", "alters a vector", "mask to server", _change("masked", _flip)),
    ("network", "adds to a vector", "mask to server", _change("masked", _shift)),
    ("network", "truncates a vector", "mask to server", _change("masked", lambda v: v[:-4])),
    ("network", "repeats a vector", "mask to server", lambda message: [message, message]),
    ("network", "alters a signature", "confirm to server", _change("signature", _flip)),
    ("network", "alters a share", "unmask to server", _change("self_shares", lambda v: v[::-1])),
    ("client", "leaves out a share", "share to server", _change("sealed", lambda v: v[1:])),
    ("server", "alters sealed shares", "mask to client", _change("sealed", lambda v: v[::-1])),
    ("server", "hides a survivor from itself", "confirm to client", _change("clients", lambda v: v[1:])),
)


def _at(step: str, change: Callable[[Any], Any]) -> Tamper:
    """Return a tamper function that changes the target's message of one step."""
    return lambda at, who, message: change(message) if (at, who) == (step, TARGET) else message


def _tampering(adversary: str, attempt: str, step: str, change: Callable[[Any], Any]) -> Finding:
    cohort = _cohort(ClientSession, _at(step, change))
    aggregate = cohort.run(_updates())
    noticed = [*cohort.server_errors.values(), *cohort.client_errors.values()]
    exact = _is_exact(cohort, aggregate)
    return Finding(
        adversary=adversary,
        attempt=attempt,
        ok=bool(noticed) and exact,
        found=f"{noticed[0] if noticed else 'not noticed'}; sum of {len(aggregate.clients)} exact"
        if exact
        else "the sum is wrong",
    )


def _altered_unnoticed(attempt: str, change: Callable[[bytes], bytes]) -> Finding:
    """Check that a vector altered in transit changes the sum of a server that accepts any tag."""
    cohort = _cohort(ClientSession, _at("mask to server", _change("masked", change)))
    cohort.server = TakesAnyTag
    aggregate = cohort.run(_updates())
    wrong = not _is_exact(cohort, aggregate)
    return Finding(
        adversary="network",
        attempt=f"{attempt}, known-bad server {TakesAnyTag.__name__}",
        ok=wrong,
        found="succeeds: the sum is wrong, unnoticed" if wrong else "the sum is exact",
    )


def _is_exact(cohort: Cohort, aggregate: Aggregate) -> bool:
    plan = cohort.terms.plan
    expected = read_sum(plan, cohort.plain_sum(aggregate.clients).astype(plan.word_type))
    return bool(np.array_equal(aggregate.sums["update"], expected["update"]))
