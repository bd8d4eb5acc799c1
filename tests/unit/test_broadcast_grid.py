"""A masked client trains from no adapter whose numbers are so large that its update would be signs."""

import numpy as np
import pytest

from fedproxy_secure import wire
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.protect.broadcast import agreed_broadcast

D = 10_000


def asked(largest, *, optimizer="adamw", learning_rate=1.5e-3, schedule="constant", round=0, **sections):
    """What a client makes of a broadcast whose largest number is this one."""
    local = {"optimizer": optimizer, "learning_rate": learning_rate, "schedule": schedule}
    job = FederationJob.from_config(parse_config({"local": local, **sections}), seed=0)
    adapter = np.linspace(-0.1, 0.1, D, dtype=np.float32)
    adapter[7] = largest
    sent = wire.Broadcast(
        round=round,
        adapter=adapter,
        conflict=None,
        pcr_lambda=job.fusion.pcr_lambda,
        prox_mu=job.fusion.prox_mu,
    )
    return agreed_broadcast(wire.encode_broadcast(sent), job, [D]).adapter


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("largest", [2.0**14, -(2.0**14), 3e38])
def test_an_adapter_at_which_updates_are_signs_is_refused(optimizer, largest):
    with pytest.raises(
        ProtocolAborted, match=r"broadcast adapter: has a number of .* rounded to signs; the"
    ):
        asked(largest, optimizer=optimizer)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [("adamw", 1e-5), ("adamw", 1.5e-3), ("sgd", 1e-3), ("sgd", 0.5)]
)
def test_adapters_as_training_makes_them_are_far_from_the_bound(optimizer, learning_rate):
    """A fresh adapter's numbers are below 1 / 8 in the smallest model here; training adds less."""
    for largest in (0.0, 0.125, 0.25):
        assert asked(largest, optimizer=optimizer, learning_rate=learning_rate)[7] == np.float32(largest)


def test_at_the_largest_adapter_that_is_taken_a_step_of_adamw_has_many_values():
    learning_rate, largest = 1.5e-3, 1.0
    while True:
        try:
            asked(2 * largest, learning_rate=learning_rate)
        except ProtocolAborted:
            break
        largest *= 2
    moves = np.linspace(-learning_rate, learning_rate, 1001, dtype=np.float32)
    start = np.float32(largest)
    assert len(np.unique((start + moves) - start)) > 60  # signs would be 3


def test_a_round_of_small_rates_needs_a_finer_grid():
    for schedule, refused in (("constant", False), ("linear", False), ("cosine", True)):
        ask = {"schedule": schedule, "federate": {"rounds": 1000}}
        assert asked(0.125, round=0, **ask)[7] == np.float32(0.125)
        if refused:
            with pytest.raises(ProtocolAborted, match=r"rounded to signs; .* another local\.schedule"):
                asked(0.125, round=999, **ask)
        else:
            assert asked(0.125, round=999, **ask)[7] == np.float32(0.125)


@pytest.mark.parametrize(
    "sections",
    [
        {"protect": {"scheme": "unsafe_plaintext"}},
        {"privacy": {"unit": "record"}},
        {"privacy": {"unit": "client"}, "fusion": {"rule": "fedavg"}},
    ],
    ids=["in the clear", "record", "client"],
)
def test_nothing_is_refused_where_the_update_is_seen_or_noise_covers_it(sections):
    assert asked(2.0**14, **sections)[7] == 2.0**14
