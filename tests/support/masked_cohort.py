"""Five clients of a masked sum at a threshold of four, and ways to tamper with their messages."""

import numpy as np

from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, identities, names, ring, terms_for

K, D = 5, 40
KEYS, ROSTER = identities(K)
PLAN = ring(K, D)
TERMS = terms_for(PLAN, ROSTER)  # threshold 4


def updates(seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.uniform(-1, 1, D).astype(np.float32) for n in names(K)}


def cohort(**changes):
    return Cohort(**({"terms": TERMS, "keys": KEYS, "roster": ROSTER} | changes))


def only(step, client, change):
    """Tamper with one client's message of one step."""

    def tamper(at, who, message):
        return change(message) if (at, who) == (step, client) else message

    return tamper


def flip(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def session(name="c00", terms=TERMS):
    return ClientSession(name=name, identity=KEYS[name], terms=terms, roster=ROSTER)
