"""Everything a malicious server, client or network tries ends in an abort, never in a wrong sum."""

from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.crypto.shamir import SHARE_BYTES
from fedproxy_secure.errors import ConfigError, DataError, ProtocolAborted
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.keys import upload_key
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.messages import MESSAGES, Advertise, Confirmations, KeyBook, Unmask, from_fields
from fedproxy_secure.secagg.ring import read_sum
from fedproxy_secure.secagg.selftest.rehearsal import SERVER, Cohort, identities, names, ring, terms_for
from fedproxy_secure.secagg.terms import Policy, Roster, Terms, least_threshold

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


def test_an_honest_round_gives_the_sum_of_everyone():
    c = cohort()
    made = c.run(updates())
    assert made.clients == names(K)
    expected = sum(u.astype(float) for u in updates().values())
    np.testing.assert_allclose(made.sums["update"], expected, atol=K * 2**-23)
    assert made.control.loss == 2.5
    assert not c.client_errors
    assert not c.server_errors


# the server tampers: the client that sees it stops; when all see it, the round aborts


def row_changed(column, index):
    def change(book):
        rows = list(getattr(book, column))
        rows[index] = flip(rows[index])
        return replace(book, **{column: rows})

    return change


@pytest.mark.parametrize("column", ["share_keys", "mask_keys", "commitments", "signatures"])
def test_a_key_swapped_by_the_server_is_noticed(column):
    c = cohort(tamper=only("share to client", "c00", row_changed(column, 2)))
    c.run(updates())
    assert "signature of c02: verification failed" in c.client_errors["c00"]
    everyone = cohort(tamper=lambda at, _, m: row_changed(column, 2)(m) if at == "share to client" else m)
    with pytest.raises(ProtocolAborted, match=r"share: [01] of 5 clients"):
        everyone.run(updates())


def test_a_server_that_puts_its_own_key_under_a_clients_name_is_noticed():
    mallory = crypto.fresh_secret()

    def swap(book):
        i = book.clients.index("c03")
        row = Advertise(
            client="c03",
            share_key=crypto.agreement_public(crypto.fresh_secret()),
            mask_key=crypto.agreement_public(crypto.fresh_secret()),
            commitment=bytes(32),
            signature=b"",
        )
        signature = crypto.sign(mallory, row.signed(TERMS.context()))
        columns = {
            "share_keys": row.share_key,
            "mask_keys": row.mask_key,
            "commitments": row.commitment,
            "signatures": signature,
        }
        changed = {n: [*getattr(book, n)[:i], v, *getattr(book, n)[i + 1 :]] for n, v in columns.items()}
        return replace(book, **changed)

    c = cohort(tamper=only("share to client", "c00", swap))
    c.run(updates())
    assert "signature of c03: verification failed" in c.client_errors["c00"]


