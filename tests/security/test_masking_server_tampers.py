"""Whatever a server changes, its clients stop or the round aborts; it never ends in a wrong sum."""

from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.messages import Advertise, Confirmations, KeyBook
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, names
from tests.support.masked_cohort import KEYS, PLAN, ROSTER, TERMS, K, cohort, flip, only, session, updates


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
    with pytest.raises(RoundAborted, match=r"share: [01] of 5 clients"):
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
    with pytest.raises(RoundAborted):
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
