"""Ciphertexts that would end the server's process, or shut out the others', cost their sender alone."""

import io
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedproxy_secure.crypto import primitives as crypto
from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.secagg.ckks import context as ckks
from fedproxy_secure.secagg.ckks import probe as ckks_probe
from fedproxy_secure.secagg.ckks import products as ckks_gram
from fedproxy_secure.secagg.ckks.client import CkksClient
from fedproxy_secure.secagg.ckks.gram import GramClient, GramServer
from fedproxy_secure.secagg.ckks.probe import CIPHERTEXT, CONTEXTS, REFUSED, Probe, serve
from fedproxy_secure.secagg.ckks.row import payload
from fedproxy_secure.secagg.ckks.server import CkksServer
from fedproxy_secure.secagg.control import Control, Expected
from fedproxy_secure.secagg.selftest import rehearsal as stage
from fedproxy_secure.secagg.sketch import SKETCH
from fedproxy_secure.secagg.steps import upload_key

pytest.importorskip("tenseal")

K, D = 4, 50
KEYS, ROSTER = stage.identities(K)
TERMS = stage.terms_for(stage.ring(K, D), ROSTER)  # threshold 3
CONTROL = Control(weight=1.0, clipped=0, loss=1.25, steps=10, largest=0.75)


@pytest.fixture(scope="module")
def keys():
    return ckks.make_keys()


def lethal(ciphertext):
    """The ciphertext's inner array says that it is compressed, to a length that nothing has."""
    outer = ciphertext.index(b"\x28\xb5\x2f\xfd")  # of the compression around it
    inner = ciphertext.index(b"\x5e\xa1\x10\x04", outer)
    made = bytearray(ciphertext)
    made[inner + 5] = 2
    made[inner + 8 : inner + 16] = (2**40).to_bytes(8, "little")
    return bytes(made)


def of_another_scale(public, numbers):
    """What adds to nothing, as the first of a sum."""
    context = ckks.tenseal().context_from(public)
    context.global_scale = 2**40
    packed = ckks.tenseal().ckks_vector(context, numbers).serialize()
    frame = len(numbers).to_bytes(8, "little") + (1).to_bytes(4, "little")
    return frame + len(packed).to_bytes(4, "little") + packed


def test_the_lethal_bytes_do_end_a_process_that_reads_them(keys, tmp_path):
    (tmp_path / "context").write_bytes(keys.public)
    (tmp_path / "vector").write_bytes(lethal(ckks.encrypt(keys.public, np.ones(D))))
    read = (
        "import sys; from pathlib import Path; from fedproxy_secure.secagg.ckks import context as ckks; "
        "where = Path(sys.argv[1]); "
        f"ckks.CkksSum((where / 'context').read_bytes(), {D}).add((where / 'vector').read_bytes())"
    )
    ended = subprocess.run([sys.executable, "-c", read, str(tmp_path)], capture_output=True, check=False)
    assert ended.returncode < 0  # by a signal


def test_the_child_takes_no_module_from_the_folder_that_its_parent_is_in(keys, tmp_path, monkeypatch):
    (tmp_path / "resource.py").write_text("open('taken', 'w')\n")
    monkeypatch.chdir(tmp_path)
    ckks_probe._child.end()
    try:
        Probe("sum", keys.public, D).check(ckks.encrypt(keys.public, np.ones(D)))
    finally:
        ckks_probe._child.end()
        assert not (tmp_path / "taken").exists()


def test_a_vector_of_another_scale_is_refused_though_it_would_add_to_nothing_as_the_first(keys):
    total = ckks.CkksSum(keys.public, D)
    with pytest.raises(DataError, match="is of another scale or level"):
        total.add(of_another_scale(keys.public, np.ones(D)))
    with pytest.raises(DataError, match="is of another scale or level"):
        ckks.decrypt(keys.secret, of_another_scale(keys.public, np.ones(D)), D)
    total.add(ckks.encrypt(keys.public, np.ones(D)))
    np.testing.assert_allclose(ckks.decrypt(keys.secret, total.packed(), D), 1, atol=1e-6)


