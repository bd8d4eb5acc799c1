"""A9: audit the client-level epsilon of noisy sums with canary clients, each included by a coin.

A canary client sends a vector at the clip norm: random signs on a block of coordinates of its own. Blocks
do not overlap, so canaries do not disturb each other, and no client's vector moves a sum further. The
adversary holds the sums of all rounds and orders canaries by how far their blocks moved along their signs.

Guarantees: a **bound**, not an estimate. A fair coin decides for each canary client whether its vector is
in the sums of all rounds or zero is in its place. That is the relation of client-level privacy, so that
`one_run` applies with clients as canaries, and verdict and bound are those of `curve_audit` for the family
"sums with this noise, of any variance". The family's profiles follow from the same Renyi bounds that the
accountant uses. They are not tight, so part of the gap between bound and claim is theirs. The sums are
drawn here, with the run's own noise (`discrete.draw`) of as few clients as the claim counts on.

The audit detects noise whose variance is too small for the number of clients and rounds. It does not cover
the rest of the path from client to server, which the protocol's tests cover: canaries are already at the
clip norm, and pass through neither `clip_to_norm`, rounding, `add_noise` nor masking.

Canary clients are due to Andrew et al. 2023 (arXiv 2302.03098), who estimate epsilon from the canaries'
cosines with the final model, assumed to be normal. The inference used here is a different one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from attacks.audit.curve_audit import CurveAudit, Family, audit, found_share, planned
from attacks.audit.dp_audit import ALPHA
from attacks.audit.one_run import Guesses
from fedproxy_secure.dp import discrete
from fedproxy_secure.dp.events import DiscreteSum
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.profile import PrivacyProfile, discrete_sum
from fedproxy_secure.errors import DataError

KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class CanaryClients:
    """Canary clients: signs, int8 [m, b], on blocks of b coordinates, each number `height` steps."""

    signs: np.ndarray
    height: int

    @classmethod
    def drawn(cls, count: int, *, norm: int, dimension: int, rng: np.random.Generator) -> CanaryClients:
        """Return canaries of length `norm` in steps of the ring, rounded as clients round.

        Raises `DataError` unless 2 <= count <= dimension and norm >= 1.
        """
        if not 2 <= count <= dimension or norm < 1:
            raise DataError(f"count={count}: must be in [2, {dimension}], the dimension, with norm >= 1")
        width = dimension // count
        signs = (2 * rng.integers(0, 2, (count, width)) - 1).astype(np.int8)
        return cls(signs=signs, height=round(norm / math.sqrt(width)))

    def sum(self, included: np.ndarray) -> np.ndarray:
        """Return the sum of the canaries that are in, int64 [m b]."""
        return np.asarray((self.signs.astype(np.int64) * self.height * included[:, None]).reshape(-1))

    def scores(self, movement: np.ndarray) -> np.ndarray:
        """Return how far each block of `movement`, [m b], moved along the signs, float64 [m]."""
        return np.asarray((movement.reshape(self.signs.shape) * self.signs).sum(axis=1), dtype=np.float64)


def audit_sums(
    claim: DiscreteSum,
    *,
    norm: int,
    claimed_epsilon: float,
    delta: float,
    canaries: int,
    rng: np.random.Generator,
    noise_share: float = 1.0,
) -> CurveAudit:
    """Draw the sums of all rounds with canaries in or out by coins, and bound epsilon from below.

    Args:
        claim: all rounds.
        norm: a client's clip norm in steps of the ring.
        noise_share: deviation of the drawn noise, as a share of the claimed one.
    """
    present = CanaryClients.drawn(canaries, norm=norm, dimension=claim.dimension, rng=rng)
    coins = rng.random(canaries) < 0.5
    movement = claim.rounds * present.sum(coins)
    client_variance = claim.variance / claim.summands * noise_share**2
    for _ in range(claim.rounds * claim.summands):
        movement += discrete.draw(
            claim.mechanism, client_variance, Noise(rng.bytes(KEY_BYTES)), len(movement)
        )
    family = sums_family(claim, norm=norm, delta=delta, canaries=canaries)
    guesses, fails_at = _planned(claim, norm, claimed_epsilon, delta, canaries)
    return audit(
        family,
        present.scores(movement),
        coins,
        guesses=guesses,
        claimed_epsilon=claimed_epsilon,
        alpha=ALPHA,
        fails_at=fails_at,
    )


@lru_cache(maxsize=64)
def _planned(
    claim: DiscreteSum, norm: int, claimed_epsilon: float, delta: float, canaries: int
) -> tuple[Guesses, float]:
    family = sums_family(claim, norm=norm, delta=delta, canaries=canaries)
    guesses = planned(family, claimed_epsilon=claimed_epsilon, alpha=ALPHA)
    return guesses, found_share(family, guesses, claimed_epsilon=claimed_epsilon, alpha=ALPHA)


def sums_family(claim: DiscreteSum, *, norm: int, delta: float, canaries: int) -> Family:
    """Return the claim's sums with any variance; imitated runs take the noise as normal."""
    shift = norm * math.sqrt(claim.rounds / claim.variance)

    def profile(part: float, _both: bool) -> PrivacyProfile:
        return discrete_sum(replace(claim, variance=claim.variance * part**2))

    def scores(part: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        coins = rng.random(canaries) < 0.5
        return coins * shift + rng.standard_normal(canaries) * part, coins

    return Family(profile=profile, delta=delta, canaries=canaries, scores=scores)