@pytest.mark.parametrize(
    ("step", "change", "line"),
    [
        ("share", lambda b: without(b, "c00"), "key book: this client is missing"),
        ("share", lambda b: twice(b, 1), "key book: a client is there twice"),
        ("share", lambda b: cut(b, 3), "key book: 3 clients; must be >= 4"),
        ("share", lambda b: replace(b, clients=[*b.clients[:-1], "eve"]), "eve does not belong"),
        ("share", lambda b: replace(b, signatures=b.signatures[1:]), "columns must have the same length"),
        (
            "share",
            lambda b: replace(b, mask_keys=[b.mask_keys[1], *b.mask_keys[1:]]),
            "a key is there twice",
        ),
        ("share", lambda b: own_row(b), "own row was changed"),
        ("mask", lambda i: replace(i, senders=i.senders[:3], sealed=i.sealed[:3]), "3 clients; must be"),
        ("mask", lambda i: replace(i, sealed=i.sealed[1:]), "columns must have the same length"),
        ("mask", lambda i: replace(i, sealed=[b"", b"short", *i.sealed[2:]]), "from c01: verification"),
        ("mask", lambda i: replace(i, sealed=[b"", flip(i.sealed[1], 20), *i.sealed[2:]]), "c01: verific"),
        ("mask", lambda i: replace(i, sealed=[b"", i.sealed[2], i.sealed[1], *i.sealed[3:]]), "c01: ver"),
        ("mask", lambda i: replace(i, senders=[*i.senders[:-1], "eve"]), "eve does not belong"),
        ("confirm", lambda s: replace(s, clients=s.clients[1:]), "survivors: this client is missing"),
        ("confirm", lambda s: replace(s, clients=s.clients[:3]), "survivors: 3 clients; must be >= 4"),
        (
            "confirm",
            lambda s: replace(s, clients=[*s.clients, "c00"]),
            "a client is there twice",
        ),
        ("confirm", lambda s: replace(s, clients=[*s.clients[:-1], "eve"]), "eve does not belong"),
        ("unmask", lambda s: replace(s, clients=s.clients[:3], signatures=s.signatures[:3]), "3 clients"),
        ("unmask", lambda s: replace(s, signatures=s.signatures[1:]), "columns must have the same length"),
        (
            "unmask",
            lambda s: replace(s, signatures=[flip(x) for x in s.signatures]),
            "c00: verification",
        ),
        (
            "unmask",
            lambda s: replace(s, signatures=s.signatures[::-1]),
            "confirmation of c00: ver",
        ),
        ("unmask", lambda s: twice(s, 1), "confirmations: a client is there twice"),
    ],
)
def test_what_the_server_shows_a_client_is_checked(step, change, line):
    c = cohort(tamper=only(f"{step} to client", "c00", change))
    made = c.run(updates())
    assert line in c.client_errors["c00"]
    # what is wrong before the vector is masked is found before
    assert ("c00" in made.clients) == (step in ("confirm", "unmask"))


def columns(message):
    return {n: v for n, v in message.to_fields().items() if isinstance(v, list)}


def without(message, client):
    i = message.clients.index(client)
    return replace(message, **{n: v[:i] + v[i + 1 :] for n, v in columns(message).items()})


def twice(message, i):
    return replace(message, **{n: [*v, v[i]] for n, v in columns(message).items()})


def cut(message, count):
    return replace(message, **{n: v[:count] for n, v in columns(message).items()})


def own_row(book):
    i = book.clients.index("c00")
    return replace(book, commitments=[*book.commitments[:i], bytes(32), *book.commitments[i + 1 :]])


def test_two_different_survivor_sets_cannot_both_be_unmasked():
    """The attack of a server that wants c04's vector: sum over all minus sum over all but c04."""
    everyone, fewer = list(names(K)), list(names(K))[:-1]
    half = {"c00", "c01", "c02"}

    def split_view(at, who, message):
        if at == "confirm to client":
            return replace(message, clients=everyone if who in half else fewer)
        return message

    c = cohort(tamper=split_view)
    with pytest.raises(ProtocolAborted):
        c.run(updates())


def test_a_client_needs_enough_signatures_and_not_its_own():
    c = cohort(tamper=only("confirm to server", "c00", lambda message: None))
    made = c.run(updates())
    assert made.clients == names(K)
    assert not c.client_errors
    assert c.server_errors["c00"] == "unmask: c00 does not belong there"


def test_no_client_gives_both_shares_of_one_client():
    c = cohort(drops={"mask": {"c04"}})
    given = []
    c.tamper = lambda at, who, m: (given.append(m) or m) if at == "unmask to server" else m
    c.run(updates())
    assert given
    for message in given:
        assert not set(message.survivors) & set(message.dropped)
        assert message.dropped == ["c04"]


def session(name="c00", terms=TERMS):
    return ClientSession(name=name, identity=KEYS[name], terms=terms, roster=ROSTER)


