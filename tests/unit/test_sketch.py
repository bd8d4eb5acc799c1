"""Sketches keep cosines, and cosines give the weights that fusion in the clear computes."""

import numpy as np
import pytest

from fedproxy_secure.errors import DataError, ProtocolAborted
from fedproxy_secure.federate.fusion import algorithms
from fedproxy_secure.secagg.likeness import retention
from fedproxy_secure.secagg.sketch import LEAST_WEIGHT, SKETCH, count_sketch, gram_of, standing


def updates(clients=5, d=20_000, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=d)
    return np.stack([common + (i + 0.5) * rng.normal(size=d) for i in range(clients)]).astype(np.float32)


def pairs(cosines):
    return cosines[np.triu_indices(len(cosines), 1)]


def test_the_error_of_a_cosine_is_as_large_as_theory_says_and_no_larger():
    tau = updates(2)
    exact = pairs(algorithms.pairwise_cosines(tau))[0]
    found = [
        count_sketch(tau[0], bytes([i])) @ count_sketch(tau[1], bytes([i])) - exact for i in range(200)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    wanted = (1 - exact**2) / np.sqrt(SKETCH)  # of unit vectors, scaled by their own sketches
    assert 0.8 * wanted < np.std(found) < 1.25 * wanted


def test_updates_that_share_nothing_but_their_sign_do_not_look_alike():
    """Were signs not drawn, or not balanced, what falls into one place would add up."""
    odd = np.arange(20_000) % 2
    found = [count_sketch(odd, bytes([i])) @ count_sketch(1 - odd, bytes([i])) for i in range(50)]
    assert abs(np.mean(found)) < 5 / np.sqrt(50 * SKETCH)


def test_another_seed_is_another_sketch_and_the_same_seed_the_same():
    tau = updates(1)[0]
    assert np.array_equal(count_sketch(tau, b"a"), count_sketch(tau, b"a"))
    assert abs(count_sketch(tau, b"a") @ count_sketch(tau, b"b")) < 0.1
    assert np.linalg.norm(count_sketch(tau, b"a")) == pytest.approx(1)


def test_an_update_of_zeros_has_a_sketch_of_zeros_and_a_broken_one_none():
    assert not count_sketch(np.zeros(10), b"a").any()
    with pytest.raises(DataError, match="holds NaN"):
        count_sketch(np.array([1.0, np.nan]), b"a")


@pytest.mark.parametrize("clients", [3, 5, 9])
def test_exact_cosines_give_the_weights_and_retentions_of_h_ties(clients):
    tau = updates(clients)
    analysis = algorithms.analyse(tau)
    wanted = retention(analysis.heterogeneity, r0=0.9, delta=0.3)
    made = [standing(analysis.cosines, i, r0=0.9, delta=0.3) for i in range(clients)]
    weights = np.array([m.weight for m in made])
    floored = np.maximum(analysis.weights, LEAST_WEIGHT * analysis.weights.max())
    np.testing.assert_allclose(weights / weights.sum(), floored / floored.sum(), rtol=1e-12)
    np.testing.assert_allclose([m.retention for m in made], wanted, rtol=1e-12)
    assert weights.max() == 1


def test_clients_all_alike_keep_r0_and_weigh_the_same():
    made = [standing(np.ones((4, 4)), i, r0=1.0, delta=0.2) for i in range(4)]
    assert {(m.weight, m.retention) for m in made} == {(1.0, 1.0)}


def test_opened_products_become_a_symmetric_matrix_on_the_grid():
    found = gram_of(3, np.array([0.5, 0.25, 0.1]))
    assert found[0, 1] == found[1, 0] == 0.5
    assert found[0, 2] == 0.25
    assert found[1, 2] == 102 / 1024
    assert np.array_equal(np.diag(found), np.ones(3))


@pytest.mark.parametrize("beyond", [1.05, -1.05])
def test_a_sketchs_error_beyond_one_is_cut_off(beyond):
    assert gram_of(2, np.array([beyond]))[0, 1] == np.sign(beyond)
    with pytest.raises(ProtocolAborted, match="are no cosines of vectors"):
        gram_of(2, np.array([2 * beyond]))


@pytest.mark.parametrize(
    ("clients", "opened", "line"),
    [
        (3, [0.5, 0.5], "products: 2; must be 3 for 3 clients"),
        (3, [np.nan, 0.0, 0.0], "do not open to numbers"),
        (3, [1.2, 0.0, 0.0], "are no cosines of vectors"),
        (3, [0.9, 0.9, -0.9], "are no cosines of vectors"),  # each possible, together not
    ],
)
def test_what_cannot_be_cosines_is_refused(clients, opened, line):
    with pytest.raises(ProtocolAborted, match=line):
        gram_of(clients, np.array(opened))


@pytest.mark.parametrize("clients", [4, 16, 64])
def test_cosines_of_a_servers_making_leave_no_client_alone_in_the_sum(clients):
    star = np.eye(clients)
    star[0, 1:] = star[1:, 0] = 1 / np.sqrt(clients - 1)  # client 0 like all, no two others alike
    made = [standing(star, i, r0=1.0, delta=0.2).weight for i in range(clients)]
    assert max(made) == 1
    assert min(made) >= np.exp(-1)
