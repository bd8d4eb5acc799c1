"""The vectors that a view offers to attacks: single updates, or aggregates without the attacker's part."""

from __future__ import annotations

import numpy as np

from fedproxy_secure.record.view import View

Vector = tuple[int, tuple[str, ...], np.ndarray]  # round, clients in it, the mean of their updates


def vectors(view: View, *, most: int) -> list[Vector]:
    """Return at most `most` vectors of a view: individual updates where it has them, else aggregates.

    They are spread evenly over the rounds.
    """
    if view.updates:
        candidates: list[Vector] = [(r, (name,), u) for (r, name), u in sorted(view.updates.items())]
    else:
        candidates = []
        everybody = view.settings.clients if view.settings is not None else ()
        for r in sorted({*view.sums, *view.adapters}):
            mean = view.aggregate(r)
            if mean is not None:
                seen = view.cohorts.get(r, everybody)
                candidates.append((r, seen, without_own(view, r, seen, mean)))
    candidates.sort(key=lambda f: (f[0], f[1]))
    # distant rounds tell more than neighbouring ones
    picks = np.unique(np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round().astype(int))
    return [candidates[i] for i in picks]


def without_own(view: View, round_number: int, clients: tuple[str, ...], mean: np.ndarray) -> np.ndarray:
    """Return the mean without the part of the corrupted clients, who know their own updates."""
    updates = [
        state.rounds[round_number].update
        for name, state in view.own.items()
        if name in clients and round_number in state.rounds
    ]
    rest: np.ndarray = (
        (mean * len(clients) - np.sum(updates, axis=0)).astype(np.float32) if updates else mean
    )
    return rest
