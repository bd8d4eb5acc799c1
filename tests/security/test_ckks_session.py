"""CKKS rounds: the sum, drop-outs, and what clients and server refuse."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import DataError, ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.ckks import context as ckks
from fedproxy_secure.secagg.ckks.client import CkksClient
from fedproxy_secure.secagg.ckks.gram import GramServer
from fedproxy_secure.secagg.ckks.messages import HelloBook
from fedproxy_secure.secagg.ckks.row import leader_of, payload, read_payload, row_length
from fedproxy_secure.secagg.ckks.server import CkksServer
from fedproxy_secure.secagg.control import Control
from fedproxy_secure.secagg.selftest.rehearsal import SERVER, identities, names, ring, terms_for
from fedproxy_secure.secagg.steps import upload_key
from fedproxy_secure.secagg.terms import Roster

pytest.importorskip("tenseal")

K, D = 4, 50
KEYS, ROSTER = identities(K)
TERMS = terms_for(ring(K, D), ROSTER)  # threshold 3
CONTROL = Control(weight=0.5, clipped=7, loss=1.25, steps=10, largest=0.75)


def updates():
    rng = np.random.default_rng(0)
    return {n: rng.uniform(-1, 1, D).astype(np.float32) for n in names(K)}


def new_client(name, terms=TERMS):
    return CkksClient(name=name, identity=KEYS[name], terms=terms, roster=ROSTER)


def run(
    tamper=lambda at, who, message: message,
    lost=lambda step, who: False,
    frozen=False,
    errors=None,
    clients=None,
):
    """A round; returns the aggregate and what went wrong by client."""
    server = CkksServer(terms=TERMS, roster=ROSTER, private=SERVER)
    clients = {} if clients is None else clients
    clients |= {n: new_client(n) for n in names(K)}
    errors = {} if errors is None else errors

    def ask(step, who, action, take):
        for n in who:
            if n in errors or lost(step, n):
                continue
            try:
                message = tamper(f"{step} to server", n, action(n))
                if frozen and step != "unmask":
                    clients[n] = CkksClient.thaw(
                        clients[n].freeze(), name=n, identity=KEYS[n], terms=TERMS, roster=ROSTER
                    )
                take(message)
            except ProtocolAborted as error:
                errors[n] = str(error)

    rows = {n: payload(TERMS.plan, {"update": u}, CONTROL, TERMS.context()) for n, u in updates().items()}
    ask("advertise", names(K), lambda n: clients[n].advertise(), server.advertised)
    leader, book = server.hello_book()
    ask("share", [leader], lambda n: clients[n].share(tamper("share to client", n, book)), server.granted)
    grants = server.grants()
    ask(
        "mask",
        list(grants),
        lambda n: clients[n].mask(tamper("mask to client", n, grants[n]), rows[n]),
        server.encrypted,
    )
    total = server.total()
    ask(
        "unmask",
        total.clients,
        lambda n: clients[n].unmask(tamper("unmask to client", n, total)),
        server.opened,
    )
    return server.finish(), errors


@pytest.mark.parametrize("frozen", [False, True])
def test_an_honest_round_gives_the_sum_and_the_control_numbers(frozen):
    made, errors = run(frozen=frozen)
    assert not errors
    assert made.clients == names(K)
    expected = sum(u.astype(float) for u in updates().values())
    assert np.abs(made.sums["update"] - expected).max() < 1e-8
    assert (made.control.clients, made.control.clipped, made.control.steps) == (4, 28, 40)
    assert made.control.loss == pytest.approx(5.0)
    assert made.control.weight == pytest.approx(2.0)


LEADER = leader_of(TERMS.context(), list(names(K)))
OPENER = leader_of(b"opener" + TERMS.context(), list(names(K)))
OTHER = next(n for n in names(K) if n not in (LEADER, OPENER))


def test_a_client_lost_before_encrypting_is_not_in_the_sum():
    made, _ = run(lost=lambda step, who: step == "mask" and who == OTHER)
    assert set(made.clients) == set(names(K)) - {OTHER}
    expected = sum(u.astype(float) for n, u in updates().items() if n != OTHER)
    assert np.abs(made.sums["update"] - expected).max() < 1e-8


@pytest.mark.parametrize(
    ("lost", "line"),
    [
        (lambda step, who: step == "share", "the leader sent no key"),
        (lambda step, who: step == "advertise" and who in names(K)[:2], "advertise: 2 of 4 clients"),
        (lambda step, who: step == "mask" and who in names(K)[:2], "mask: 2 of 4 clients"),
        (lambda step, who: step == "unmask", "did not send the opened sum"),
    ],
)
def test_too_few_or_no_leader_aborts(lost, line):
    with pytest.raises(RoundAborted, match=line) as aborted:
        run(lost=lost)
    assert aborted.value.passing


def test_too_few_that_opened_alike_abort():
    others = [n for n in names(K) if n != OPENER][:2]
    with pytest.raises(RoundAborted, match="opened alike: 2 of 4"):
        run(lost=lambda step, who: step == "unmask" and who in others)


def flip(data, at=0):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("at", "who", "change", "line"),
    [
        ("advertise to server", OTHER, lambda m: replace(m, share_key=flip(m.share_key)), "verification"),
        ("share to client", LEADER, lambda b: replace(b, signatures=b.signatures[1:]), "same length"),
        ("mask to client", OTHER, lambda g: replace(g, public=flip(g.public, 99)), "key grant of"),
        ("mask to client", OTHER, lambda g: replace(g, sealed=flip(g.sealed, 99)), "key grant of"),
        ("mask to client", OTHER, lambda g: replace(g, leader="eve"), "eve does not belong"),
        ("mask to server", OTHER, lambda m: replace(m, encrypted=flip(m.encrypted, 99)), "tag of"),
        ("unmask to client", OTHER, lambda t: replace(t, clients=t.clients[:2]), "total: "),
        ("unmask to client", OTHER, lambda t: replace(t, clients=["eve", *t.clients[1:]]), "total: must"),
        ("unmask to client", OTHER, lambda t: replace(t, encrypted=b"junk"), "total: CKKS vector"),
        ("unmask to server", OTHER, lambda m: replace(m, values_sha256=bytes(32)), "verification failed"),
    ],
    ids=[f"case {i}" for i in range(10)],  # who leads differs from run to run
)
def test_what_is_altered_is_refused(at, who, change, line):
    errors = {}

    def tamper(here, name, message):
        return change(message) if (here, name) == (at, who) else message

    with contextlib.suppress(RoundAborted):
        run(tamper, errors=errors)
    assert line in errors[who]


def test_each_client_forgets_the_key():
    clients, shown = {}, {}

    def watch(at, who, message):
        shown[at] = message
        return message

    run(watch, clients=clients)
    for client in clients.values():
        assert client._key is None
        assert client._root.reveal() == b""
        with pytest.raises(ProtocolAborted, match="unmask: asked when over is next"):
            client.unmask(shown["unmask to client"])


def test_a_single_clients_ciphertext_is_not_opened_as_a_sum():
    """What a server that adds nothing would try first; a forged count would pass, as documented."""
    kept = {}

    def swap(at, who, message):
        if at == "mask to server":
            kept[who] = message.encrypted
        if at == "unmask to client":
            return replace(message, encrypted=kept[OTHER])
        return message

    with pytest.raises(RoundAborted, match="did not send the opened sum"):
        run(swap)


def test_an_opener_that_lies_about_its_hash_is_refused():

    def lie(at, who, message):
        if (at, who) != ("unmask to server", OPENER):
            return message
        return replace(message, values=flip(message.values))

    with pytest.raises(RoundAborted, match="did not send the opened sum"):
        run(lie)


def test_the_leader_checks_who_it_grants_the_key():
    hellos = {n: new_client(n).advertise() for n in names(K)}

    def book(**changes):
        columns = {
            "clients": list(names(K)),
            "share_keys": [hellos[n].share_key for n in names(K)],
            "signatures": [hellos[n].signature for n in names(K)],
        }
        return HelloBook(**(columns | changes))

    keys = book().share_keys
    mallory = crypto.agreement_public(crypto.fresh_secret())
    for changed, line in (
        (book(share_keys=[mallory, *keys[1:]]), "signature of c00: verification failed"),
        (book(clients=["eve", *names(K)[1:]]), "must name clients of the cohort"),
        (book(clients=[n for n in names(K) if n != LEADER] + [OTHER]), "must name clients of the cohort"),
        (
            HelloBook(clients=[LEADER], share_keys=keys[:1], signatures=book().signatures[:1]),
            "1 clients; must be >= 3",
        ),
    ):
        leader = new_client(LEADER)
        leader.advertise()
        with pytest.raises(ProtocolAborted, match=line):
            leader.share(changed)
    other = new_client(OTHER)
    other.advertise()
    with pytest.raises(ProtocolAborted, match="does not lead these clients"):
        other.share(book())
    with pytest.raises(ProtocolAborted, match="share: asked when over is next"):
        other.share(book())


def test_the_server_refuses_grants_and_vectors_that_do_not_belong():
    server = CkksServer(terms=TERMS, roster=ROSTER, private=SERVER)
    clients = {n: new_client(n) for n in names(K)}
    hellos = {n: c.advertise() for n, c in clients.items()}
    for n in names(K):
        server.advertised(hellos[n])
    with pytest.raises(ProtocolAborted, match="answered already"):
        server.advertised(hellos[OTHER])
    low = replace(hellos[OTHER], share_key=bytes(32))  # of low order
    low = replace(low, signature=crypto.sign(KEYS[OTHER], low.signed(TERMS.context())))
    with pytest.raises(ProtocolAborted, match=f"key of {OTHER}: verification failed"):
        CkksServer(terms=TERMS, roster=ROSTER, private=SERVER).advertised(low)
    leader, book = server.hello_book()
    grants = clients[leader].share(book)
    for bad, line in (
        (replace(grants, client=OTHER), f"share: {OTHER} does not belong there"),
        (replace(grants, sealed=grants.sealed[1:]), "one for each client"),
        (replace(grants, receivers=grants.receivers[::-1]), "one for each client"),
        (replace(grants, public=b"junk"), "CKKS key: cannot be read"),
    ):
        with pytest.raises(ProtocolAborted, match=line):
            server.granted(bad)
    server.granted(grants)
    with pytest.raises(ProtocolAborted, match=f"share: {LEADER} has answered already"):
        server.granted(grants)
    row = payload(TERMS.plan, {"update": updates()[OTHER]}, CONTROL, TERMS.context())
    good = clients[OTHER].mask(server.grants()[OTHER], row)
    key = upload_key(SERVER, hellos[OTHER].share_key, TERMS.context(), OTHER, "")
    short = ckks.encrypt(grants.public, row[:-1])
    with pytest.raises(ProtocolAborted, match=f"{OTHER}: CKKS vector: must be {row_length(TERMS.plan)}"):
        server.encrypted(replace(good, encrypted=short, tag=crypto.tag(key, short)))
    with pytest.raises(ProtocolAborted, match=r"share: message of .* when mask is going on"):
        server.granted(grants)


@pytest.mark.parametrize("server", [CkksServer, GramServer])
def test_a_server_has_the_key_that_the_terms_name_and_clients_of_its_roster(server):
    with pytest.raises(ProtocolAborted, match="server key: the terms name another one"):
        server(terms=TERMS, roster=ROSTER, private=crypto.fresh_secret())
    fewer = Roster(members={n: k for n, k in ROSTER.members.items() if n != OTHER})
    with pytest.raises(ProtocolAborted, match=f"cohort: {OTHER} is not in the roster"):
        server(terms=TERMS, roster=fewer, private=SERVER)


def test_a_message_counts_in_its_own_step_alone_and_steps_close_once():
    server = CkksServer(terms=TERMS, roster=ROSTER, private=SERVER)
    clients = {n: new_client(n) for n in names(K)}
    hellos = {n: c.advertise() for n, c in clients.items()}
    for n in names(K)[:-1]:
        server.advertised(hellos[n])
    for close, step in ((server.grants, "share"), (server.total, "mask"), (server.finish, "unmask")):
        with pytest.raises(ProtocolAborted, match=f"{step}: closed when advertise is going on"):
            close()
    leader, book = server.hello_book()
    with pytest.raises(ProtocolAborted, match="advertise: message of c03 when share is going on"):
        server.advertised(hellos["c03"])
    with pytest.raises(ProtocolAborted, match="advertise: closed when share is going on"):
        server.hello_book()
    server.granted(clients[leader].share(book))
    grants = server.grants()
    rows = {n: payload(TERMS.plan, {"update": u}, CONTROL, TERMS.context()) for n, u in updates().items()}
    sent = {n: clients[n].mask(grants[n], rows[n]) for n in grants}
    for message in sent.values():
        server.encrypted(message)
    total = server.total()
    with pytest.raises(ProtocolAborted, match="mask: message of c00 when unmask is going on"):
        server.encrypted(sent["c00"])  # after the sum was handed out, nothing is added
    opened = {n: clients[n].unmask(total) for n in total.clients}
    for message in opened.values():
        server.opened(message)
    assert server.finish().clients == names(K)[:-1]
    with pytest.raises(ProtocolAborted, match="unmask: message of c00 when over is going on"):
        server.opened(opened["c00"])


def test_an_attempt_that_failed_is_over():
    server = CkksServer(terms=TERMS, roster=ROSTER, private=SERVER)
    for n in names(K):
        server.advertised(new_client(n).advertise())
    server.hello_book()
    with pytest.raises(RoundAborted, match="the leader sent no key"):
        server.grants()
    with pytest.raises(ProtocolAborted, match="share: closed when over is going on"):
        server.grants()
    server = CkksServer(terms=TERMS, roster=ROSTER, private=SERVER)
    with pytest.raises(RoundAborted, match="advertise: 0 of 4 clients"):
        server.hello_book()
    with pytest.raises(ProtocolAborted, match="advertise: message of c00 when over is going on"):
        server.advertised(new_client("c00").advertise())


@pytest.mark.parametrize("opener", names(K))
def test_vectors_may_come_in_any_order_each_answer_once_and_the_opener_alone_opens(opener):
    rounds = (replace(TERMS, round=r) for r in range(999))
    terms = next(t for t in rounds if leader_of(b"opener" + t.context(), names(K)) == opener)
    server = CkksServer(terms=terms, roster=ROSTER, private=SERVER)
    clients = {n: new_client(n, terms) for n in reversed(names(K))}
    for client in clients.values():
        server.advertised(client.advertise())
    leader, book = server.hello_book()
    server.granted(clients[leader].share(book))
    grants = server.grants()
    for n, client in clients.items():
        row = payload(terms.plan, {"update": updates()[n]}, CONTROL, terms.context())
        sent = client.mask(grants[n], row)
        server.encrypted(sent)
        with pytest.raises(ProtocolAborted, match="answered already"):
            server.encrypted(sent)
    total = server.total()
    assert total.clients == list(names(K))
    for client in clients.values():
        opened = client.unmask(total)
        assert bool(opened.values) == (client.name == opener)
        server.opened(opened)
        with pytest.raises(ProtocolAborted, match="answered already"):
            server.opened(opened)
    expected = np.sum(list(updates().values()), axis=0, dtype=np.float64)
    assert np.abs(server.finish().sums["update"] - expected).max() < 1e-6


def until_opened():
    """A round without `OTHER`'s vector, up to the total: the server, who is in the sum, what they open."""
    server = CkksServer(terms=TERMS, roster=ROSTER, private=SERVER)
    clients = {n: new_client(n) for n in names(K)}
    for client in clients.values():
        server.advertised(client.advertise())
    leader, book = server.hello_book()
    server.granted(clients[leader].share(book))
    grants = server.grants()
    for n in set(names(K)) - {OTHER}:
        row = payload(TERMS.plan, {"update": updates()[n]}, CONTROL, TERMS.context())
        server.encrypted(clients[n].mask(grants[n], row))
    total = server.total()
    return server, total.opener, {n: clients[n].unmask(total) for n in total.clients}