def test_products_at_a_scale_that_nothing_has_are_refused_by_whoever_opens_them():
    made = ckks_gram.make_keys()
    sketch = ckks_gram.encrypt(made.secret, np.ones(SKETCH))
    (product,) = ckks_gram.products(made.public, [sketch, sketch])
    huge = product.replace(struct.pack("<d", 2.0**40), struct.pack("<d", 2.0**300))
    with pytest.raises(DataError, match="products: do not decrypt"):
        ckks_gram.open_products(made.secret, [huge])


def test_a_probe_takes_good_ciphertexts_and_outlives_lethal_ones(keys):
    probe = Probe("sum", keys.public, D)
    good = ckks.encrypt(keys.public, np.ones(D))
    probe.check(good)
    for bad in (lethal(good), b"", b"junk", good[:-1], of_another_scale(keys.public, np.ones(D))):
        with pytest.raises(DataError, match="CKKS vector: must be 50 numbers, as `encrypt` makes it"):
            probe.check(bad)
        probe.check(good)
    other = ckks.make_keys()
    with pytest.raises(DataError, match="CKKS key: cannot be read"):
        Probe("sum", b"junk", D)
    with pytest.raises(DataError, match="has other parameters"):
        Probe("sketch", other.public, SKETCH)


def test_probes_of_two_sessions_share_a_child_and_keep_their_contexts(keys):
    sketching = ckks_gram.make_keys()
    sums, sketches = Probe("sum", keys.public, D), Probe("sketch", sketching.public, SKETCH)
    vector = ckks.encrypt(keys.public, np.ones(D))
    sketch = ckks_gram.encrypt(sketching.secret, np.ones(SKETCH))
    for _ in range(2):
        sums.check(vector)
        sketches.check(sketch)
        with pytest.raises(DataError, match=f"CKKS vector: must be {SKETCH} numbers"):
            sketches.check(vector)
        with pytest.raises(DataError, match=f"CKKS vector: must be {D} numbers"):
            sums.check(sketch)


def test_a_child_that_was_ended_or_does_not_answer_is_replaced(keys, monkeypatch):
    probe, good = Probe("sum", keys.public, D), ckks.encrypt(keys.public, np.ones(D))
    ckks_probe._child.process.kill()
    ckks_probe._child.process.wait()
    with pytest.raises(DataError, match="CKKS vector: must be"):
        probe.check(good)
    probe.check(good)
    silent = ckks_probe._child.process
    silent.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(ckks_probe, "PATIENCE_S", 0.1)
        with pytest.raises(DataError, match="CKKS vector: must be"):
            probe.check(b"few bytes, which the pipe holds")
    assert silent.poll() is not None
    probe.check(good)
    ckks_probe._child.end()
    ckks_probe._child.end()
    probe.check(good)


def test_the_child_answers_frame_by_frame_until_its_input_ends(keys):
    good = ckks.encrypt(keys.public, np.ones(D))
    sketching = ckks_gram.make_keys()
    sketch = ckks_gram.encrypt(sketching.secret, np.ones(SKETCH))
    frames = [
        (CIPHERTEXT, good, b"-"),  # before any context
        (CONTEXTS["sum"], keys.public, b"+"),
        (CIPHERTEXT, good, b"+"),
        (CIPHERTEXT, b"junk", b"-"),
        (CONTEXTS["sum"], b"junk", b"-"),
        (CIPHERTEXT, good, b"-"),  # the context is gone
        (CONTEXTS["sketch"], sketching.public, b"+"),
        (CIPHERTEXT, sketch, b"+"),
    ]
    source = b"".join(ckks_probe._HEAD.pack(what, D, len(data)) + data for what, data, _ in frames)
    sink = io.BytesIO()
    serve(io.BytesIO(source + b"\x00"), sink)
    assert sink.getvalue() == b"".join(answer for _, _, answer in frames)


