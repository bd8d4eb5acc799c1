"""Attacks by deviating servers, networks and helping clients on masking sessions, and known-bad sessions.

Each attack returns a line that says what it read of the target's vector, or raises `ProtocolAborted` if it
was stopped. `attempts` runs the attacks against sessions as installed and against the known-bad ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import SHARE_BYTES, Combiner, split
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.keys import commitment, mask_key, pairwise_key
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.messages import (
    Advertise,
    Confirmation,
    Confirmations,
    Inbox,
    KeyBook,
    MaskedInput,
    Shares,
    Survivors,
    Unmask,
)
from fedproxy_secure.secagg.ring import add_packed
from fedproxy_secure.secagg.selftest.rehearsal import identities, names, ring, terms_for
from fedproxy_secure.secagg.terms import Terms, least_threshold

CLIENTS, LENGTH = 5, 64
TARGET, HELPER = "c00", "c04"


class TrustsTheServersKeys(ClientSession):
    """A known-bad client: accepts any key under any name, as Flower's SecAgg+ does."""

    def _check_signature(self, client: str, message: bytes, signature: bytes, what: str) -> None:
        pass


class SkipsConsistency(ClientSession):
    """A known-bad client: does not check whether the other clients saw the same survivors."""

    def _check_confirmation(self, client: str, message: bytes, signature: bytes) -> None:
        pass


class AcceptsAnyThreshold(ClientSession):
    """A known-bad client: skips its policy, and so joins a round with a threshold of two of five."""


class TakesAnyTag(ServerSession):
    """A known-bad server: adds up vectors without checking their tags."""

    def masked(self, message: MaskedInput) -> None:
        """Add a masked vector to the total; its tag is not checked."""
        self._expect("mask", message.client, self._shares, self._survivors)
        add_packed(self.terms.plan, self._total, message.masked)
        self._survivors.append(message.client)


def impersonate_peers(kind: type[ClientSession]) -> str:
    """Replace the keys of all of the target's peers: whoever made the keys can compute all its masks."""
    keys, roster = identities(CLIENTS)
    terms = terms_for(ring(CLIENTS, LENGTH), roster)
    context = terms.context()
    target = kind(name=TARGET, identity=keys[TARGET], terms=terms, roster=roster)
    target_keys = target.advertise()
    private = {n: (crypto.fresh_secret(), crypto.fresh_secret()) for n in names(CLIENTS) if n != TARGET}
    rows = [target_keys]
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
    masked = target.mask(_forged_inbox(terms, target_keys, private), words.copy())
    # the target sealed its shares for keys that the attacker made
    shares = {}
    for peer, sealed in zip(dealt.receivers, dealt.sealed, strict=True):
        route = crypto.digest(b"shares", context, TARGET.encode(), peer.encode())
        key = crypto.agree(private[peer][0], target_keys.share_key, info=route, what="forged key")
        pair = crypto.unseal(key, sealed, associated=route, what="forged key")
        shares[terms.point_of(peer)] = Secret(pair[:SHARE_BYTES])
    points = sorted(shares)[: terms.threshold]
    self_mask = Combiner(points).combine(shares)
    assert commitment(self_mask, context, TARGET) == target_keys.commitment
    plus: list[Secret] = []
    minus = [mask_key(self_mask, context)]
    for peer, (_, mask_private) in private.items():
        pair_key = pairwise_key(mask_private, target_keys.mask_key, context, peer, TARGET)
        (minus if peer > TARGET else plus).append(pair_key)
    return _read(terms, masked.masked, plus, minus, words)


def split_view(kind: type[ClientSession], *, apart: bool = False) -> str:
    """Tell some clients that the target survived, others that it dropped out, to get both its secrets.

    `apart`: show each camp only its own signatures, which suffices if they reach the threshold. Otherwise
    every client is shown a signature of each camp.
    """
    keys, roster = identities(CLIENTS)
    # at this threshold each camp is large enough; the policy and the consistency step would both refuse it
    terms = terms_for(ring(CLIENTS, LENGTH), roster, threshold=2)
    sessions = {n: kind(name=n, identity=keys[n], terms=terms, roster=roster) for n in names(CLIENTS)}
    rows = {n: s.advertise() for n, s in sessions.items()}
    book = _book(list(rows.values()))
    dealt = {n: s.share(book) for n, s in sessions.items()}
    plain = np.arange(terms.plan.words, dtype=terms.plan.word_type)
    masked = {n: s.mask(_inbox_of(dealt, n), plain.copy()) for n, s in sessions.items()}
    camps = {n: n in ("c01", "c02") for n in names(CLIENTS)}  # True: told that the target is alive
    sets = {True: list(names(CLIENTS)), False: list(names(CLIENTS))[1:]}
    signatures = {
        n: s.confirm(Survivors(clients=sets[camps[n]])).signature
        for n, s in sessions.items()
        if n != TARGET
    }
    answers: dict[str, Unmask] = {}
    for n in signatures:
        # of its own camp, or one of each camp, so that every client sees enough signatures
        chosen = [m for m in signatures if camps[m] == camps[n]] if apart else ["c01", "c03"]
        signers = [m for m in sets[camps[n]] if m in chosen]
        answers[n] = sessions[n].unmask(
            Confirmations(clients=signers, signatures=[signatures[m] for m in signers])
        )

    def shares(alive: bool) -> dict[int, Secret]:
        by_point = {}
        for n, a in answers.items():
            if camps[n] == alive:
                row = a.self_shares[a.survivors.index(TARGET)] if alive else a.key_shares[0]
                by_point[terms.point_of(n)] = Secret(row)
        return by_point

    return _open(terms, masked[TARGET].masked, rows, plain, alive=shares(True), dropped=shares(False))


