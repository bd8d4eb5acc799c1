"""What a server can compute from the answers of real clients, by the project's own reconstruction."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import Combiner
from fedproxy_secure.secagg import messages as protocol
from fedproxy_secure.secagg.masking.keys import mask_key, pairwise_key
from fedproxy_secure.secagg.masking.masks import add_masks
from tests.support.real_clients import RealWorld


def sums(real: RealWorld) -> set[tuple[int, ...]]:
    """Combinations of honest clients' vectors that the server can compute, coefficients by client.

    All combinations of the masked vectors with coefficients -1, 0 and 1 are tried, after every mask
    that can be reconstructed is taken off. Of multiples there is one: the least, its first sign +.
    """
    rows, owners = [], []
    for key, masked in real.heard.items():
        if key[2] == "mask":
            a, me, _, inbox = key
            rows.append(_uncovered(real, a, me, inbox, masked) - real.words[me])
            owners.append(me)
    if not rows:
        return set()
    signs = np.array(list(product((0, 1, -1), repeat=len(rows))), dtype=np.int64)
    left = (signs @ np.array(rows).astype(np.int64)) % 2**32
    clients = np.eye(real.world.honest, dtype=np.int64)[owners]
    found = (signs[~left.any(axis=1)] @ clients).tolist()
    least = (tuple(v // math.gcd(*row) for v in row) for row in found if any(row))
    return {row for row in least if next(v for v in row if v) > 0}


def _uncovered(real: RealWorld, a: int, me: int, inbox: int, masked: np.ndarray) -> np.ndarray:
    """A masked vector, without the masks that the server can reconstruct."""
    context, words = real.terms[a].context(), masked.copy()
    plus: list[Secret] = []
    minus: list[Secret] = []
    self_mask = _reconstructed(real, a, me, of_self=True)
    if self_mask is not None:
        minus.append(mask_key(self_mask, context))
    for peer in real.listed(inbox & ~(1 << me)):
        for one, other in ((me, peer), (peer, me)):
            private = _reconstructed(real, a, one, of_self=False)
            if private is not None:
                public = real.heard[a, other, "advertise"].mask_key
                key = pairwise_key(private, public, context, real.names[one], real.names[other])
                (minus if real.names[me] < real.names[peer] else plus).append(key)
                break
    add_masks(words, plus=plus, minus=minus)
    return words


def _reconstructed(real: RealWorld, a: int, owner: int, *, of_self: bool) -> Secret | None:
    """A client's self mask or mask key, from the shares that the server has of it."""
    if (a, owner) in real.traitors:
        return None if of_self else real.traitors[a, owner]._secret("mask key")
    terms, shares = real.terms[a], {}
    for i in range(real.world.clients):
        if (a, i) in real.traitors:
            share = _share_of_traitor(real, a, i, owner)
            if share is not None:
                shares[terms.point_of(real.names[i])] = share[not of_self]
            continue
        given = real.heard.get((a, i, "unmask"))
        if given is None:
            continue
        names, values = (
            (given.survivors, given.self_shares) if of_self else (given.dropped, given.key_shares)
        )
        if real.names[owner] in names:
            shares[terms.point_of(real.names[i])] = Secret(values[names.index(real.names[owner])])
    if len(shares) < terms.threshold:
        return None
    chosen = dict(sorted(shares.items())[: terms.threshold])
    return Combiner(sorted(chosen)).combine(chosen)


def _share_of_traitor(real: RealWorld, a: int, i: int, owner: int) -> tuple[Secret, Secret] | None:
    dealt = real.heard.get((a, owner, "share"))
    if dealt is None or not dealt[0] >> i & 1:
        return None
    session = real.traitor(a, i)
    session.share(real.book(a, real.listed(dealt[0])))
    sealed = dealt[1].sealed[dealt[1].receivers.index(real.names[i])]
    session._inbox = protocol.Inbox(senders=[real.names[owner]], sealed=[sealed])
    return session._opened(real.names[owner])