def test_the_child_that_runs_has_these_limits(keys):
    Probe("sum", keys.public, D)
    lines = Path(f"/proc/{ckks_probe._child.process.pid}/limits").read_text().splitlines()
    limits = {line[:25].strip(): line[25:].split()[:2] for line in lines}
    assert limits["Max address space"] == [str(ckks_probe.MOST_MEMORY)] * 2
    assert limits["Max core file size"] == ["0", "0"]


@pytest.mark.parametrize(("most", "answer"), [(2**31, b""), (2**45, REFUSED)], ids=["limit", "without"])
def test_a_child_that_needs_more_memory_than_its_limit_ends_without_an_answer(monkeypatch, most, answer):
    """The length of a frame, 2 GiB, is what it reserves before it reads what little there is."""
    program = f"from fedproxy_secure.secagg.ckks import probe; probe.MOST_MEMORY = {most}; probe.main()"
    monkeypatch.setattr(ckks_probe, "_PROGRAM", program)
    child = ckks_probe._started()
    said, _ = child.communicate(ckks_probe._HEAD.pack(CIPHERTEXT, D, 2**31) + b"few")
    assert (said, child.returncode != 0) == (answer, answer == b"")


def test_the_child_sets_its_limits_before_it_serves(monkeypatch):
    limits, served_under = {}, []
    source, sink = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: limits.update({what: pair}))
    monkeypatch.setattr(sys, "stdin", type("In", (), {"buffer": source}))
    monkeypatch.setattr(sys, "stdout", type("Out", (), {"buffer": sink}))
    monkeypatch.setattr(ckks_probe, "serve", lambda *streams: served_under.append((streams, dict(limits))))
    ckks_probe.main()
    most = ckks_probe.MOST_MEMORY
    assert served_under == [
        ((source, sink), {resource.RLIMIT_AS: (most, most), resource.RLIMIT_CORE: (0, 0)})
    ]


# an insider: its signatures and tags are good


def set_up(server_kind, client_kind, **more):
    server = server_kind(terms=TERMS, roster=ROSTER, private=stage.SERVER, **more)
    clients = {n: client_kind(name=n, identity=KEYS[n], terms=TERMS, roster=ROSTER) for n in TERMS.cohort}
    hellos = {n: c.advertise() for n, c in clients.items()}
    for hello in hellos.values():
        server.advertised(hello)
    leader, book = server.hello_book()
    grants = clients[leader].share(book)
    return server, clients, hellos, grants


def tagged(message, hellos, encrypted):
    """The message with other bytes, under the tag that its sender can make."""
    key = upload_key(stage.SERVER, hellos[message.client].share_key, TERMS.context(), message.client, "")
    return replace(message, encrypted=encrypted, tag=crypto.tag(key, encrypted))