def test_whoever_is_not_in_the_sum_opens_nothing():
    server, opener, opened = until_opened()
    foreign = replace(opened[opener], client=OTHER)
    foreign = replace(foreign, signature=crypto.sign(KEYS[OTHER], foreign.signed(TERMS.context())))
    with pytest.raises(ProtocolAborted, match=f"unmask: {OTHER} does not belong there"):
        server.opened(foreign)


@pytest.mark.parametrize("signed", [bytes(32), b"\xff" * 32])  # below and above any hash
def test_an_opened_sum_has_the_hash_that_was_signed(signed):
    server, opener, opened = until_opened()
    lie = replace(opened[opener], values_sha256=signed)
    lie = replace(lie, signature=crypto.sign(KEYS[opener], lie.signed(TERMS.context())))
    with pytest.raises(ProtocolAborted, match="does not have the hash it signed"):
        server.opened(lie)


def test_an_opener_that_sends_the_hash_alone_opens_nothing():
    server, opener, opened = until_opened()
    for n, message in opened.items():
        server.opened(replace(message, values=b"") if n == opener else message)
    with pytest.raises(RoundAborted, match=f"unmask: {opener} did not send the opened sum"):
        server.finish()


def test_rows_with_bad_numbers_or_a_wrong_count_are_refused():
    for bad in (np.zeros(D + 1), np.full(D, np.nan)):
        with pytest.raises(DataError, match="segment update: must be 50 finite numbers"):
            payload(TERMS.plan, {"update": bad}, CONTROL, TERMS.context())
    row = payload(TERMS.plan, {"update": np.full(D, 9.0)}, CONTROL, TERMS.context())
    assert row[:D].max() == 1.0  # clipped
    with pytest.raises(ProtocolAborted, match="sentinels: are wrong"):
        read_payload(TERMS.plan, row, TERMS.context(), 2)
    doubled = row.copy()
    doubled[D + 6 :] *= 2
    with pytest.raises(ProtocolAborted, match="count in the sum: must be 2"):
        read_payload(TERMS.plan, doubled, TERMS.context(), 2)


