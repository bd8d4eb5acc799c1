"""The arithmetic of fusion, from K unlike clients' updates to one: NumPy, float32 [K, d] in, [d] out.

Symbols follow the paper: `tau` [K, d] the updates, `h` heterogeneity (Eq. 5), `w` weights (Eq. 6),
`C` conflict (Eq. 7), `r` retention (Eq. 10), `rho` the election ratio (Eq. 11-14). What follows
from cosines alone (Eq. 5, 6, 10) is in `fedproxy_secure.secagg.likeness`, which secure sums use as well.

Guarantees no privacy: every function here reads every client's update in the clear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedproxy_secure.secagg.likeness import heterogeneity, relative_weights, retention

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The server's analysis of one round's updates, before it merges them.

    `cosines` [K, K]; `heterogeneity` h [K], larger for a client unlike the others; `weights` w [K],
    summing to 1; `conflict` C [d] in [0, 1], 1 where as many clients go up as down.
    """

    cosines: Array
    heterogeneity: Array
    weights: Array
    conflict: Array


def analyse(tau: Array) -> Analysis:
    """Return cosines, heterogeneity, weights and conflict of one round (Eq. 5-7)."""
    cosines = pairwise_cosines(tau)
    weights = relative_weights(cosines)
    conflict = 1 - np.abs(np.sign(tau).sum(axis=0)) / len(tau)
    return Analysis(
        cosines=cosines,
        heterogeneity=heterogeneity(cosines),
        weights=weights / weights.sum(),
        conflict=conflict.astype(np.float32),
    )


def pairwise_cosines(tau: Array) -> Array:
    """Return the cosines of all pairs of updates, float64 [K, K]; 0 between a zero update and others."""
    wide = tau.astype(np.float64)
    gram = wide @ wide.T
    norms = np.sqrt(np.diag(gram))
    scale = np.outer(norms, norms)
    cosines = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    np.fill_diagonal(cosines, 1.0)
    clipped: Array = np.clip(cosines, -1.0, 1.0)
    return clipped


def keep_largest(update: Array, share: float) -> Array:
    """Return `update` [d] with all but its `ceil(share * d)` largest magnitudes set to zero."""
    keep = min(len(update), int(np.ceil(share * len(update) - 1e-9)))
    if keep == len(update):
        return update.copy()
    kept = np.argpartition(np.abs(update), len(update) - keep)[len(update) - keep :]
    sparse = np.zeros_like(update)
    sparse[kept] = update[kept]
    return sparse


def elect(tau: Array, weights: Array, *, rho: float) -> Array:
    """Return, per coordinate, the weighted mean of the side that outweighs the other by `rho` (Eq. 12-14).

    `P` and `N` are the weighted sums of positive and of negative magnitudes. The value is `P / sum of w
    over the clients on that side`, `-N / ...` on the other, or 0 where neither side wins.
    """
    w = weights[:, None].astype(np.float32)
    positive, negative = tau > 0, tau < 0
    p = (w * np.where(positive, tau, 0)).sum(axis=0)
    n = (w * np.where(negative, -tau, 0)).sum(axis=0)
    w_positive = (w * positive).sum(axis=0)
    w_negative = (w * negative).sum(axis=0)
    up = (p >= rho * n) & (p > 0)
    down = ~up & (n >= rho * p) & (n > 0)
    value = np.zeros(tau.shape[1], dtype=np.float32)
    np.divide(p, w_positive, out=value, where=up)
    np.divide(-n, w_negative, out=value, where=down)
    return value


def fedavg(tau: Array) -> Array:
    """Return the mean of the updates, each client alike.

    Weights do not follow numbers of records: all clients take as many steps, so a small client's update
    stands for as much work. Under masking no server needs the numbers then, and the rule stays the same.
    """
    mean: Array = tau.mean(axis=0, dtype=np.float32)
    return mean


def ties(tau: Array, *, keep_ratio: float) -> Array:
    """Merge by TIES (Yadav et al. 2023): trim, elect the sign of the larger mass, mean of that side."""
    trimmed = np.stack([keep_largest(t, keep_ratio) for t in tau])
    return elect(trimmed, np.full(len(tau), 1 / len(tau)), rho=1.0)


def h_ties(tau: Array, analysis: Analysis, *, rho: float, r0: float, delta: float) -> Array:
    """Merge by H-TIES (Eq. 10-14): trim by heterogeneity, weight by similarity, elect with margin `rho`."""
    shares = retention(analysis.heterogeneity, r0=r0, delta=delta)
    trimmed = np.stack([keep_largest(t, share) for t, share in zip(tau, shares, strict=True)])
    return elect(trimmed, analysis.weights, rho=rho)
