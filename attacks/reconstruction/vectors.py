"""The vectors of a view that attacks read: single updates, or aggregates without the attacker's part."""

from __future__ import annotations

import numpy as np

from attacks import white_box
from attacks.base import replace_view
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.view import Sums, View

Vector = tuple[int, tuple[str, ...], np.ndarray]  # round, clients in it, the mean of their updates


def vectors(view: View, *, most: int) -> list[Vector]:
    """Return at most `most` vectors of a view: individual updates if it has them, else aggregates.

    They are spread evenly over the rounds. A single vector is of the last round: in the first round LoRA's
    gradient of A is zero.
    """
    if view.updates:
        candidates: list[Vector] = [(r, (name,), u) for (r, name), u in sorted(view.updates.items())]
    else:
        candidates = []
        for r in sorted({*view.sums, *view.adapters}):
            mean = view.aggregate(r)
            if mean is not None:
                cohort = view.cohort_of(r)
                candidates.append((r, cohort, without_own(view, r, cohort, mean)))
    candidates.sort(key=lambda f: (f[0], f[1]))
    # distant rounds tell more than neighbouring ones
    picks = np.unique(np.linspace(len(candidates) - 1, 0, min(most, len(candidates))).round().astype(int))
    return [candidates[i] for i in picks]


def with_round_0(view: View) -> View:
    """Return the view with the adapter that round 0 began with, if it has a proxy but not that adapter.

    A client that missed round 0 was not sent it, but it follows from proxy and settings.
    """
    if 0 in view.adapters or view.proxy is None or view.settings is None:
        return view
    with white_box.opened(view) as box:
        return replace_view(view, adapters={0: get_vector(box.tuned), **view.adapters})


def without_own(view: View, round_number: int, clients: tuple[str, ...], mean: np.ndarray) -> np.ndarray:
    """Return the mean update of the honest clients: corrupted clients subtract their own updates.

    It is zero if all clients were corrupted.
    """
    updates = [
        state.rounds[round_number].update
        for name, state in view.own.items()
        if name in clients and round_number in state.rounds
    ]
    if not updates:
        return mean
    honest = max(1, len(clients) - len(updates))
    honest_mean: np.ndarray = ((mean * len(clients) - np.sum(updates, axis=0)) / honest).astype(np.float32)
    return honest_mean if len(updates) < len(clients) else np.zeros_like(honest_mean)


def shuffled(view: View, rng: np.random.Generator) -> View:
    """Return a view whose vectors have their numbers in other places, for negative controls.

    The adapters stay, as attacks compute gradients at them. If the vectors are steps between adapters, the
    view gets sums of the shuffled steps.
    """
    if view.updates:
        return replace_view(view, updates={k: rng.permutation(u) for k, u in view.updates.items()})
    sums: dict[int, Sums] = {}
    for r in sorted({*view.sums, *view.adapters}):
        mean = view.aggregate(r)
        if mean is not None:
            clients = view.cohort_of(r)
            segments = view.sums[r].segments if r in view.sums else {}
            update = rng.permutation(mean) * len(clients)
            sums[r] = Sums(clients=clients, segments={**segments, "update": update})
    return replace_view(view, sums=sums)
