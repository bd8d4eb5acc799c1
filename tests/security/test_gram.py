"""Weights from encrypted cosines: right when all are honest, refused when something was altered."""

from dataclasses import replace

import numpy as np
import pytest

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import DataError, ProtocolAborted, RoundAborted
from fedproxy_secure.secagg.ckks import context as ckks
from fedproxy_secure.secagg.ckks import gram
from fedproxy_secure.secagg.ckks import products as ckks_gram
from fedproxy_secure.secagg.ckks.gram import GramClient, GramProducts, GramServer, agreed_hash
from fedproxy_secure.secagg.selftest import rehearsal as stage
from fedproxy_secure.secagg.sketch import SKETCH, count_sketch
from fedproxy_secure.secagg.terms import Terms

pytest.importorskip("tenseal")

K = 3
KEYS, ROSTER = stage.identities(K)
TERMS = stage.terms_for(stage.ring(K, 50), ROSTER)
RNG = np.random.default_rng(0)
COMMON = RNG.normal(size=5000)
UPDATES = {n: COMMON + (i + 0.5) * RNG.normal(size=5000) for i, n in enumerate(TERMS.cohort)}


ANOTHER = ckks_gram.make_keys()
SECRET_OF_ALL = ANOTHER.secret.reveal()
WHOLE_SKETCH = ckks_gram.encrypt(ANOTHER.secret, np.ones(4096))


def new_client(name, terms=TERMS):
    return GramClient(name=name, identity=KEYS[name], terms=terms, roster=ROSTER)


def new_server():
    return GramServer(terms=TERMS, roster=ROSTER, private=stage.SERVER)


def run(tamper=lambda at, name, message: message, lost=lambda at, name: False, frozen=False):
    """Server, and what each client opened."""
    server, clients = new_server(), {n: new_client(n) for n in TERMS.cohort}

    def ask(at, names, act, take):
        for n in names:
            if lost(at, n):
                continue
            answer = act(clients[n], n)
            if frozen and at != "weigh":
                clients[n] = GramClient.thaw(
                    clients[n].freeze(), name=n, identity=KEYS[n], terms=TERMS, roster=ROSTER
                )
            take(tamper(f"{at} to server", n, answer))

    ask("hello", TERMS.cohort, lambda c, n: c.advertise(), server.advertised)
    leader, book = server.hello_book()
    ask("share", [leader], lambda c, n: c.share(tamper("share", n, book)), server.granted)
    grants = server.grants()
    ask(
        "sketch",
        sorted(grants),
        lambda c, n: c.sketch(tamper("sketch", n, grants[n]), UPDATES[n]),
        server.sketched,
    )
    products, opened = server.products(), {}
    ask(
        "weigh",
        products.clients,
        lambda c, n: opened.setdefault(n, c.weigh(tamper("weigh", n, products), r0=1.0, delta=0.2)),
        lambda answer: None,
    )
    return server, opened


@pytest.mark.parametrize("frozen", [False, True])
def test_all_clients_open_the_same_cosines_and_take_the_places_they_give(frozen):
    _, opened = run(frozen=frozen)
    assert len({o.gram_sha256 for o in opened.values()}) == 1
    weights = [opened[n].standing.weight for n in TERMS.cohort]
    assert max(weights) == weights[0] == 1 > weights[1] > weights[2]
    assert opened["c02"].standing.retention == pytest.approx(0.8)


def test_the_server_alone_cannot_open_what_it_multiplies():
    keys = ckks_gram.make_keys()
    made = ckks_gram.encrypt(keys.secret, count_sketch(COMMON, b"x"))
    found = ckks_gram.products(keys.public, [made, made])
    assert ckks_gram.open_products(keys.secret, found) == pytest.approx([1.0], abs=1e-4)
    with pytest.raises(DataError, match="is a public one"):
        ckks_gram.open_products(Secret(keys.public), found)


def test_another_attempt_has_another_hash_for_the_same_cosines():
    first, second = run()[1], run()[1]
    assert first["c00"].gram_sha256 != second["c00"].gram_sha256  # salted with a fresh key


def sketches_of_one_update(monkeypatch, update, terms):
    """What a client encrypts of `update` in attempts under each of `terms`."""
    monkeypatch.setattr(ckks_gram, "encrypt", lambda key, sketch: sketch.tobytes())
    found = []
    for t in terms:
        client = new_client("c00", t)
        client._accept = lambda grant: Secret(SECRET_OF_ALL)
        found.append(np.frombuffer(client._sketch(None, update).encrypted))
    return found