@pytest.mark.parametrize("kind", ["lethal", "another scale", "junk"])
def test_one_clients_vector_ends_neither_the_server_nor_the_sum(kind):
    """As the first of the sum: one of another scale made every later, honest one an exception."""
    server, clients, hellos, grants = set_up(CkksServer, CkksClient)
    server.granted(grants)
    granted = server.grants()
    row = payload(TERMS.plan, {"update": np.full(D, 0.5)}, CONTROL, TERMS.context())
    vectors = {n: c.mask(granted[n], row) for n, c in clients.items()}
    bad = {
        "lethal": lethal(vectors["c00"].encrypted),
        "another scale": of_another_scale(grants.public, row),
        "junk": b"junk",
    }[kind]
    with pytest.raises(ProtocolAborted, match="c00: CKKS vector: must be"):
        server.encrypted(tagged(vectors["c00"], hellos, bad))
    for n in TERMS.cohort[1:]:
        server.encrypted(vectors[n])
    total = server.total()
    for n in total.clients:
        server.opened(clients[n].unmask(total))
    made = server.finish()
    assert made.clients == TERMS.cohort[1:]
    np.testing.assert_allclose(made.sums["update"], 1.5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lethal", "junk"])
def test_one_clients_sketch_ends_neither_the_server_nor_the_products(keys, kind):
    server, clients, hellos, grants = set_up(GramServer, GramClient)
    server.granted(grants)
    granted = server.grants()
    rng = np.random.default_rng(0)
    sketches = {n: c.sketch(granted[n], rng.normal(size=D)) for n, c in clients.items()}
    frame = 16  # in front of the ciphertext of a vector
    bad = lethal(ckks.encrypt(keys.public, np.ones(D)))[frame:] if kind == "lethal" else b"junk"
    with pytest.raises(ProtocolAborted, match="c00: CKKS vector: must be 4096 numbers"):
        server.sketched(tagged(sketches["c00"], hellos, bad))
    for n in TERMS.cohort[1:]:
        server.sketched(sketches[n])
    assert server.products().clients == list(TERMS.cohort[1:])


@pytest.mark.parametrize(("server", "client"), [(CkksServer, CkksClient), (GramServer, GramClient)])
def test_a_leaders_context_that_cannot_be_read_is_refused_when_it_comes(server, client):
    made, _, _, grants = set_up(server, client)
    with pytest.raises(ProtocolAborted, match="CKKS key: cannot be read"):
        made.granted(replace(grants, public=b"junk"))
    made.granted(grants)


# the opened sum


def opened_by_all(change=lambda values: values, expected=None):
    """A round whose opened numbers are changed by clients that all agree to lie."""
    server, clients, _, grants = set_up(CkksServer, CkksClient, expected=expected)
    server.granted(grants)
    row = payload(TERMS.plan, {"update": np.full(D, 0.5)}, CONTROL, TERMS.context())
    for n, grant in server.grants().items():
        server.encrypted(clients[n].mask(grant, row))
    total = server.total()
    for n in total.clients:
        honest = clients[n].unmask(total)
        if honest.values:
            honest_values = np.frombuffer(honest.values)
    raw = change(honest_values.copy()).tobytes()
    for n in total.clients:
        message = replace(
            honest, client=n, values=raw if n == total.opener else b"", values_sha256=crypto.digest(raw)
        )
        signature = crypto.sign(KEYS[n], message.signed(TERMS.context()))
        server.opened(replace(message, signature=signature))
    return server.finish()


def at(place, value):
    def change(values):
        values[D + place] = value
        return values

    return change


EXACT = Expected(least_weight=1.0, steps=10, coordinates=D)


def test_an_opened_sum_as_the_settings_imply_passes():
    assert opened_by_all(expected=EXACT).control.steps == 40


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (at(1, 2.0**-20), "weight in the sum is 9.53674e-07: must be 3.999 to 4.001"),
        (at(2, 1.0), "clipped in the sum is 1.67772e[+]07"),
        (at(3, np.nan), "opened row: must be 72 finite numbers"),
        (at(3, -1.0), "loss in the sum is -1"),
        (at(4, 0.041), "steps in the sum is 41: must be 40"),
        (at(5, 5.0), "largest in the sum is 5000"),
    ],
)
def test_an_opened_sum_that_honest_clients_cannot_have_is_refused(change, line):
    with pytest.raises(ProtocolAborted, match=line):
        opened_by_all(change, expected=EXACT)


@pytest.mark.parametrize("size", [1, 8, 8 * 71, 8 * 73])
def test_an_opened_sum_of_another_length_is_refused_when_it_comes(size):
    with pytest.raises(ProtocolAborted, match=f"opened by c0.: has {size} bytes"):
        opened_by_all(lambda values: np.zeros(size, np.uint8))


def test_strangers_to_the_roster_are_refused():
    keys, roster = stage.identities(3)
    with pytest.raises(ProtocolAborted, match="c03 is not in the roster"):
        CkksServer(terms=TERMS, roster=roster, private=stage.SERVER)
    assert len(keys) == 3
