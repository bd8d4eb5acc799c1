"""What a client demands of the terms of a masked sum is not for the server to change."""

from dataclasses import replace

import pytest

from fedproxy_secure.errors import ConfigError, ProtocolAborted
from fedproxy_secure.secagg.selftest.rehearsal import ring
from fedproxy_secure.secagg.terms import TermsPolicy, least_threshold
from tests.support.masked_cohort import PLAN, ROSTER, TERMS, D, K


def policy(colluders=0, roster=ROSTER):
    return TermsPolicy(roster=roster, settings_sha256=b"s" * 32, colluders=colluders, rounds=8)


def check(terms=TERMS, *, name="c00", broadcast=b"b" * 32, plan=PLAN, rules=None):
    (rules or policy()).check(terms, name=name, broadcast_sha256=broadcast, plan=plan)


def test_terms_like_a_clients_own_are_accepted():
    check()
    check(replace(TERMS, round=7, attempt=2))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"threshold": 3}, "threshold=3: must be 4 to 5"),
        ({"threshold": 6}, "threshold=6: must be 4 to 5"),
        ({"settings_sha256": b"x" * 32}, "settings: differs"),
        ({"roster_sha256": b"x" * 32}, "roster: differs"),
        ({"broadcast_sha256": b"x" * 32}, "broadcast adapter: differs"),
        ({"plan": ring(K, D, clip=2.0)}, "ring plan: differs"),
        ({"cohort": ("c00", "c01")}, "cohort of 2: must be 3 to 64"),
        ({"cohort": ("c01", "c00", "c02")}, "cohort: must be sorted"),
        ({"cohort": ("c00", "c00", "c01")}, "cohort: must be sorted"),
        ({"cohort": ("c01", "c02", "c03")}, "cohort: must be sorted, without repeats, and contain c00"),
        ({"cohort": ("c00", "c01", "eve")}, "cohort: eve is not in the roster"),
        ({"round": -1}, "round -1: must be 0 to 7, the run's last"),
        ({"round": 8}, "round 8: must be 0 to 7, the run's last"),
        ({"round": 1000}, "round 1000: must be 0 to 7, the run's last"),
        ({"attempt": -1}, "attempt -1: must be >= 0 and below 2"),
        ({"attempt": 2**63}, "must be >= 0 and below 2"),
    ],
)
def test_terms_that_differ_are_refused(change, line):
    with pytest.raises(ProtocolAborted, match=line):
        check(replace(TERMS, **change))


def test_a_client_that_fears_colluders_demands_more():
    check(replace(TERMS, threshold=5), rules=policy(colluders=3))
    with pytest.raises(ProtocolAborted, match="threshold=4: must be 5 to 5"):
        check(rules=policy(colluders=3))


def test_a_client_can_demand_that_no_sum_is_over_fewer_than_it_says():
    check(rules=replace(policy(), min_cohort=4))
    check(replace(TERMS, threshold=5), rules=replace(policy(), min_cohort=5))
    with pytest.raises(ProtocolAborted, match="threshold=4: must be 5 to 5"):
        check(rules=replace(policy(), min_cohort=5))
    with pytest.raises(ProtocolAborted, match="cohort of 5: must be >= 6, this client's least"):
        check(rules=replace(policy(), min_cohort=6))


def test_a_clients_own_threshold_is_not_the_servers_to_lower():
    check(replace(TERMS, threshold=5), rules=replace(policy(), min_threshold=5))
    with pytest.raises(ProtocolAborted, match="threshold=4: must be 5 to 5"):
        check(rules=replace(policy(), min_threshold=5))


@pytest.mark.parametrize("clients", range(3, 65))
def test_the_threshold_is_the_least_that_two_views_cannot_both_reach(clients):
    for colluders in range(clients - 1):
        t = least_threshold(clients, colluders)
        assert 2 * t > clients + colluders
        assert t >= 2 * clients // 3 + 1
        assert 2 * (t - 1) <= clients + colluders or t - 1 < 2 * clients // 3 + 1
        assert colluders + 2 <= t <= clients


@pytest.mark.parametrize("clients", [3, 5, 64])
def test_colluders_that_would_leave_one_honest_client_in_the_sum_are_refused(clients):
    """They would take their own vectors off the sum, and have the last one's."""
    with pytest.raises(ConfigError, match=f"colluders={clients - 1}: must be <= {clients - 2}"):
        least_threshold(clients, clients - 1)