def shortest_fit(sketches, seeds, d):
    """The shortest vector with these sketches, nearly, by conjugate gradients."""
    maps = []
    for seed in seeds:
        rng = np.random.default_rng(list(seed))
        maps.append((rng.integers(SKETCH, size=d), 2.0 * rng.integers(2, size=d) - 1))

    def down(u):
        return [np.bincount(p, weights=s * u, minlength=SKETCH) for p, s in maps]

    def up(rows):
        return sum(s * row[p] for (p, s), row in zip(maps, rows, strict=True))

    fit, rest = np.zeros(d), up(sketches)
    way, size = rest.copy(), rest @ rest
    for _ in range(100):
        turned = up(down(way))
        pace = size / (way @ turned)
        fit, rest = fit + pace * way, rest - pace * turned
        way, size = rest + rest @ rest / size * way, rest @ rest
        if size < 1e-16:
            break
    return fit


@pytest.mark.parametrize("seeds", ["of the round", "of the attempt"])
def test_five_attempts_sketches_tell_no_more_than_one_unless_the_attempt_seeded_them(monkeypatch, seeds):
    d = 3 * SKETCH
    update = np.random.default_rng(1).normal(size=d)
    attempts = [replace(TERMS, attempt=n, server_key=bytes([n + 1]) * 32) for n in range(5)]
    if seeds == "of the attempt":
        monkeypatch.setattr(Terms, "sketch_seed", Terms.context)
    used = [t.sketch_seed() for t in attempts]
    monkeypatch.setattr(gram, "upload_key", lambda *parts: Secret(b"k" * 32))
    found = sketches_of_one_update(monkeypatch, update, attempts)
    cosines = []
    for n in (1, 5):
        fit = shortest_fit(found[:n], used[:n], d)
        cosines.append(fit @ update / np.linalg.norm(fit) / np.linalg.norm(update))
    if seeds == "of the attempt":
        assert cosines[1] > 0.99 > 0.7 > cosines[0]
    else:
        assert all(np.array_equal(s, found[0]) for s in found)
        assert cosines[1] == pytest.approx(cosines[0], abs=1e-6)


def test_two_rounds_runs_or_broadcast_adapters_have_different_sketches(monkeypatch):
    monkeypatch.setattr(gram, "upload_key", lambda *parts: Secret(b"k" * 32))
    others = [{"round": 1}, {"run": "another"}, {"broadcast_sha256": b"c" * 32}]
    terms = [TERMS, *(replace(TERMS, **change) for change in others)]
    first, *rest = sketches_of_one_update(monkeypatch, COMMON, terms)
    assert all(abs(first @ other) < 0.1 for other in rest)


def test_one_who_drops_before_the_sketch_leaves_too_few_of_three():
    with pytest.raises(RoundAborted, match="sketch: 2 of 3 clients"):
        run(lost=lambda at, name: (at, name) == ("sketch", "c01"))


def test_without_the_leader_s_key_nothing_goes_on():
    with pytest.raises(RoundAborted, match="the leader sent no key"):
        run(lost=lambda at, name: at == "share")


def test_a_client_shown_other_products_opens_another_hash_and_the_rest_do_not_follow_it():
    def turn(at, name, message):
        if at == "weigh" and name == "c01":
            return replace(message, products=message.products[::-1])
        return message

    _, opened = run(turn)
    hashes = {n: o.gram_sha256 for n, o in opened.items()}
    assert hashes["c00"] == hashes["c02"] != hashes["c01"]
    assert agreed_hash(hashes, threshold=2) == hashes["c00"]
    with pytest.raises(RoundAborted, match="2 clients opened the same cosines; must be >= 3"):
        agreed_hash(hashes, threshold=3)


def test_the_same_cosines_under_other_names_are_another_hash():
    """Who stands where is bound too: a weight must not move from one client to another."""
    keys, roster = stage.identities(4)
    terms = stage.terms_for(stage.ring(4, 50), roster)  # threshold 3: names may differ
    alike = np.full(3, 0.5)

    def opened(third):
        client = GramClient(name="c00", identity=keys["c00"], terms=terms, roster=roster)
        client._key = Secret(SECRET_OF_ALL)
        public = ckks.tenseal().context_from(SECRET_OF_ALL)
        products = [ckks.tenseal().ckks_vector(public, [v]).serialize() for v in alike]
        client._step = "unmask"
        message = GramProducts(clients=["c00", "c01", third], products=products)
        return client.weigh(message, r0=1.0, delta=0.2), client

    (one, client), (two, _), (again, _) = opened("c02"), opened("c03"), opened("c02")
    assert one.standing == two.standing
    assert one.gram_sha256 == again.gram_sha256 != two.gram_sha256
    # and it has forgotten the key
    assert client._key is None
    assert client._root.reveal() == b""
    with pytest.raises(ProtocolAborted, match="asked when over is next"):
        client.weigh(GramProducts(clients=[], products=[]), r0=1.0, delta=0.2)


