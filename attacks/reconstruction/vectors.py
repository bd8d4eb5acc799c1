"""The vectors of a view that attacks read: single updates, or aggregates without the attacker's part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from attacks import white_box
from attacks.base import Truth, replace_view
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.record.contribution import contribution
from fedproxy_secure.record.private import PrivateState
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
    """Return the mean of the honest clients' parts; what corrupted clients sent is subtracted.

    It is zero if all clients were corrupted. If the view did not see who took part, the number of clients
    follows from `federate.participation`.
    """
    own = own_contributions(view, round_number, clients)
    if not own:
        return mean
    count = _clients_in(view, round_number, clients)
    if len(own) >= count:
        return np.zeros_like(mean)
    honest_mean: np.ndarray = (mean * count - np.sum([*own.values()], axis=0)) / (count - len(own))
    return honest_mean.astype(np.float32)


def own_contributions(view: View, round_number: int, clients: Collection[str]) -> dict[str, np.ndarray]:
    """Return what corrupted clients among `clients` added to a round in which they trained, by name."""
    return {
        name: contribution(state, round_number, view.settings, view.adapters)
        for name, state in view.own.items()
        if name in clients and round_number in state.rounds
    }


def as_sent(view: View, truth: Truth) -> Truth:
    """Return the truth with what clients added to sums in place of the updates that training left."""

    def sent(state: PrivateState) -> PrivateState:
        updates = {r: contribution(state, r, view.settings, view.adapters) for r in state.rounds}
        return replace(state, rounds={r: replace(state.rounds[r], update=u) for r, u in updates.items()})

    return Truth(clients={name: sent(state) for name, state in truth.clients.items()})


def _clients_in(view: View, round_number: int, clients: tuple[str, ...]) -> int:
    """Return how many clients a round's mean is of; `clients` are all clients of a run if none was seen."""
    if view.settings is None or round_number in view.cohorts or clients != view.settings.clients:
        return len(clients)
    return view.settings.clients_a_round


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
