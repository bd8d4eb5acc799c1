"""Updates of clients whose records are known, and an attack on them."""

import numpy as np

from attacks.base import Budget
from tests.support.lab import make_lab, records

SEVERAL = {"steps": 5, "batch_size": 4}


def run(attack, view, truth, seed=0, budget=None):
    """The attack's estimates by metric, and its guess."""
    guess = attack.guess(
        view,
        attack.exam(truth, view, np.random.default_rng(seed)).question,
        budget or Budget(),
        np.random.default_rng(seed),
    )
    return {e.metric: e for e in attack.score(guess, truth)}, guess


def rounds_of(lab, *, clients, count=8, tokens=10, length=10, seed=0):
    """Records of each client, their updates."""
    rng = np.random.default_rng(seed)
    items = {f"c{i}": records(rng, count, tokens=tokens, length=length) for i in range(clients)}
    return items, {name: lab.update(mine) for name, mine in items.items()}


def maker_of_labs(tmp_path_factory):
    """Labs by adapter kind, optimiser and more, made when first asked for."""
    made = {}

    def lab(kind="lora", optimizer="sgd", **more):
        key = (kind, optimizer, repr(sorted(more.items())))
        if key not in made:
            adapter = {"kind": kind, **more.pop("adapter", {})}
            rate = 0.1 if optimizer == "sgd" else 3e-3
            local = {"optimizer": optimizer, "learning_rate": rate, **SEVERAL, **more.pop("local", {})}
            made[key] = make_lab(tmp_path_factory.mktemp("lab"), adapter=adapter, local=local, **more)
        return made[key]

    return lab
