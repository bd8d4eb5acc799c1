"""What a client adds to a secure sum for its update: trimmed, weighed, or shortened to the clip norm."""

from __future__ import annotations

import numpy as np

from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.federate.fusion.elections import election_of
from fedproxy_secure.federate.job import AgreedSettings
from fedproxy_secure.secagg.sketch import Standing


def trimmed(
    update: np.ndarray,
    settings: AgreedSettings,
    *,
    previous: np.ndarray | None = None,
    standing: Standing | None = None,
) -> tuple[np.ndarray, float]:
    """Return a client's update, float32 [d], as the settings have it trimmed or shortened, and its weight.

    Args:
        update: float32 [d], as training left it.
        settings: what the parties agreed on.
        previous: for weights `self`: the last round's fused step as this client saw it. H-TIES' weight and
            retention (Eq. 5, 6, 10) are computed with it in place of the other clients. None in round 0, in
            which all clients weigh the same. Zeros for a client that was not in the last round: its update
            is like nothing, and so has the least weight, `LEAST_WEIGHT`, and the least retention.
        standing: for weights `encrypted_gram`: weight and retention that follow from the clients' cosines.
    """
    weight = 1.0
    fusion, election = settings.fusion, election_of(settings.fusion)
    if election is not None:
        retention = election.kept_share(fusion)
        if election.weighs_clients and standing is not None:
            weight, retention = standing.weight, standing.retention
        elif election.weighs_clients and settings.protect.weights == "self" and previous is not None:
            cosine = _cosine(update, previous)
            weight = float(np.exp(abs(cosine) - 1))
            retention = fusion.r0 - fusion.delta * (1 - max(cosine, 0.0))
        update = keep_largest(update, retention)
    if settings.privacy.unit == "client":
        update = clip_to_norm(update, settings.privacy.clip_norm)
    return update, weight


def clip_to_norm(update: np.ndarray, norm: float) -> np.ndarray:
    """Return `update`, float32 [d], shortened to the length `norm` if it is longer."""
    length = float(np.linalg.norm(update.astype(np.float64)))
    if length <= norm:
        return update
    return (update * (norm / length * (1 - 1e-6))).astype(np.float32)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine in [-1, 1], even for vectors as small or as large as float32 allows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    return float(np.clip(np.dot(x, y) / scale, -1.0, 1.0)) if scale else 0.0
