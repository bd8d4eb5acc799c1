"""Does this installation withstand the attacks it should? Each one is tried, and must fail.

A check that cannot fail proves nothing, so every attack on privacy is also tried on a **known-bad mode**: a
client with one of its checks taken out. There the attack must succeed and read a client's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg import primitives as crypto
from fedproxy_secure.secagg.client import ClientSession, commitment, mask_key, pairwise_key
from fedproxy_secure.secagg.masks import add_masks
from fedproxy_secure.secagg.messages import (
    Advertise,
    Confirmations,
    Inbox,
    KeyBook,
    Shares,
    Survivors,
    Unmask,
)
from fedproxy_secure.secagg.rehearsal import Cohort, Tamper, identities, names, ring, terms_for
from fedproxy_secure.secagg.ring import read_sum
from fedproxy_secure.secagg.secret import Secret
from fedproxy_secure.secagg.shamir import SHARE_BYTES, Combiner, split
from fedproxy_secure.secagg.terms import Policy, Terms

CLIENTS, LENGTH = 5, 64
TARGET = "c00"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attempt: `ok` if it went as it must, and what happened."""

    adversary: str
    attempt: str
    ok: bool
    found: str


class TrustsTheServersKeys(ClientSession):
    """Known-bad: takes any key under any name, as Flower's SecAgg+ does."""

    def _check_signature(self, client: str, message: bytes, signature: bytes, what: str) -> None:
        pass


class SkipsConsistency(ClientSession):
    """Known-bad: does not ask whether the others saw the same survivors."""

    def _check_signature(self, client: str, message: bytes, signature: bytes, what: str) -> None:
        if not what.startswith("confirmation"):
            super()._check_signature(client, message, signature, what)


class AcceptsAnyThreshold(ClientSession):
    """Known-bad: its policy is not asked, so that it joins a round in which two of five are enough."""


def findings() -> Iterator[Finding]:
    """Run everything; a second or two."""
    yield _honest_round()
    for good, bad, attempt, attack in (
        (ClientSession, TrustsTheServersKeys, "plays all of a client's peers", _impersonate_peers),
        (ClientSession, SkipsConsistency, "shows two sets of survivors", _split_view),
    ):
        yield _must_fail("server", attempt, lambda a=attack, c=good: a(c))  # type: ignore[misc]
        yield _must_succeed(attempt, bad, lambda a=attack, c=bad: a(c))  # type: ignore[misc]
    yield _must_fail("server", "lowers the threshold", _lowered_threshold)
    yield _must_succeed(
        "lowers the threshold", AcceptsAnyThreshold, lambda: _split_view(AcceptsAnyThreshold, apart=True)
    )
    yield _must_fail("server", "broadcasts another adapter to one client", _other_broadcast)
    for adversary, attempt, step, change in _TAMPERINGS:
        yield _tampering(adversary, attempt, step, change)


def _honest_round() -> Finding:
    cohort, updates = _cohort(ClientSession), _updates()
    made = cohort.run(updates)
    plan = cohort.terms.plan
    error = float(np.abs(made.sums["update"] - sum(u.astype(float) for u in updates.values())).max())
    return Finding(
        adversary="nobody",
        attempt="an honest round",
        ok=error <= CLIENTS * (plan.step_of(plan.segments[0]) + 2**-24),  # the sum is float32
        found=f"sum of {len(made.clients)} clients, off by {error:.1e}",
    )


def _must_fail(adversary: str, attempt: str, attack: Callable[[], str]) -> Finding:
    try:
        found, ok = attack(), False
    except ProtocolAborted as error:
        found, ok = f"stopped: {error}", True
    return Finding(adversary=adversary, attempt=attempt, ok=ok, found=found)


def _must_succeed(attempt: str, bad: type[ClientSession], attack: Callable[[], str]) -> Finding:
    name = f"{attempt}, known-bad client {bad.__name__}"
    try:
        return Finding(adversary="server", attempt=name, ok=True, found=f"succeeds: {attack()}")
    except ProtocolAborted as error:
        return Finding(adversary="server", attempt=name, ok=False, found=f"stopped: {error}")


def _cohort(session: type[ClientSession], tamper: Tamper | None = None) -> Cohort:
    keys, roster = identities(CLIENTS)
    terms = terms_for(ring(CLIENTS, LENGTH), roster)
    return Cohort(terms=terms, keys=keys, roster=roster, session=session, tamper=tamper or _untouched)


def _untouched(step: str, client: str, message: Any) -> Any:
    return message


