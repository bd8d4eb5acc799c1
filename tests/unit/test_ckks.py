"""CKKS sums are right to 1e-8, small, and refuse what is not theirs."""

import sys

import numpy as np
import pytest

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.protect.ckks import CKKS
from fedproxy_secure.secagg.ckks import context as ckks
from fedproxy_secure.secagg.ckks.row import CKKS_ERROR, payload, read_payload, row_length
from fedproxy_secure.secagg.control import SEGMENTS, Control
from fedproxy_secure.secagg.granularity import Layout, contribution, merge, segments_of
from fedproxy_secure.secagg.ring import RingPlan

pytest.importorskip("tenseal")


@pytest.fixture(scope="module")
def keys():
    return ckks.make_keys()


@pytest.mark.parametrize("length", [0, 1, ckks.SLOTS - 1, ckks.SLOTS, ckks.SLOTS + 1, 20_000])
def test_the_sum_of_sixteen_vectors_is_right_to_1e_8(keys, length):
    rng = np.random.default_rng(length)
    vectors = [rng.normal(0, 0.01, length) for _ in range(16)]
    total = ckks.CkksSum(keys.public, length)
    for v in vectors:
        total.add(ckks.encrypt(keys.public, v))
    opened = ckks.decrypt(keys.secret, total.packed(), length)
    assert np.abs(opened - np.sum(vectors, axis=0)).max(initial=0) < 1e-8


def test_sums_up_to_the_bound_do_not_wrap(keys):
    total = ckks.CkksSum(keys.public, 3)
    half = np.array([0.99, -0.99, 0.5]) * ckks.BOUND
    for _ in range(2):
        total.add(ckks.encrypt(keys.public, half))
    assert np.abs(ckks.decrypt(keys.secret, total.packed(), 3) - 2 * half).max() < 1e-8


def test_the_bound_is_8192(keys):
    opened = ckks.decrypt(keys.secret, ckks.encrypt(keys.public, np.array([8191.9, -8191.9])), 2)
    assert np.abs(opened - [8191.9, -8191.9]).max() < 1e-8
    with pytest.raises(DataError, match="must be below 8192"):
        ckks.encrypt(keys.public, np.array([-8192.0]))


def test_a_vector_of_no_numbers_stays_one(keys):
    assert ckks.decrypt(keys.secret, ckks.encrypt(keys.public, np.empty(0)), 0).shape == (0,)


def test_a_number_takes_at_most_33_bytes(keys):
    made = ckks.encrypt(keys.public, np.zeros(10**5))
    assert len(made) <= 33 * 10**5
    assert ckks.expected_bytes(10**5) == pytest.approx(len(made), rel=1e-3)


def test_what_leaves_a_decryption_lies_on_the_public_grid(keys):
    opened = ckks.decrypt(keys.secret, ckks.encrypt(keys.public, np.linspace(-1, 1, 999)), 999)
    steps = opened * 2**27
    assert np.array_equal(steps, np.round(steps))
    assert (np.round(steps) % 2 != 0).any()  # and on no coarser one


def test_the_public_context_cannot_decrypt_and_another_key_gives_nothing(keys):
    encrypted = ckks.encrypt(keys.public, np.ones(10))
    with pytest.raises(DataError, match="is a public one"):
        ckks.decrypt(Secret(keys.public), encrypted, 10)
    with pytest.raises(DataError, match="the key is not its own"):
        ckks.decrypt(ckks.make_keys().secret, encrypted, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, ckks.BOUND, -ckks.BOUND])
def test_values_that_do_not_fit_are_refused(keys, bad):
    with pytest.raises(DataError, match="for CKKS"):
        ckks.encrypt(keys.public, np.array([0.0, bad]))
    with pytest.raises(DataError, match="for CKKS"):
        ckks.encrypt(keys.public, np.zeros((2, 2)))


