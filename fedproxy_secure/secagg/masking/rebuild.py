"""Secrets rebuilt from clients' shares; a share that is false is found and left out.

A rebuilt secret is checked against its owner's commitment or public key. If the shares of the first
`threshold` givers do not give the right secret, other subsets are tried: first all that replace one giver,
then two, and so on, at most `MOST_SUBSETS` in total. If there are more than `threshold` shares and one of
them is false, it is always found.

Not guaranteed: that a giver whose share does not fit has lied. The owner may have dealt it a false one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import Combiner
from fedproxy_secure.errors import ProtocolAborted

MOST_SUBSETS = 1000  # tries for one secret; exchanging one giver takes at most 43 x 21, of 64 clients


class Rebuilder:
    """Rebuilds secrets from shares that the same givers hold; `points`: of each giver, in secret sharing.

    `misfits`: by giver, whose secret a share of it did not fit; for a person to read.
    """

    def __init__(self, points: Mapping[str, int], threshold: int) -> None:
        self._points, self._threshold = dict(points), threshold
        self._combiners: dict[tuple[str, ...], Combiner] = {}
        self.misfits: dict[str, str] = {}

    def secret(self, shares: Mapping[str, bytes], fits: Callable[[Secret], bool], *, what: str) -> Secret:
        """Rebuild one secret from its shares.

        Args:
            shares: each giver's share of it, by name.
            fits: whether a secret is the one that its owner committed to.
            what: what it is, for messages.

        Raises `ProtocolAborted` if no subset that is tried gives one that fits.
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
        """Yield sets of `threshold` givers: those first whose shares have fitted so far."""
        givers = sorted(self._points, key=lambda g: (g in self.misfits, g))
        first, spare = givers[: self._threshold], givers[self._threshold :]
        for exchanged in range(min(len(first), len(spare)) + 1):
            for into in combinations(spare, exchanged):
                for out in combinations(first, exchanged):
                    yield (*(g for g in first if g not in out), *into)

    def _combined(self, chosen: tuple[str, ...], shares: Mapping[str, bytes]) -> Secret | None:
        """Return what these givers' shares give; None if they are not even shares of one secret."""
        if chosen not in self._combiners:
            self._combiners[chosen] = Combiner([self._points[g] for g in chosen])
        try:
            return self._combiners[chosen].combine({self._points[g]: Secret(shares[g]) for g in chosen})
        except ProtocolAborted:
            return None

    def _find_misfits(
        self, right: tuple[str, ...], shares: Mapping[str, bytes], fits: Callable[[Secret], bool], what: str
    ) -> None:
        """Try every other giver's share in the place of one that fits."""
        for giver in sorted(set(self._points) - set(right)):
            secret = self._combined((*right[1:], giver), shares)
            if secret is None or not fits(secret):
                self.misfits[giver] = what