def split_view_with_help(kind: type[ClientSession], *, threshold: int | None = None) -> str:
    """Split the view with the help of one client, which signs both sets and gives both its shares.

    `threshold`: None: the least that is safe with one helper, for which each camp is too small.
    """
    keys, roster = identities(CLIENTS)
    least = least_threshold(CLIENTS, 1)
    terms = terms_for(ring(CLIENTS, LENGTH), roster, threshold=threshold or least)
    context = terms.context()
    sessions = {n: kind(name=n, identity=keys[n], terms=terms, roster=roster) for n in names(CLIENTS)}
    rows = {n: s.advertise() for n, s in sessions.items()}
    book = _book(list(rows.values()))
    dealt = {n: s.share(book) for n, s in sessions.items()}
    plain = np.arange(terms.plan.words, dtype=terms.plan.word_type)
    masked = {n: s.mask(_inbox_of(dealt, n), plain.copy()) for n, s in sessions.items()}
    helper = sessions[HELPER]
    helper_shares = helper._shares_from(TARGET)
    collected: dict[bool, dict[int, Secret]] = {}
    for alive, camp in ((True, (TARGET, "c01")), (False, ("c02", "c03"))):
        survivors = [n for n in names(CLIENTS) if alive or n != TARGET]
        signatures = {n: sessions[n].confirm(Survivors(clients=survivors)).signature for n in camp}
        message = Confirmation.signed(context, list(names(CLIENTS)), survivors)
        signatures[HELPER] = crypto.sign(keys[HELPER], message)
        signed = Confirmations(clients=list(signatures), signatures=list(signatures.values()))
        collected[alive] = {terms.point_of(HELPER): helper_shares[0 if alive else 1]}
        for n in camp:
            answer = sessions[n].unmask(signed)
            share = answer.self_shares[answer.survivors.index(TARGET)] if alive else answer.key_shares[0]
            collected[alive][terms.point_of(n)] = Secret(share)
    return _open(terms, masked[TARGET].masked, rows, plain, alive=collected[True], dropped=collected[False])


def _forged_inbox(terms: Terms, target_keys: Advertise, private: dict[str, tuple[Secret, Secret]]) -> Inbox:
    context, senders, letters = terms.context(), [TARGET], [b""]
    for peer, (share_private, _) in private.items():
        route = crypto.digest(b"shares", context, peer.encode(), TARGET.encode())
        key = crypto.agree(share_private, target_keys.share_key, info=route, what="forged key")
        fake = split(crypto.fresh_secret(), [1, 2], [Secret(bytes(64))])[1].reveal()
        senders.append(peer)
        letters.append(crypto.seal(key, fake + fake, associated=route))
    return Inbox(senders=senders, sealed=letters)


def _open(
    terms: Terms,
    masked: bytes,
    rows: dict[str, Advertise],
    plain: np.ndarray,
    *,
    alive: dict[int, Secret],
    dropped: dict[int, Secret],
) -> str:
    """Read the target's vector from shares, by point, of its self mask and of its mask key (`dropped`)."""
    context = terms.context()
    self_mask = Combiner(sorted(alive)).combine(alive)
    private = Combiner(sorted(dropped)).combine(dropped)
    plus: list[Secret] = []
    minus = [mask_key(self_mask, context)]
    for peer in names(CLIENTS)[1:]:
        key = pairwise_key(private, rows[peer].mask_key, context, TARGET, peer)
        (minus if peer > TARGET else plus).append(key)
    return _read(terms, masked, plus, minus, plain)


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
    return f"all {len(words)} words of {TARGET} are read"
