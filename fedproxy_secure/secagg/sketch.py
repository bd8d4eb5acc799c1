"""Cosines between clients from sketches of their updates, and the weights of H-TIES (Eq. 5, 6, 10).

A count sketch adds every coordinate, with a random sign, to one of `SKETCH` places. If sketches are scaled
to length 1, the inner product of two of them is the cosine of the two updates, up to an error of about
`1 / sqrt(SKETCH)` = .016. Places and signs are public and follow from the round (`Terms.sketch_seed`): they
are the same for all clients and in all attempts at a round, and others in every round. An update is of one
round, so no two sketches of it exist that could be solved for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.likeness import heterogeneity, relative_weights, retention

SKETCH = 4096
LEAST_WEIGHT = math.exp(-1)  # divided by the largest weight, as with weights `self`
GRID = 2.0**-10  # opened cosines are rounded to multiples of it, far below the sketch's own error
TOLERANCE = 6 / SKETCH**0.5  # how far below 0 the smallest eigenvalue of a Gram matrix may be


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One client's part in H-TIES.

    Attributes:
        weight: (0, 1], divided by the largest weight of a client.
        retention: the share of its update that it keeps.
    """

    weight: float
    retention: float


def count_sketch(update: np.ndarray, seed: bytes) -> np.ndarray:
    """Return the sketch of an update: float64 [SKETCH] of length 1, or zeros for an update of zeros.

    Args:
        update: float [d].
        seed: bytes that all clients of a round share, in all its attempts, and no two rounds.

    Raises `DataError` for NaN or infinity.
    """
    if not np.isfinite(update).all():
        raise DataError("update: holds NaN or infinity; must be finite")
    rng = np.random.default_rng(list(seed))  # public: it matters only that all clients use the same
    places = rng.integers(SKETCH, size=len(update))
    signs = 2.0 * rng.integers(2, size=len(update)) - 1
    sums = np.bincount(places, weights=signs * update, minlength=SKETCH)
    length = float(np.linalg.norm(sums))
    return sums / length if length else sums


def gram_of(clients: int, opened: np.ndarray) -> np.ndarray:
    """Return the clients' cosines, float64 [K, K].

    `opened`: the opened products of pairs (i, j), i < j, row by row.

    Raises `ProtocolAborted` unless they can be the cosines of K vectors. So a server that hands out made-up
    numbers raises a client's weight by no more than some K vectors would.
    """
    cosines = np.eye(clients)
    rows, columns = np.triu_indices(clients, 1)
    if not np.isfinite(opened).all():
        raise ProtocolAborted("products: do not open to numbers")
    if opened.shape != rows.shape:
        raise ProtocolAborted(f"products: {len(opened)}; must be {len(rows)} for {clients} clients")
    cosines[rows, columns] = cosines[columns, rows] = np.round(opened / GRID) * GRID
    if np.linalg.eigvalsh(cosines)[0] < -TOLERANCE:  # true, too, if one cosine is beyond 1 + TOLERANCE
        raise ProtocolAborted("products: are no cosines of vectors")
    return np.clip(cosines, -1, 1)


def standing(cosines: np.ndarray, index: int, *, r0: float, delta: float) -> Standing:
    """Return weight and retention of client `index`, as the fusion in the clear computes them.

    There is one difference: no weight is below `LEAST_WEIGHT` of the largest. Otherwise a server that
    encrypts made-up cosines could leave one client almost alone in the sum.
    """
    kept = retention(heterogeneity(cosines), r0=r0, delta=delta)
    return Standing(
        weight=max(LEAST_WEIGHT, float(relative_weights(cosines)[index])), retention=float(kept[index])
    )
