"""Whatever the cohort, the ring, the inputs and the drop-outs: the exact sum of the survivors, or an abort.

`HYPOTHESIS_PROFILE=nightly` runs 100 000 cases, `short` 100; otherwise 300.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedproxy_secure.errors import RoundAborted
from fedproxy_secure.secagg.ring import RING_BITS, read_sum
from fedproxy_secure.secagg.selftest.rehearsal import STEPS, Cohort, identities, names, ring, terms_for

CASES = {"nightly": 100_000, "short": 100}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 300)
KEYS, ROSTER = identities(64)
# small cohorts, because the cost grows with the square; the others are below, one by one
SIZES = st.sampled_from([*range(3, 9)] * 8 + [*range(9, 13)])


@st.composite
def rounds(draw):
    clients = draw(SIZES)
    plan = ring(clients, draw(st.integers(0, 20)), bits=draw(st.sampled_from(RING_BITS)))
    terms = terms_for(plan, ROSTER)
    dropping = draw(st.lists(st.sampled_from(names(clients)), unique=True, max_size=clients // 2))
    drops = {step: set() for step in STEPS}
    for name in dropping:
        drops[draw(st.sampled_from(STEPS))].add(name)
    return terms, drops, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.01, 1.0, 10.0]))


@pytest.mark.timeout(0)
@settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rounds())
def test_the_sum_is_exact_or_the_round_aborts(case):
    check(*case)


# each ring, the smallest and the largest cohort by day; all by night
LARGER = [n if n in (13, 32, 48, 64) else pytest.param(n, marks=pytest.mark.nightly) for n in range(13, 65)]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("clients", LARGER)
def test_the_sum_of_a_larger_cohort_is_exact_with_as_many_drop_outs_as_it_bears(clients):
    rng = np.random.default_rng(clients)
    terms = terms_for(ring(clients, 10, bits=RING_BITS[clients % 3]), ROSTER)
    spare = clients - terms.threshold
    gone = rng.permutation(names(clients))[:spare].tolist()
    drops = {step: set(gone[i :: len(STEPS)]) for i, step in enumerate(STEPS)}
    check(terms, drops, clients, 1.0)


def check(terms, drops, seed, spread):
    rng = np.random.default_rng(seed)
    plan = terms.plan
    d = plan.segments[0].length
    updates = {n: rng.normal(0, spread, d).astype(np.float32) for n in terms.cohort}
    cohort = Cohort(terms=terms, keys=KEYS, roster=ROSTER, drops=drops)
    gone_at = {n: i for i, step in enumerate(STEPS) for n in drops[step]}
    left = [sum(gone_at.get(n, len(STEPS)) > i for n in terms.cohort) for i in range(len(STEPS))]
    if min(left) < terms.threshold:
        with pytest.raises(RoundAborted, match="must be >="):
            cohort.run(updates)
        return
    made = cohort.run(updates)
    survivors = tuple(n for n in terms.cohort if gone_at.get(n, len(STEPS)) > STEPS.index("mask"))
    assert made.clients == survivors
    expected = read_sum(plan, cohort.plain_sum(survivors).astype(plan.word_type))
    assert made.sums.keys() == expected.keys()
    for name, total in expected.items():
        assert np.array_equal(made.sums[name], total)
    assert made.control.clients == len(survivors)
    assert not cohort.client_errors
    assert not cohort.server_errors
