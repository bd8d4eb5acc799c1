"""Heterogeneity, weights and retention of clients, from the cosines between them (Eq. 5, 6 and 10).

Needs NumPy only. The fusion in the clear computes them from exact cosines, clients of a secure sum from the
cosines of their sketches.
"""

from __future__ import annotations

import numpy as np


def heterogeneity(cosines: np.ndarray) -> np.ndarray:
    """Return how much each client differs from the others (Eq. 5), float64 [K] in [0, 1].

    `cosines`: [K, K], between the clients' updates.
    """
    similar = np.where(_off_diagonal(cosines), np.maximum(cosines, 0), 0).sum(axis=1)
    unlike: np.ndarray = 1 - similar / max(len(cosines) - 1, 1)
    return unlike


def relative_weights(cosines: np.ndarray) -> np.ndarray:
    """Return each client's weight divided by the largest one (Eq. 6), float64 [K] in (0, 1]."""
    strength = np.where(_off_diagonal(cosines), np.abs(cosines), 0).sum(axis=1)
    relative: np.ndarray = np.exp(strength - strength.max())
    return relative


def retention(unlike: np.ndarray, *, r0: float, delta: float) -> np.ndarray:
    """Return the share of each update that H-TIES keeps: `r_k = r0 - delta * minmax(h)_k` (Eq. 10).

    `unlike`: h, from `heterogeneity`, float64 [K].
    """
    span = unlike.max() - unlike.min()
    scaled = (unlike - unlike.min()) / span if span > 0 else unlike * 0
    return r0 - delta * scaled


def _off_diagonal(cosines: np.ndarray) -> np.ndarray:
    return ~np.eye(len(cosines), dtype=bool)
