"""CKKS rounds of version 1: what signatures and sealed keys are bound to, computed apart with hashlib."""

import hashlib

import pytest

from fedproxy_secure.secagg.ckks.client import CkksClient
from fedproxy_secure.secagg.ckks.messages import Hello, KeyGrant, Opened
from fedproxy_secure.secagg.ckks.row import leader_of
from fedproxy_secure.secagg.selftest.rehearsal import identities, ring, terms_for

CONTEXT = b"c" * 32
KEYS, ROSTER = identities(3)
TERMS = terms_for(ring(3, 8), ROSTER)


def bound(*parts):
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in parts)).digest()


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (
            Hello(client="ann", share_key=b"k", signature=b"").signed(CONTEXT),
            (b"hello", CONTEXT, b"ann", b"k"),
        ),
        (
            KeyGrant(leader="ann", share_key=b"k", public=b"p", sealed=b"s", signature=b"").signed(
                CONTEXT, "bob"
            ),
            (b"grant", CONTEXT, b"ann", b"k", b"bob", b"p", b"s"),
        ),
        (
            Opened(client="ann", values=b"v", values_sha256=b"h", signature=b"").signed(CONTEXT),
            (b"opened", CONTEXT, b"ann", b"h"),
        ),
    ],
)
def test_a_signature_covers_its_kind_the_context_and_every_field(made, parts):
    assert made == bound(*parts)


def test_a_sealed_key_is_bound_to_the_round_and_to_who_sends_it_to_whom():
    client = CkksClient(name="c00", identity=KEYS["c00"], terms=TERMS, roster=ROSTER)
    assert client._route("c00", "c01") == bound(b"key grant", TERMS.context(), b"c00", b"c01")


def test_the_leader_is_the_client_whose_name_has_the_least_digest():
    names = [f"c{i:02}" for i in range(20)]
    assert leader_of(CONTEXT, names) == min(names, key=lambda n: bound(b"leader", CONTEXT, n.encode()))
