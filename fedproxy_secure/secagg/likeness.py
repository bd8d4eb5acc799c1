"""What cosines between clients come to: heterogeneity, weights and retention (Eq. 5, 6, 10 of the paper).

NumPy alone. The fusion in the clear has exact cosines, clients of a secure sum those of their sketches.
"""

from __future__ import annotations

import numpy as np


def heterogeneity(cosines: np.ndarray) -> np.ndarray:
    """Return how unlike the others each client is (Eq. 5), float64 [K] in [0, 1], from cosines [K, K]."""
    similar = np.where(_others(cosines), np.maximum(cosines, 0), 0).sum(axis=1)
    unlike: np.ndarray = 1 - similar / max(len(cosines) - 1, 1)
    return unlike


def relative_weights(cosines: np.ndarray) -> np.ndarray:
    """Return each client's weight over the largest one (Eq. 6), float64 [K] in (0, 1]."""
    strength = np.where(_others(cosines), np.abs(cosines), 0).sum(axis=1)
    relative: np.ndarray = np.exp(strength - strength.max())
    return relative


def retention(unlike: np.ndarray, *, r0: float, delta: float) -> np.ndarray:
    """Return the share of each update that H-TIES keeps: `r_k = r0 - delta * minmax(h)_k` (Eq. 10)."""
    span = unlike.max() - unlike.min()
    scaled = (unlike - unlike.min()) / span if span > 0 else unlike * 0
    return r0 - delta * scaled


def _others(cosines: np.ndarray) -> np.ndarray:
    return ~np.eye(len(cosines), dtype=bool)