def _updates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: rng.uniform(-1, 1, LENGTH).astype(np.float32) for n in names(CLIENTS)}


def _impersonate_peers(kind: type[ClientSession]) -> str:
    """The server invents keys for every peer of the target, so that it knows all the target's masks."""
    keys, roster = identities(CLIENTS)
    terms = terms_for(ring(CLIENTS, LENGTH), roster)
    context = terms.context()
    target = kind(name=TARGET, identity=keys[TARGET], terms=terms, roster=roster)
    own = target.advertise()
    private = {n: (crypto.fresh_secret(), crypto.fresh_secret()) for n in names(CLIENTS) if n != TARGET}
    rows = [own]
    for peer, (share_private, mask_private) in private.items():
        unsigned = Advertise(
            client=peer,
            share_key=crypto.agreement_public(share_private),
            mask_key=crypto.agreement_public(mask_private),
            commitment=bytes(32),
            signature=b"",
        )
        forged = crypto.sign(crypto.fresh_secret(), unsigned.signed(context))
        rows.append(replace(unsigned, signature=forged))
    dealt = target.share(_book(rows))
    words = np.arange(terms.plan.words, dtype=terms.plan.word_type)
    masked = target.mask(_forged_inbox(terms, own, private), words.copy())
    # the shares that the target dealt were sealed for keys the server made
    shares = {}
    for peer, sealed in zip(dealt.receivers, dealt.sealed, strict=True):
        route = crypto.digest(b"shares", context, TARGET.encode(), peer.encode())
        key = crypto.agree(private[peer][0], own.share_key, info=route, what="forged key")
        pair = crypto.unseal(key, sealed, associated=route, what="forged key")
        shares[terms.point_of(peer)] = Secret(pair[:SHARE_BYTES])
    points = sorted(shares)[: terms.threshold]
    self_mask = Combiner(points).combine(shares)
    assert commitment(self_mask, context, TARGET) == own.commitment
    plus: list[Secret] = []
    minus = [mask_key(self_mask, context)]
    for peer, (_, mask_private) in private.items():
        pair_key = pairwise_key(mask_private, own.mask_key, context, peer, TARGET)
        (minus if peer > TARGET else plus).append(pair_key)
    return _read(terms, masked.masked, plus, minus, words)


def _forged_inbox(terms: Terms, own: Advertise, private: dict[str, tuple[Secret, Secret]]) -> Inbox:
    context, senders, letters = terms.context(), [TARGET], [b""]
    for peer, (share_private, _) in private.items():
        route = crypto.digest(b"shares", context, peer.encode(), TARGET.encode())
        key = crypto.agree(share_private, own.share_key, info=route, what="forged key")
        fake = split(crypto.fresh_secret(), [1, 2], [Secret(bytes(64))])[1].reveal()
        senders.append(peer)
        letters.append(crypto.seal(key, fake + fake, associated=route))
    return Inbox(senders=senders, sealed=letters)


def _split_view(kind: type[ClientSession], *, apart: bool = False) -> str:
    """The target survives for some, dropped for others: the server asks for both shares of its secrets.

    `apart`: each camp sees its own signatures alone, which is enough where the threshold is.
    """
    keys, roster = identities(CLIENTS)
    # a threshold at which each camp is large enough; the policy would refuse it, the consistency step too
    terms = terms_for(ring(CLIENTS, LENGTH), roster, threshold=2)
    context = terms.context()
    sessions = {n: kind(name=n, identity=keys[n], terms=terms, roster=roster) for n in names(CLIENTS)}
    rows = {n: s.advertise() for n, s in sessions.items()}
    book = _book(list(rows.values()))
    dealt = {n: s.share(book) for n, s in sessions.items()}
    plain = np.arange(terms.plan.words, dtype=terms.plan.word_type)
    masked = {n: s.mask(_inbox_of(dealt, n), plain.copy()) for n, s in sessions.items()}
    camps = {n: n in ("c01", "c02") for n in names(CLIENTS)}  # True: the target is alive
    sets = {True: list(names(CLIENTS)), False: list(names(CLIENTS))[1:]}
    signatures = {
        n: s.confirm(Survivors(clients=sets[camps[n]])).signature
        for n, s in sessions.items()
        if n != TARGET
    }
    answers: dict[str, Unmask] = {}
    for n in signatures:
        # signatures of both camps, so that every client sees enough of them, or of its own
        shown = [m for m in signatures if camps[m] == camps[n]] if apart else ["c01", "c03"]
        some = [m for m in sets[camps[n]] if m in shown]
        answers[n] = sessions[n].unmask(
            Confirmations(clients=some, signatures=[signatures[m] for m in some])
        )

    def shares(alive: bool) -> dict[int, Secret]:
        found = {}
        for n, a in answers.items():
            if camps[n] == alive:
                row = a.self_shares[a.survivors.index(TARGET)] if alive else a.key_shares[0]
                found[terms.point_of(n)] = Secret(row)
        return found

    self_mask = Combiner(sorted(shares(True))).combine(shares(True))
    private = Combiner(sorted(shares(False))).combine(shares(False))
    plus: list[Secret] = []
    minus = [mask_key(self_mask, context)]
    for peer in names(CLIENTS)[1:]:
        key = pairwise_key(private, rows[peer].mask_key, context, TARGET, peer)
        (minus if peer > TARGET else plus).append(key)
    return _read(terms, masked[TARGET].masked, plus, minus, plain)


