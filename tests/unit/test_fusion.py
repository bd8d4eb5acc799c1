"""Fusion rules against values worked out by hand from the paper's equations."""

import numpy as np
import pytest

from fedproxy_secure.config import FusionConfig
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.federate.fusion import algorithms
from fedproxy_secure.federate.server import ServerState, fuse_round
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.secagg.likeness import retention


def f32(rows):
    return np.array(rows, dtype=np.float32)


def update(name, values):
    return ClientUpdate(client=name, update=f32(values), loss=1.0, steps=1, seconds=0.0, truncated=0)


def test_conflict_is_zero_where_all_agree_and_one_where_as_many_go_up_as_down():
    tau = f32([[1, 1, 0], [2, -1, 0], [3, 1, 0], [4, -1, 0]])
    assert algorithms.analyse(tau).conflict.tolist() == [0, 1, 1]


def test_heterogeneity_counts_only_positive_cosines_and_weights_count_both():
    tau = f32([[1, 0], [-1, 0], [0, 1]])
    found = algorithms.analyse(tau)
    np.testing.assert_allclose(found.heterogeneity, [1, 1, 1])
    strength = np.exp([1, 1, 0])  # an opposed pair has |cosine| 1: both gain weight
    np.testing.assert_allclose(found.weights, strength / strength.sum())


def test_retention_spans_r0_minus_delta_to_r0_and_is_r0_when_all_are_alike():
    kept = retention(np.array([0.2, 0.4, 0.6]), r0=1.0, delta=0.2)
    np.testing.assert_allclose(kept, [1.0, 0.9, 0.8])
    np.testing.assert_allclose(retention(np.array([0.5, 0.5]), r0=1.0, delta=0.2), [1, 1])


def test_keep_largest_keeps_the_largest_magnitudes_unchanged():
    assert algorithms.keep_largest(f32([3, -4, 1, 2]), 0.5).tolist() == [3, -4, 0, 0]
    assert algorithms.keep_largest(f32([3, -4]), 1.0).tolist() == [3, -4]


def test_election_follows_the_ratio_rule():
    weights = np.array([0.5, 0.25, 0.25])
    tau = f32([[1, 1, 1, 0], [-1, 1, -1, 0], [-2, 2, -1.05, 0]])
    # P, N: (.5, .75) -> down; (1, 0) -> up; (.5, .5125), ratio 1.025 < 1.1 -> dropped; (0, 0) -> 0
    value = algorithms.elect(tau, weights, rho=1.1)
    np.testing.assert_allclose(value, [-0.75 / 0.5, 1.25 / 1.0, 0, 0])


def test_fedavg_counts_each_client_alike():
    np.testing.assert_allclose(algorithms.fedavg(f32([[0], [4]])), [2])


def test_h_ties_with_one_client_and_full_retention_is_that_client():
    tau = f32([[1, -2, 3]])
    value = algorithms.h_ties(tau, algorithms.analyse(tau), rho=1.1, r0=1.0, delta=0.2)
    np.testing.assert_allclose(value, tau[0])


def test_ties_means_only_the_elected_side():
    tau = f32([[4, 0, 0, 0], [2, 0, 0, 0], [-1, 0, 0, 0]])
    np.testing.assert_allclose(algorithms.ties(tau, keep_ratio=0.25), [3, 0, 0, 0])


def test_server_learning_rate_scales_the_step_and_rounds_count_up():
    state = ServerState(round=3, adapter=f32([1, 1]))
    rule = FusionConfig(rule="fedavg", server_learning_rate=2.0)
    new, metrics = fuse_round(state, [update("a", [1, 0]), update("b", [1, 2])], rule)
    np.testing.assert_allclose(new.adapter, [3, 3])
    assert new.round == 4
    assert metrics["step_over_mean"] == pytest.approx(2.0)


def test_the_length_of_a_huge_step_is_a_number():
    """Its square is none in float32; metrics of a round must be finite."""
    _, metrics = fuse_round(ServerState(round=0, adapter=f32([0])), [update("a", [1e25])], FusionConfig())
    assert metrics["step_norm"] == pytest.approx(1e25)
    assert metrics["step_over_mean"] == pytest.approx(1)


@pytest.mark.parametrize("rate", [1e38, 1e300])
def test_a_rate_that_leads_to_an_adapter_that_is_not_finite_is_named(rate):
    state = ServerState(round=4, adapter=f32([1, 1]))
    fusion = FusionConfig(rule="fedavg", server_learning_rate=rate)
    with pytest.raises(
        ConfigError, match=r"server_learning_rate=1e\+\d+: .* after round 4; .* lower the rate"
    ):
        fuse_round(state, [update("a", [0, 100])], fusion)


def test_fedadam_first_step_matches_reddi_et_al():
    state = ServerState(round=0, adapter=f32([0]))
    new, _ = fuse_round(state, [update("a", [0.5])], FusionConfig(rule="fedadam"))
    m, v = 0.1 * 0.5, 0.01 * 0.25
    np.testing.assert_allclose(new.adapter, [m / (np.sqrt(v) + 1e-3)], rtol=1e-6)


def test_conflict_map_is_kept_for_the_clients_only_with_pcr():
    state, two = ServerState(round=0, adapter=f32([0])), [update("a", [1]), update("b", [-1])]
    assert fuse_round(state, two, FusionConfig())[0].conflict is None
    assert fuse_round(state, two, FusionConfig(pcr_lambda=1e-5))[0].conflict.tolist() == [1]


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0, float("inf")], [1.0]])
def test_a_bad_update_is_refused_and_its_client_named(values):
    state = ServerState(round=0, adapter=f32([0, 0]))
    with pytest.raises(DataError, match="client b"):
        fuse_round(state, [update("a", [1, 1]), update("b", values)], FusionConfig())


def test_server_state_survives_saving_bit_for_bit(tmp_path):
    state = ServerState(round=2, adapter=f32([0.1, -3]), conflict=f32([0, 1]))
    state.save(tmp_path / "state.safetensors")
    back = ServerState.load(tmp_path / "state.safetensors")
    assert back.round == 2
    assert back.adapter.tobytes() == state.adapter.tobytes()
    assert back.conflict.tobytes() == state.conflict.tobytes()
    assert back.memory == {}
