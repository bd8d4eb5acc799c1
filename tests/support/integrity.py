"""What the attacks A11 and A13 are tried on."""

import numpy as np

from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.record.view import view
from tests.support.recorded import record_run
from tests.support.tiny import write_records
from threat_models import get as threat_model

LOCAL = {"steps": 10, "batch_size": 8, "learning_rate": 1e-2}


def masked_run(place, **changes):
    """Return the folder of a recorded run of four clients, masked unless changed, made in `place`."""
    root = write_records(place / "records", clients=4, records=40)
    return record_run(
        place,
        data={"root": root},
        local=LOCAL,
        adapter={"rank": 8, "alpha": 16},
        federate={"rounds": 2},
        **changes,
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def seen_by(world, name):
    model = threat_model(name)
    return view(world, model), read_truth(world, honest_besides=model.clients)


def tried(attack, seen, truth, profile="smoke"):
    return run_one(attack, seen, truth, profile=profile, seconds=100, seed=0)
