"""Secrets rebuilt from clients' shares, around false ones.

A giver is a client that sends its shares of other clients' secrets. A rebuilt secret is checked against
its owner's commitment or public key. If the shares of the first `threshold` givers do not give the right
secret, other subsets are tried: first all that replace one giver, then two, and so on, at most
`MOST_SUBSETS` in total.

Guarantees: a secret of which more than `threshold` shares came, one of them false, is always rebuilt. If
the false share was among those tried first, its giver is recorded in `misfits`.

Not guaranteed: that a share that was not needed is checked. Nor that a giver in `misfits` has lied: the
owner may have dealt it a false share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import Combiner
from fedproxy_secure.errors import ProtocolAborted

MOST_SUBSETS = 1000  # for one secret; with 64 clients, replacing one giver takes at most 43 x 21


class Rebuilder:
    """Rebuilds several secrets, each from one share of every giver.

    Args:
        points: of each giver, in secret sharing.
        threshold: how many shares give a secret.

    Attributes:
        misfits: by giver, the secret that its share did not fit; for a person to read.
    """

    def __init__(self, points: Mapping[str, int], threshold: int) -> None:
        self._points, self._threshold = dict(points), threshold
        self._combiners: dict[tuple[str, ...], Combiner] = {}
        self.misfits: dict[str, str] = {}

    def secret(self, shares: Mapping[str, bytes], fits: Callable[[Secret], bool], *, what: str) -> Secret:
        """Rebuild one secret.

        Args:
            shares: each giver's share of the secret, by the giver's name.
            fits: whether a secret is the one that its owner committed to.
            what: what the secret is, for `misfits` and errors.

        Raises `ProtocolAborted` if no subset that is tried gives a secret that fits.
        """
        for number, chosen in enumerate(islice(self._subsets(), MOST_SUBSETS)):
            secret = self._combined(chosen, shares)
            if secret is not None and fits(secret):
                if number:
                    self._find_misfits(chosen, shares, fits, what)
                return secret
        raise ProtocolAborted(
            f"{what}: the secret rebuilt from the shares of {len(shares)} clients does not match its "
            "commitment; a client gave a false share, or the secret's owner dealt one"
        )

    def _subsets(self) -> Iterator[tuple[str, ...]]:
        """Yield sets of `threshold` givers, first those whose shares have fitted so far."""
        givers = sorted(self._points, key=lambda g: (g in self.misfits, g))
        first, spare = givers[: self._threshold], givers[self._threshold :]
        for count in range(min(len(first), len(spare)) + 1):
            for added in combinations(spare, count):
                for removed in combinations(first, count):
                    yield (*(g for g in first if g not in removed), *added)

    def _combined(self, chosen: tuple[str, ...], shares: Mapping[str, bytes]) -> Secret | None:
        """Return the secret from the shares of `chosen`; None if they cannot be shares of one secret."""
        if chosen not in self._combiners:
            self._combiners[chosen] = Combiner([self._points[g] for g in chosen])
        try:
            return self._combiners[chosen].combine({self._points[g]: Secret(shares[g]) for g in chosen})
        except ProtocolAborted:
            return None

    def _find_misfits(
        self, right: tuple[str, ...], shares: Mapping[str, bytes], fits: Callable[[Secret], bool], what: str
    ) -> None:
        """Try each unused share in place of one that fits, and record its giver if it does not fit."""
        for giver in sorted(set(self._points) - set(right)):
            secret = self._combined((*right[1:], giver), shares)
            if secret is None or not fits(secret):
                self.misfits[giver] = what
