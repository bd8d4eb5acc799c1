"""Rosters, frozen sessions and fields of messages of a masked sum: bad ones are refused."""

from dataclasses import replace

import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import SHARE_BYTES
from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.secagg import messages as masking
from fedproxy_secure.secagg.ckks import gram
from fedproxy_secure.secagg.ckks import messages as ckks
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.messages import Advertise, Confirmations, KeyBook, Unmask, from_fields
from fedproxy_secure.secagg.selftest.rehearsal import names, ring
from fedproxy_secure.secagg.terms import Roster, Terms
from tests.support.masked_cohort import KEYS, ROSTER, TERMS, D, K, cohort, session, updates


def test_a_roster_is_read_back_and_a_bad_one_refused(tmp_path):
    file = tmp_path / "roster.json"
    file.write_text(ROSTER.to_json())
    assert Roster.load(file) == ROSTER
    assert Roster.load(file).sha256() == ROSTER.sha256()
    for text in ("{", "[]", '{"a": "zz"}', '{"a": 3}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match="is not a roster"):
            Roster.load(file)
    file.write_text('{"a": "00"}')
    with pytest.raises(ConfigError, match="key of a has 1 bytes; must have 32"):
        Roster.load(file)
    with pytest.raises(ConfigError, match="two clients have the same key"):
        Roster(members={"a": bytes(32), "b": bytes(32)})
    with pytest.raises(ConfigError, match="cannot be read"):
        Roster.load(tmp_path / "none.json")


def test_a_round_of_frozen_and_thawed_clients_is_like_any_other():
    c = cohort(frozen=True, drops={"mask": {"c04"}})
    assert c.run(updates()).clients == names(K)[:-1]


def test_a_session_frozen_under_other_terms_is_not_thawed():
    for number in range(1, 9):  # hashes before and after that of the own terms
        frozen = session(terms=replace(TERMS, round=number)).freeze()
        with pytest.raises(ProtocolAborted, match="session: belongs to other terms"):
            ClientSession.thaw(frozen, name="c00", identity=KEYS["c00"], terms=TERMS, roster=ROSTER)


@pytest.mark.parametrize("pair", [b"short", bytes(2 * SHARE_BYTES + 1)])
def test_a_sealed_pair_of_another_size_is_refused(pair):
    """It can only come from a malicious client."""
    client, peer = session("c00"), session("c01")
    row = [client.advertise(), peer.advertise(), *(session(n).advertise() for n in names(K)[2:])]
    book = KeyBook(
        clients=[r.client for r in row],
        share_keys=[r.share_key for r in row],
        mask_keys=[r.mask_key for r in row],
        commitments=[r.commitment for r in row],
        signatures=[r.signature for r in row],
    )
    client.share(book)
    peer.share(book)
    sealed = crypto.seal(peer._channel("c00", outgoing=True), pair, associated=peer._route("c01", "c00"))
    client._inbox = type("Inbox", (), {"senders": ["c01"], "sealed": [sealed]})()
    with pytest.raises(ProtocolAborted, match="shares from c01: verification failed"):
        client._shares_from("c01")


def test_fields_of_another_name_or_type_are_refused():
    good = session().advertise().to_fields()
    assert from_fields(Advertise, good).client == "c00"
    with pytest.raises(DataError, match="Advertise: fields"):
        from_fields(Advertise, good | {"more": 1})
    with pytest.raises(DataError, match="Advertise: field share_key must be bytes"):
        from_fields(Advertise, good | {"share_key": "text"})
    with pytest.raises(DataError, match="Confirmations: field clients must be"):
        from_fields(Confirmations, {"clients": [1], "signatures": []})
    with pytest.raises(DataError, match="Confirmations: field clients must be"):
        from_fields(Confirmations, {"clients": "c00", "signatures": []})


def test_every_message_says_what_it_reveals():
    kinds = {*masking.MESSAGES, *ckks.MESSAGES, *gram.MESSAGES}
    assert len(kinds) == 18
    for kind in kinds:
        assert kind.to in ("server", "clients")
        assert kind.reveals
    assert Unmask.reveals.startswith("with t of them: the sum")


def test_a_secret_root_of_another_session_gives_other_keys():
    one, two = session(), session()
    assert one.advertise().mask_key != two.advertise().mask_key
    same = [
        ClientSession(name="c00", identity=KEYS["c00"], terms=TERMS, roster=ROSTER, root=Secret(b"r" * 32))
        for _ in range(2)
    ]
    assert same[0].advertise() == same[1].advertise()


def test_terms_are_bound_in_full():
    contexts = {TERMS.context()}
    for field, value in {
        "run": "x",
        "round": 7,
        "attempt": 7,
        "cohort": names(3),
        "threshold": 5,
        "server_key": bytes(32),
        "settings_sha256": bytes(32),
        "roster_sha256": bytes(32),
        "broadcast_sha256": bytes(32),
        "gram_sha256": bytes(32),
        "plan": ring(K, D + 1),
    }.items():
        contexts.add(replace(TERMS, **{field: value}).context())
    assert len(contexts) == 1 + len(Terms.__dataclass_fields__)