def test_every_step_runs_once_and_in_order():
    client = session()
    client.advertise()
    with pytest.raises(ProtocolAborted, match="advertise: asked when share is next"):
        client.advertise()
    fresh = session()
    with pytest.raises(ProtocolAborted, match="unmask: asked when advertise is next"):
        fresh.unmask(Confirmations(clients=[], signatures=[]))


def test_a_client_unmasks_once_and_forgets_its_secrets():
    answers = {}
    kept = {}

    class Watching(Cohort):
        def _ask(self, step, clients, ask, take):
            kept.update(clients)
            super()._ask(step, clients, ask, take)

    def watch(at, who, message):
        if at == "unmask to client":
            answers[who] = message
        return message

    Watching(terms=TERMS, keys=KEYS, roster=ROSTER, tamper=watch).run(updates())
    for name, client in kept.items():
        with pytest.raises(ProtocolAborted, match="unmask: asked when over is next"):
            client.unmask(answers[name])
        assert client._root.reveal() == b""


def test_a_failed_check_ends_the_session_for_good():
    client = session()
    client.advertise()
    empty = KeyBook(clients=[], share_keys=[], mask_keys=[], commitments=[], signatures=[])
    for expected in ("this client is missing", "asked when over is next"):
        with pytest.raises(ProtocolAborted, match=expected):
            client.share(empty)


def test_a_vector_of_another_length_or_type_is_not_masked():
    for words in (np.zeros(PLAN.words + 1, np.uint32), np.zeros(PLAN.words, np.uint64)):
        caught = {}

        class Wrong(Cohort):
            def _ask(self, step, clients, ask, take, words=words, caught=caught):
                if step == "mask":
                    self.tamper = lambda at, who, m: self.wrong(clients[who], who, m, words, caught)
                super()._ask(step, clients, ask, take)

            def wrong(self, client, who, message, words, caught):
                if who == "c00" and not caught:
                    with pytest.raises(ProtocolAborted, match=f"must be {PLAN.words} words of uint32") as e:
                        client.mask(message, words)
                    caught[who] = e
                return message

        Wrong(terms=TERMS, keys=KEYS, roster=ROSTER).run(updates())
        assert caught


# the network, or a malicious client, tampers: its client counts as dropped, the others' sum is exact


@pytest.mark.parametrize(
    ("step", "change", "line"),
    [
        ("advertise", lambda m: replace(m, mask_key=flip(m.mask_key)), "signature of c00: verification"),
        ("advertise", lambda m: replace(m, client="eve"), "eve does not belong there"),
        ("advertise", lambda m: replace(m, client="c01"), "signature of c01: verification"),
        ("share", lambda m: replace(m, sealed=m.sealed[1:]), "must be one for each other client"),
        ("share", lambda m: replace(m, receivers=m.receivers[::-1]), "must be one for each other"),
        ("mask", lambda m: replace(m, masked=flip(m.masked)), "tag of c00: verification failed"),
        ("mask", lambda m: replace(m, masked=m.masked[:-1]), "tag of c00: verification failed"),
        ("confirm", lambda m: replace(m, signature=flip(m.signature)), "signature of c00: verification"),
        ("unmask", lambda m: replace(m, self_shares=m.self_shares[::-1]), "signature of c00: verific"),
        ("unmask", lambda m: replace(m, dropped=["c01"]), "signature of c00: verification failed"),
    ],
)
def test_a_message_changed_on_the_way_counts_as_lost(step, change, line):
    c = cohort(tamper=only(f"{step} to server", "c00", change))
    made = c.run(updates())
    assert line in next(iter(c.server_errors.values()))
    expected = read_sum(PLAN, c.plain_sum(made.clients).astype(PLAN.word_type))
    assert np.array_equal(made.sums["update"], expected["update"])


def test_a_message_that_arrives_twice_counts_once():
    for step in ("advertise", "share", "mask", "confirm", "unmask"):
        c = cohort(tamper=only(f"{step} to server", "c00", lambda m: [m, m]))
        made = c.run(updates())
        assert "c00 has answered already" in c.server_errors["c00"]
        assert made.clients == names(K)