def test_control_numbers_go_in_units_that_keep_sums_small_and_come_back():
    control = Control(clients=1, weight=0.5, clipped=2**20, loss=1.25, steps=40, largest=0.25)
    row = payload(TERMS.plan, {"update": np.zeros(D)}, control, TERMS.context())
    np.testing.assert_allclose(row[D : D + 6], [1, 0.5, 2**-4, 1.25, 0.04, 0.25 / 1000])
    assert read_payload(TERMS.plan, row, TERMS.context(), 1).control == control
    row[D + 5] = -1e-9  # CKKS' error, where nothing moved
    assert read_payload(TERMS.plan, row, TERMS.context(), 1).control.largest == 0.0


def test_a_session_frozen_under_other_terms_is_not_thawed():
    for number in range(1, 9):  # hashes before and after that of the own terms
        frozen = new_client("c00", replace(TERMS, round=number)).freeze()
        with pytest.raises(ProtocolAborted, match="belongs to other terms"):
            CkksClient.thaw(frozen, name="c00", identity=KEYS["c00"], terms=TERMS, roster=ROSTER)


def test_a_total_that_leaves_a_client_out_is_not_opened_by_it():
    def leave_out(at, who, message):
        if (at, who) == ("unmask to client", OTHER):
            return replace(message, clients=[n for n in message.clients if n != OTHER])
        return message

    _, errors = run(leave_out)
    assert errors[OTHER] == "total: this client is missing"
