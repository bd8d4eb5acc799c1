"""Which vectors a view has to attack: individual updates, or aggregates without the attacker's own part."""

from __future__ import annotations

import numpy as np

from fedproxy_secure.record.view import View

Vector = tuple[int, tuple[str, ...], np.ndarray]  # round, clients in it, the mean of their updates


def vectors(view: View, *, most: int) -> list[Vector]:
    """The first `most` vectors a view holds: individual updates where it has them, else aggregates."""
    if view.updates:
        found: list[Vector] = [(r, (name,), u) for (r, name), u in sorted(view.updates.items())]
    else:
        found = []
        everybody = view.settings.clients if view.settings is not None else ()
        for r in sorted({*view.sums, *view.adapters}):
            mean = view.aggregate(r)
            if mean is not None:
                seen = view.cohorts.get(r, everybody)
                found.append((r, seen, without_own(view, r, seen, mean)))
    found.sort(key=lambda f: (f[0], f[1]))
    # rounds apart say more than neighbours: spread over what is there
    picks = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[i] for i in picks]


def without_own(view: View, round_number: int, clients: tuple[str, ...], mean: np.ndarray) -> np.ndarray:
    """The mean without the corrupted clients' own part, which they know."""
    own = [
        state.rounds[round_number].update
        for name, state in view.own.items()
        if name in clients and round_number in state.rounds
    ]
    rest: np.ndarray = (mean * len(clients) - np.sum(own, axis=0)).astype(np.float32) if own else mean
    return rest
