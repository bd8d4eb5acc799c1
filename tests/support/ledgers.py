"""A client's privacy ledger, and rounds that are paid for from it."""

from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import PrivacyLedger

# without sampling, what it costs is known at once
ROUND = SampledGaussian(noise_multiplier=20.0, sampling_rate=1.0, steps=10)
HERE, THERE = b"h" * 32, b"t" * 32


def ledger(folder, **changes):
    settings = {
        "folder": folder,
        "client": "clinic",
        "run": "run",
        "unit": "record",
        "delta": 1e-5,
        "max_epsilon": 2.0,
    }
    made = PrivacyLedger(**(settings | changes))
    made.open()
    return made


def key_of(own, round=0, inputs=HERE, event=ROUND):
    """A round whose result is its noise key: what a test may look at and a client never does."""
    return own.once(round=round, inputs_sha256=inputs, event=event, compute=lambda key: key)


def never(key):
    raise AssertionError("was computed again")