def _book(rows: list[Advertise]) -> KeyBook:
    return KeyBook(
        clients=[r.client for r in rows],
        share_keys=[r.share_key for r in rows],
        mask_keys=[r.mask_key for r in rows],
        commitments=[r.commitment for r in rows],
        signatures=[r.signature for r in rows],
    )


def _inbox_of(dealt: dict[str, Shares], receiver: str) -> Inbox:
    letters = [b"" if n == receiver else s.sealed[s.receivers.index(receiver)] for n, s in dealt.items()]
    return Inbox(senders=list(dealt), sealed=letters)


def _read(terms: Terms, masked: bytes, plus: list[Secret], minus: list[Secret], plain: np.ndarray) -> str:
    words = np.frombuffer(masked, dtype=terms.plan.word_type).copy()
    add_masks(words, plus=plus, minus=minus)
    if not np.array_equal(words, plain):
        raise ProtocolAborted("the vector stayed masked")
    return f"the server read all {len(words)} words of {TARGET}"


def _lowered_threshold() -> str:
    _, roster = identities(CLIENTS)
    plan = ring(CLIENTS, LENGTH)
    terms = terms_for(plan, roster, threshold=2)
    policy = Policy(roster=roster, settings_sha256=terms.settings_sha256, colluders=0)
    policy.check(terms, name=TARGET, broadcast_sha256=terms.broadcast_sha256, plan=plan)
    return "the client accepts threshold 2 of 5"


def _other_broadcast() -> str:
    _, roster = identities(CLIENTS)
    plan = ring(CLIENTS, LENGTH)
    terms = terms_for(plan, roster)
    policy = Policy(roster=roster, settings_sha256=terms.settings_sha256, colluders=0)
    policy.check(terms, name=TARGET, broadcast_sha256=bytes(32), plan=plan)
    return "the client trains from an adapter that the others do not have"


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _change(column: str, how: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda message: replace(message, **{column: how(getattr(message, column))})


# (who, what, at which message, how it is changed): the client whose message it is counts as dropped
_TAMPERINGS: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("network", "alters a key", "advertise to server", _change("mask_key", _flip)),
    ("network", "alters a vector", "mask to server", _change("masked", _flip)),
    ("network", "truncates a vector", "mask to server", _change("masked", lambda v: v[:-4])),
    ("network", "repeats a vector", "mask to server", lambda message: [message, message]),
    ("network", "alters a signature", "confirm to server", _change("signature", _flip)),
    ("network", "alters a share", "unmask to server", _change("self_shares", lambda v: v[::-1])),
    ("client", "leaves out a share", "share to server", _change("sealed", lambda v: v[1:])),
    ("server", "alters sealed shares", "mask to client", _change("sealed", lambda v: v[::-1])),
    ("server", "hides a survivor from itself", "confirm to client", _change("clients", lambda v: v[1:])),
)


def _tampering(adversary: str, attempt: str, step: str, change: Callable[[Any], Any]) -> Finding:
    def tamper(at: str, who: str, message: Any) -> Any:
        return change(message) if (at, who) == (step, TARGET) else message

    cohort = _cohort(ClientSession, tamper)
    made = cohort.run(_updates())
    noticed = [*cohort.server_errors.values(), *cohort.client_errors.values()]
    plan = cohort.terms.plan
    expected = read_sum(plan, cohort.plain_sum(made.clients).astype(plan.word_type))
    exact = np.array_equal(made.sums["update"], expected["update"])
    return Finding(
        adversary=adversary,
        attempt=attempt,
        ok=bool(noticed) and exact,
        found=f"{noticed[0] if noticed else 'not noticed'}; sum of {len(made.clients)} exact"
        if exact
        else "the sum is wrong",
    )