def test_the_hash_is_in_the_masking_context():
    assert replace(TERMS, gram_sha256=b"g" * 32).context() != TERMS.context()


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("at", "who", "change", "line"),
    [
        (
            "sketch",
            "c01",
            lambda m: replace(m, sealed=flip(m.sealed)),
            "key grant .*verification failed",
        ),
        ("sketch", "c01", lambda m: replace(m, leader="nobody"), "does not belong there"),
        ("sketch to server", "c01", lambda m: replace(m, encrypted=flip(m.encrypted)), "tag of c01"),
        ("sketch to server", "c01", lambda m: replace(m, client="c00"), "answered already"),
        ("weigh", "c01", lambda m: replace(m, clients=m.clients[::-1]), "must be sorted"),
        ("weigh", "c01", lambda m: replace(m, clients=["c00", "c02", "x"]), "each once"),
        ("weigh", "c01", lambda m: replace(m, products=m.products[:2]), "products: 2; must be 3"),
        ("weigh", "c01", lambda m: replace(m, products=[b"x"] * 3), "must be one of 1 numbers"),
        (
            "weigh",
            "c01",
            lambda m: replace(m, products=[WHOLE_SKETCH] * 3),
            "must be one of 1 numbers",
        ),
    ],
)
def test_what_is_altered_is_refused(at, who, change, line):
    def tamper(here, name, message):
        return change(message) if (here, name) == (at, who) else message

    with pytest.raises(ProtocolAborted, match=line):
        run(tamper)


def test_a_server_that_makes_up_products_cannot_give_one_client_all_the_weight():
    """It has the public context and can encrypt: cosines that no vectors have are refused."""
    key = {}

    def tamper(at, name, message):
        if at == "share to server":
            key["public"] = message.public
        if at == "weigh":
            context = ckks.tenseal().context_from(key["public"])
            claimed = [1.0, 1.0, -1.0]
            made = [ckks.tenseal().ckks_vector(context, [v]).serialize() for v in claimed]
            return replace(message, products=made)
        return message

    with pytest.raises(ProtocolAborted, match="are no cosines of vectors"):
        run(tamper)


def test_numbers_under_another_key_are_refused():
    other = ckks_gram.make_keys()
    context = ckks.tenseal().context_from(other.public)

    def tamper(at, name, message):
        if at == "weigh":
            made = ckks.tenseal().ckks_vector(context, [0.5]).serialize()
            return replace(message, products=[made] * 3)
        return message

    with pytest.raises(ProtocolAborted, match="products"):
        run(tamper)


def test_a_client_that_cannot_make_a_sketch_leaves():
    clients = {n: new_client(n) for n in TERMS.cohort}
    server = new_server()
    for client in clients.values():
        server.advertised(client.advertise())
    leader, book = server.hello_book()
    server.granted(clients[leader].share(book))
    with pytest.raises(ProtocolAborted, match="sketch: update: holds NaN"):
        clients["c00"].sketch(server.grants()["c00"], np.full(10, np.nan))


def test_sketches_that_do_not_multiply_abort():
    keys = ckks_gram.make_keys()
    with pytest.raises(DataError, match="must be one of 4096 numbers"):
        ckks_gram.products(keys.public, [b"x", b"y"])
    with pytest.raises(DataError, match="CKKS key: cannot be read"):
        ckks_gram.products(b"x", [])
    library = ckks.tenseal()
    more_moduli = library.context(library.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[40, 40, 40, 40])
    more_moduli.global_scale = 2**40  # as many bits, one level more
    for other in (ckks.make_keys().public, more_moduli.serialize()):
        with pytest.raises(DataError, match="CKKS key: degree, bits, moduli, scale"):
            ckks_gram.products(other, [])
    with pytest.raises(DataError, match="must be 4096 finite numbers"):
        ckks_gram.encrypt(keys.secret, np.zeros(5))
    with pytest.raises(DataError, match="must be 4096 finite numbers"):
        ckks_gram.encrypt(keys.secret, np.where(np.arange(4096) == 7, np.nan, 1.0))
    halves = [ckks.tenseal().ckks_vector(ckks_gram._context(keys.secret.reveal()), np.ones(2048))] * 2
    with pytest.raises(DataError, match="must be one of 4096 numbers"):  # it reads as one vector of 4096
        ckks_gram.products(keys.public, [b"".join(h.serialize() for h in halves)] * 2)
    made = ckks_gram.encrypt(keys.secret, np.ones(4096))
    with pytest.raises(DataError, match="cannot be multiplied under this key"):
        ckks_gram.products(keys.secret.reveal(), [made, made])  # it has no rotation keys

    server = new_server()
    for n in TERMS.cohort:
        server.advertised(new_client(n).advertise())
    server._grants, server._step = replace_public(keys.public), "sketch"
    server._sketches = dict.fromkeys(TERMS.cohort, b"x")
    with pytest.raises(ProtocolAborted, match="sketch: ciphertext"):
        server.products()


def replace_public(public):
    from fedproxy_secure.secagg.ckks.messages import KeyGrants

    return KeyGrants(client="c00", share_key=b"", public=public, receivers=[], sealed=[], signatures=[])


def test_nobody_agrees_when_nobody_answers():
    with pytest.raises(RoundAborted, match="0 clients opened"):
        agreed_hash({}, threshold=2)