def test_frames_that_are_not_whole_are_refused_and_change_nothing(keys):
    good = ckks.encrypt(keys.public, np.ones(5000))
    total = ckks.CkksSum(keys.public, 5000)
    total.add(good)
    before = total.packed()
    short = ckks.encrypt(keys.public, np.ones(4999))
    alone = ckks.encrypt(keys.public, np.ones(4096))
    for bad in (
        ckks._HEAD.pack(5000, 1) + alone[ckks._HEAD.size :],
        ckks._HEAD.pack(5000, 3) + good[ckks._HEAD.size :],
        ckks._HEAD.pack(4999, 2) + good[ckks._HEAD.size :],
        ckks._HEAD.pack(5000, 2) + short[ckks._HEAD.size :],
        b"",
        good[:-1],
        good + b"x",
        good[:40],
        good[:13],
        b"\1" + good[1:],
        good[:20] + b"\0" + good[21:],
    ):
        with pytest.raises(DataError, match="CKKS vector: must be 5000 numbers"):
            total.add(bad)
    with pytest.raises(DataError, match="CKKS vector: must be 5000"):
        total.add(ckks.encrypt(keys.public, np.ones(4999)))
    assert total.packed() == before


def test_one_vector_made_of_two_ciphertexts_is_refused(keys):
    """Serialised vectors put end to end are read as one, of both lengths together."""
    context = ckks._context(keys.public)
    halves = [ckks.tenseal().ckks_vector(context, [1.0, 2.0]).serialize() for _ in range(2)]
    joined = b"".join(halves)
    assert ckks.tenseal().ckks_vector_from(context, joined).size() == 4
    with pytest.raises(DataError, match="CKKS vector: must be 4 numbers"):
        ckks.CkksSum(keys.public, 4).add(ckks._HEAD.pack(4, 1) + ckks._SIZE.pack(len(joined)) + joined)


def test_keys_of_other_parameters_and_junk_are_refused(keys):
    import tenseal as ts

    weaker = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 60])
    weaker.global_scale = 2**40
    with pytest.raises(DataError, match="degree, bits, moduli, scale"):
        ckks.encrypt(weaker.serialize(), np.ones(3))
    other = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60])
    other.global_scale = 2**40
    with pytest.raises(DataError, match="degree, bits, moduli, scale"):
        ckks.encrypt(other.serialize(), np.ones(3))
    for junk in (b"", b"junk", keys.public[:1000]):
        with pytest.raises(DataError, match="CKKS key: cannot be read"):
            ckks.encrypt(junk, np.ones(3))
    vector = ts.ckks_vector(other, [1.0, 2.0, 3.0]).serialize()
    framed = ckks._HEAD.pack(3, 1) + ckks._SIZE.pack(len(vector)) + vector
    with pytest.raises(DataError, match="CKKS vector"):
        ckks.CkksSum(keys.public, 3).add(framed)


def test_without_tenseal_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match="needs the extra `ckks`"):
        ckks.require()


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4, 1e-5, 1e-8])
def test_elections_by_blocks_are_right_however_small_the_updates(keys, scale):
    clients, layout, context = 4, Layout(sizes=(2000,)), b"c" * 32
    rng = np.random.default_rng(0)
    tau = (scale * (rng.normal(size=(clients, 2000)) + 0.5 * rng.normal(size=2000))).astype(np.float32)
    clip = 1.2 * float(np.abs(tau).max())
    segments = segments_of("block", layout, clip=clip, clients=clients, bits=32)
    plan = RingPlan(bits=32, clients=clients, segments=(*segments, *SEGMENTS))
    control = Control(weight=1.0, clipped=0, loss=1.0, steps=1, largest=0.8)
    total, length = ckks.CkksSum(keys.public, row_length(plan)), row_length(plan)
    sent = [contribution(t, "block", layout, plan) for t in tau]
    for values in sent:
        total.add(ckks.encrypt(keys.public, payload(plan, values, control, context)))
    opened = read_payload(plan, ckks.decrypt(keys.secret, total.packed(), length), context, clients)
    exact = {n: np.sum([v[n] for v in sent], axis=0, dtype=np.float64) for n in ("update", "squares")}
    made, wanted = (
        merge(s, "block", layout, plan, clients=clients, weight=float(clients), rho=1.1, error=CKKS_ERROR)
        for s in (opened.sums, exact)
    )
    assert np.linalg.norm(made.step - wanted.step) < 1e-4 * np.linalg.norm(wanted.step)
    assert np.abs(made.conflict - wanted.conflict).max() < 1e-3
    assert np.abs(opened.sums["update"] - exact["update"]).max() / clients < CKKS.rounding_of(plan)