def signed_again(message, name):
    return replace(message, signature=crypto.sign(KEYS[name], message.signed(TERMS.context())))


def with_vector(change):
    """A malicious client's own vector, rightly tagged: it knows its keys. Here the server's side tags."""
    advertised = {}

    def tamper(at, who, message):
        if isinstance(message, Advertise):
            advertised[who] = message
        if (at, who) != ("mask to server", "c00"):
            return message
        masked = change(message.masked)
        key = upload_key(SERVER, advertised["c00"].share_key, TERMS.context(), "c00", "")
        return replace(message, masked=masked, tag=crypto.tag(key, masked))

    return tamper


def test_a_malicious_clients_vector_of_another_length_is_left_out():
    c = cohort(tamper=with_vector(lambda masked: masked[:-4]))
    assert c.run(updates()).clients == names(K)[1:]
    assert "masked vector of" in c.server_errors["c00"]


@pytest.mark.parametrize("dropped", [set(), {"c04"}])
def test_a_malicious_clients_wrong_share_aborts_the_round(dropped):
    def wrong(message):
        column = "key_shares" if dropped else "self_shares"
        shares = list(getattr(message, column))
        shares[0] = flip(shares[0], 32)
        return signed_again(replace(message, **{column: shares}), "c00")

    c = cohort(tamper=only("unmask to server", "c00", wrong), drops={"mask": dropped})
    line = "mask key of c04: is not the one" if dropped else "self mask of c00: is not the one"
    with pytest.raises(ProtocolAborted, match=line):
        c.run(updates())


LOW_ORDER = bytes(32)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m, first: replace(m, share_key=LOW_ORDER), "keys of c01: verification failed"),
        (lambda m, first: replace(m, mask_key=LOW_ORDER), "keys of c01: verification failed"),
        (lambda m, first: replace(m, mask_key=m.share_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, share_key=first.share_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, share_key=first.mask_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, mask_key=first.share_key), "keys of c01: one is there twice"),
        (lambda m, first: replace(m, mask_key=first.mask_key), "keys of c01: one is there twice"),
    ],
)
def test_a_malicious_client_cannot_stop_the_others_with_keys_that_they_must_refuse(change, line):
    first = {}

    def tamper(at, who, message):
        if (at, who) == ("advertise to server", "c00"):
            first["message"] = message
        if (at, who) == ("advertise to server", "c01"):
            return signed_again(change(message, first["message"]), "c01")
        return message

    c = cohort(tamper=tamper)
    made = c.run(updates())
    assert line in c.server_errors["c01"]
    assert made.clients == ("c00", "c02", "c03", "c04")


def test_one_malicious_client_moves_the_sum_as_far_as_the_ring_goes_and_no_further():
    """What masking does not stop: a client that lies is not bound to the clip."""
    far = 5 * PLAN.levels // 2  # of which a client that follows the rules can add 2 / 5

    def bend(masked):
        words = np.frombuffer(masked, np.uint32).copy()
        words[:1] += np.uint32(far)  # as an array, it wraps without a warning
        return words.tobytes()

    calm = {n: np.zeros(D, np.float32) for n in names(K)}
    made = cohort(tamper=with_vector(bend)).run(calm)
    assert made.sums["update"][0] == pytest.approx(2.5)
    assert not made.sums["update"][1:].any()
    loud = cohort(tamper=with_vector(bend)).run({n: np.ones(D, np.float32) for n in names(K)})
    assert loud.sums["update"][0] == pytest.approx(7.5 - 2 * K, abs=1e-6)  # it wraps, and stays within K
    assert np.abs(loud.sums["update"]).max() <= K * (1 + 1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, survivors=m.survivors[1:], self_shares=m.self_shares[1:]),
        lambda m: replace(m, dropped=["c03"]),
        lambda m: replace(m, dropped=[], key_shares=[]),
        lambda m: replace(m, self_shares=m.self_shares[1:]),
        lambda m: replace(m, key_shares=[]),
        lambda m: replace(m, key_shares=[*m.key_shares, m.key_shares[-1]]),
        lambda m: replace(m, self_shares=m.self_shares[:-1], key_shares=[m.self_shares[-1], *m.key_shares]),
    ],
)
def test_shares_for_other_sets_are_refused(change):
    c = cohort(
        terms=WIDE,
        keys=WIDE_KEYS,
        roster=WIDE_ROSTER,
        drops={"mask": {"c06"}},
        tamper=only("unmask to server", "c00", lambda m: wide_signed(change(m))),
    )
    made = c.run(WIDE_UPDATES)
    assert "must be one for each client of the step" in c.server_errors["c00"]
    assert made.clients == names(6)


