"""Nothing that was made under one context of a masked sum is accepted under another."""

from dataclasses import replace

import pytest

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.selftest.rehearsal import SERVER, Cohort, names, ring
from fedproxy_secure.secagg.terms import Roster
from tests.support.masked_cohort import KEYS, ROSTER, TERMS, D, K, session, updates


@pytest.mark.parametrize(
    "change",
    [
        {"round": 1},
        {"attempt": 1},
        {"run": "other"},
        {"threshold": 5},
        {"server_key": b"x" * 32},
        {"settings_sha256": b"x" * 32},
        {"broadcast_sha256": b"x" * 32},
        {"plan": ring(K, D, clip=2.0)},
        {"plan": ring(K, D, bits=24)},
        {"cohort": names(K)[:-1]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_keys_made_under_other_terms_are_refused(change):
    stale = session(terms=replace(TERMS, **change)).advertise()
    with pytest.raises(ProtocolAborted, match="signature of c00: verification failed"):
        ServerSession(terms=TERMS, roster=ROSTER, private=SERVER).advertised(stale)


def test_a_session_neither_begins_nor_goes_on_with_another_roster_than_the_terms_name():
    """Whoever wrote the other roster would hold the keys that speak for the other clients."""
    forged = Roster(members={**ROSTER.members, "c01": b"x" * 32})
    frozen = session().freeze()
    same = {"name": "c00", "identity": KEYS["c00"], "terms": TERMS}
    with pytest.raises(ProtocolAborted, match="roster: must be the one that the attempt was begun with"):
        ClientSession(roster=forged, **same)
    with pytest.raises(ProtocolAborted, match="roster: must be the one that the attempt was begun with"):
        ClientSession.thaw(frozen, roster=forged, **same)
    ClientSession.thaw(frozen, roster=ROSTER, **same)


def test_a_client_that_was_shown_another_adapter_drops_out():
    other = replace(TERMS, broadcast_sha256=b"x" * 32)

    class TwoBroadcasts(Cohort):
        def _ask(self, step, clients, ask, take):
            if step == "advertise":
                clients["c00"] = session(terms=other)
            super()._ask(step, clients, ask, take)

    c = TwoBroadcasts(terms=TERMS, keys=KEYS, roster=ROSTER)
    assert c.run(updates()).clients == names(K)[1:]
    assert "c00" in c.server_errors