WIDE_KEYS, WIDE_ROSTER = identities(7)
WIDE = terms_for(ring(7, D), WIDE_ROSTER)  # threshold 5
WIDE_UPDATES = {n: np.zeros(D, np.float32) for n in names(7)}


def wide_signed(message):
    return replace(message, signature=crypto.sign(WIDE_KEYS["c00"], message.signed(WIDE.context())))


def test_answers_may_arrive_in_any_order():
    class Backwards(Cohort):
        def _ask(self, step, clients, ask, take):
            answers = []
            super()._ask(step, clients, ask, answers.append)
            for answer in reversed(answers):
                take(answer)

    c = Backwards(terms=TERMS, keys=KEYS, roster=ROSTER, drops={"mask": {"c04"}})
    made = c.run(updates())
    assert made.clients == names(4)
    expected = read_sum(PLAN, c.plain_sum(made.clients).astype(PLAN.word_type))
    assert np.array_equal(made.sums["update"], expected["update"])


def test_a_malicious_client_that_masks_wrongly_makes_the_sentinels_wrong():
    bend = with_vector(lambda masked: masked[:-1] + bytes([masked[-1] ^ 0x7F]))
    with pytest.raises(ProtocolAborted, match="sentinels: are wrong"):
        cohort(tamper=bend).run(updates())


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "confirm", "unmask"])
def test_one_survivor_too_few_aborts_with_the_reason(step):
    with pytest.raises(ProtocolAborted, match=rf"{step}: 3 of 5 clients; must be >= 4"):
        cohort(drops={step: {"c00", "c01"}}).run(updates())


def test_the_server_machine_refuses_messages_out_of_turn():
    server = ServerSession(terms=TERMS, roster=ROSTER, private=SERVER)
    message = session().advertise()
    server.advertised(message)
    with pytest.raises(ProtocolAborted, match="share: closed when advertise is going on"):
        server.inboxes()
    for name in names(K)[1:]:
        server.advertised(session(name).advertise())
    server.key_book()
    with pytest.raises(ProtocolAborted, match="advertise: closed when share is going on"):
        server.key_book()
    with pytest.raises(ProtocolAborted, match="advertise: message of c00 when share is going on"):
        server.advertised(message)
    with pytest.raises(ProtocolAborted, match="server key: the terms name another one"):
        ServerSession(terms=TERMS, roster=ROSTER, private=crypto.fresh_secret())
    stranger = Roster(members={n: k for n, k in ROSTER.members.items() if n != "c03"})
    with pytest.raises(ProtocolAborted, match="cohort: c03 is not in the roster"):
        ServerSession(terms=TERMS, roster=stranger, private=SERVER)


# replay: nothing made under one context is accepted under another


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
    with pytest.raises(ProtocolAborted, match="roster: is another than the attempt was begun with"):
        ClientSession(roster=forged, **same)
    with pytest.raises(ProtocolAborted, match="roster: is another than the attempt was begun with"):
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


# what a client demands of the terms


def policy(colluders=0, roster=ROSTER):
    return Policy(roster=roster, settings_sha256=b"s" * 32, colluders=colluders, rounds=8)


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


# rosters, frozen sessions, fields


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
    for kind in MESSAGES:
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
