"""Fusion over sums: `coordinate` is exact H-TIES, `block` has its limits right and comes close."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.federate.fusion import algorithms as plaintext
from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.secagg.expectations import Z_GRID, plain_tables, trimmed_tables
from fedproxy_secure.secagg.granularity import Layout, contribution, merge, segments_of
from fedproxy_secure.secagg.ring import RingPlan, quantise, read_sum


def fused(tau, granularity, *, rho=1.1, bits=32, sizes=None, weights=None, kept=1.0):
    clients, d = tau.shape
    layout = Layout(sizes=sizes or (d,))
    clip = float(np.abs(tau).max()) or 1.0
    plan = RingPlan(
        bits=bits,
        clients=clients,
        segments=segments_of(granularity, layout, clip=clip, clients=clients, bits=bits),
    )
    total = np.zeros(plan.words, dtype=np.uint64)
    weights = np.ones(clients) if weights is None else weights
    for t, w in zip(tau, weights, strict=True):
        total += quantise(plan, contribution(t, granularity, layout, plan, weight=w)).words
    sums = read_sum(plan, total.astype(plan.word_type))
    return merge(
        sums, granularity, layout, plan, clients=clients, weight=float(weights.sum()), rho=rho, kept=kept
    )


def updates(clients, d=500, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(d)
    return (0.01 * (rng.standard_normal((clients, d)) + 0.4 * common)).astype(np.float32)


@pytest.mark.parametrize("clients", [3, 4, 7, 16, 64])
@pytest.mark.parametrize("bits", [24, 32])
def test_coordinate_equals_plaintext_h_ties_with_uniform_weights(clients, bits):
    tau = updates(clients)
    made = fused(tau, "coordinate", bits=bits)
    exact = plaintext.elect(tau, np.full(clients, 1 / clients), rho=1.1)
    close = np.abs(made.step - exact) < 1e-5
    # where the two sides' ratio is within rounding of rho, either answer is right
    assert close.mean() > 0.99
    np.testing.assert_allclose(made.conflict, plaintext.analyse(tau).conflict, atol=1e-6)


def test_coordinate_equals_plaintext_ties():
    tau = updates(5)
    trimmed = np.stack([keep_largest(t, 0.2) for t in tau])
    made = fused(trimmed, "coordinate", rho=1.0)
    np.testing.assert_allclose(made.step, plaintext.ties(tau, keep_ratio=0.2), atol=1e-6)


def test_plain_is_the_weighted_mean():
    tau, weights = updates(4), np.array([1.0, 0.5, 0.25, 1.0])
    made = fused(tau, "plain", weights=weights)
    np.testing.assert_allclose(made.step, weights @ tau / weights.sum(), atol=1e-7)
    assert made.conflict is None


@pytest.mark.parametrize("clients", [4, 8, 16])
def test_block_is_closer_to_h_ties_than_the_best_multiple_of_the_mean(clients):
    tau = updates(clients, d=20_000)
    exact = plaintext.elect(tau, np.full(clients, 1 / clients), rho=1.1)
    made = fused(tau, "block").step
    mean = tau.mean(axis=0)
    best = (mean @ exact) / (mean @ mean) * mean

    def distance(a):
        return np.linalg.norm(a - exact) / np.linalg.norm(exact)

    assert distance(made) < 0.9 * distance(best)
    assert made @ exact > 0.93 * np.linalg.norm(made) * np.linalg.norm(exact)


def test_block_estimates_the_conflict_without_bias_where_its_model_holds():
    tau = updates(4, d=20_000)
    made, exact = fused(tau, "block").conflict, plaintext.analyse(tau).conflict
    assert abs(made.mean() - exact.mean()) < 0.01


@pytest.mark.parametrize("granularity", ["coordinate", "block"])
def test_when_all_agree_the_step_is_what_they_agree_on(granularity):
    tau = np.tile(updates(1), (4, 1))
    made = fused(tau, granularity)
    np.testing.assert_allclose(made.step, tau[0], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("granularity", ["coordinate", "block"])
def test_no_update_is_no_step_and_full_conflict(granularity):
    made = fused(np.zeros((4, 100), np.float32), granularity)
    assert not made.step.any()
    assert (made.conflict == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 12), st.integers(0, 10_000), st.sampled_from(["coordinate", "block"]))
def test_fusion_is_odd_scales_with_its_input_and_ignores_the_clients_order(clients, seed, granularity):
    tau = updates(clients, d=130, seed=seed)
    base = fused(tau, granularity).step
    assert np.isfinite(base).all()
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    rng = np.random.default_rng(seed)
    opposite = fused(-tau, granularity).step
    shuffled = fused(rng.permutation(tau), granularity).step
    larger = fused(8 * tau, granularity).step
    for other in (-opposite, shuffled, larger / 8):
        assert np.isclose(other, base, **tolerance).mean() > 0.97


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("clients", [3, 4, 16, 64])
def test_bytes_stay_within_the_design(bits, clients):
    layout = Layout(sizes=(4096, 352 * 16, 100))
    words = {
        g: sum(s.length for s in segments_of(g, layout, clip=1.0, clients=clients, bits=bits))
        for g in ("plain", "block", "coordinate")
    }
    assert words["plain"] == layout.d
    assert words["block"] <= 1.02 * layout.d
    if bits == 32:
        assert words["coordinate"] <= 2.5 * layout.d + 1


@pytest.mark.parametrize("clients", [4, 16])
@pytest.mark.parametrize(("kept", "at_most"), [(0.2, 0.5), (0.5, 0.75), (0.8, 1.0)])
def test_block_that_knows_the_kept_share_comes_closer_to_trimmed_ties(clients, kept, at_most):
    tau = np.stack([keep_largest(t, kept) for t in updates(clients, d=20_000)])
    exact = plaintext.elect(tau, np.full(clients, 1 / clients), rho=1.0)

    def distance(step):
        return np.linalg.norm(step - exact) / np.linalg.norm(exact)

    knowing = fused(tau, "block", rho=1.0, kept=kept)
    assert distance(knowing.step) < at_most * distance(fused(tau, "block", rho=1.0).step)
    assert abs(np.linalg.norm(knowing.step) / np.linalg.norm(exact) - 1) < 0.15
    assert abs(knowing.conflict.mean() - plaintext.analyse(tau).conflict.mean()) < 0.03


@pytest.mark.parametrize("clip", [1e154, 1e200, 1.7e308, float("inf"), float("nan"), -1.0, 0.0])
@pytest.mark.parametrize("granularity", ["plain", "coordinate", "block"])
def test_a_clip_that_no_ring_takes_is_refused_before_anything_is_made_of_it(granularity, clip):
    with pytest.raises(ConfigError, match=f"clip={clip:g}".replace("+", r"\+") + ": must be"):
        segments_of(granularity, Layout(sizes=(3,)), clip=clip, clients=4, bits=32)


@pytest.mark.parametrize("clip", [0.25, 2.0])
def test_the_mean_square_of_a_block_at_the_clip_is_the_largest_word_and_not_cut(clip):
    layout = Layout(sizes=(64,))
    plan = RingPlan(
        bits=32, clients=4, segments=segments_of("block", layout, clip=clip, clients=4, bits=32)
    )
    made = quantise(plan, contribution(np.full(64, -clip, np.float32), "block", layout, plan))
    assert made.clipped == 0
    assert made.words[64] == plan.levels
    beyond = contribution(np.full(64, 3 * clip, np.float32), "block", layout, plan)
    assert beyond["squares"] == pytest.approx([clip**2])  # the square of what will be clipped


@given(st.floats(0.1, 1), st.floats(0.1, 3), st.integers(0, 99))
@settings(max_examples=30)
def test_no_block_has_a_negative_variance_however_far_beyond_the_clip_weighted_values_are(
    weight, size, seed
):
    layout = Layout(sizes=(64,))
    update = (size * np.random.default_rng(seed).standard_normal(64)).astype(np.float32)
    plan = RingPlan(clients=3, bits=32, segments=segments_of("block", layout, clip=1.0, clients=3, bits=32))
    parts = contribution(update, "block", layout, plan, weight=weight)
    summed = np.clip(parts["update"], -1, 1).astype(np.float64)
    assert parts["squares"][0] / weight >= np.mean((summed / weight) ** 2) - 1e-6


def test_block_reads_the_tables_between_their_points_and_is_the_mean_beyond_them():
    """One block of one coordinate a tensor: mean 0.01 z, spread 0.01, for z of the test."""
    z = np.array([0.0, 0.01, 0.5, 1.37, 3.3, 7.95, 8.05, 40.0])
    layout = Layout(sizes=(1,) * len(z))
    plan = RingPlan(bits=32, clients=4, segments=segments_of("block", layout, clip=1.0, clients=4, bits=32))
    sums = {"update": 0.04 * z, "squares": 4 * (1e-4 + (0.01 * z) ** 2)}
    numbers = {"clients": 4, "weight": 4.0, "rho": 1.1}
    value, conflict = plain_tables(4, 1.1)
    made = merge(sums, "block", layout, plan, **numbers)
    inside = z < Z_GRID[-1]
    wanted = np.where(inside, np.interp(z, Z_GRID, value), z)
    np.testing.assert_allclose(made.step, 0.01 * wanted, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        made.conflict, np.where(inside, np.interp(z, Z_GRID, conflict), 0), rtol=1e-4, atol=1e-7
    )
    value, conflict = trimmed_tables(4, 1.1, 0.5)
    trimmed = merge(sums, "block", layout, plan, **numbers, kept=0.5)
    wanted = np.where(inside, np.interp(z, Z_GRID, value), z + value[-1] - Z_GRID[-1])
    np.testing.assert_allclose(trimmed.step, 0.01 * wanted, rtol=1e-4, atol=1e-9)


def test_a_block_is_64_neighbours_where_the_tensor_allows_it():
    assert Layout(sizes=(6400,)).starts().tolist() == list(range(0, 6400, 64))
    for size in (1, 31, 95):
        assert Layout(sizes=(size,)).starts().tolist() == [0]
    assert Layout(sizes=(97,)).starts().tolist() == [0, 48]


def test_blocks_do_not_cross_tensors():
    starts = Layout(sizes=(130, 5, 64)).starts()
    assert {0, 130, 135} <= set(starts.tolist())
    assert (np.diff(starts) > 0).all()


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="must be at least one size"):
        Layout(sizes=())
    with pytest.raises(ConfigError, match="each >= 1"):
        Layout(sizes=(3, 0))
    layout = Layout(sizes=(10,))
    plan = RingPlan(bits=32, clients=4, segments=segments_of("block", layout, clip=1.0, clients=4, bits=32))
    with pytest.raises(DataError, match=r"update of shape \(9,\): must be \(10,\)"):
        contribution(np.zeros(9, np.float32), "block", layout, plan)
    for weight in (0.0, 1.5):
        with pytest.raises(DataError, match=f"weight={weight}"):
            contribution(np.zeros(10, np.float32), "block", layout, plan, weight=weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 0}, "clients=0: must be >= 1"),
        ({"weight": 0.0}, "weight=0.0: must be > 0"),
        ({"weight": -0.5}, "weight=-0.5: must be > 0"),
        ({"weight": float("nan")}, "weight=nan: must be > 0"),
        ({"rho": 0.9}, "rho=0.9: must be >= 1"),
        ({"kept": 0.0}, r"kept=0.0: must be in \(0, 1\]"),
        ({"kept": -0.5}, r"kept=-0.5: must be in \(0, 1\]"),
        ({"update": np.zeros(9)}, r"sum of update: shape \(9,\); must be \(10,\)"),
        ({"squares": np.zeros(2)}, r"sum of squares: shape \(2,\); must be \(1,\)"),
        ({"squares": None}, r"sum of squares: shape None; must be \(1,\)"),
        ({"update": np.full(10, np.nan)}, "sum of update: holds NaN or infinity; must be finite"),
        ({"squares": np.full(1, np.inf)}, "sum of squares: holds NaN or infinity; must be finite"),
    ],
)
def test_bad_sums_are_refused_with_the_value_and_the_rule(change, message):
    layout = Layout(sizes=(10,))
    plan = RingPlan(bits=32, clients=4, segments=segments_of("block", layout, clip=1.0, clients=4, bits=32))
    numbers = {"clients": 4, "weight": 4.0, "rho": 1.1, "kept": 1.0}
    sums = {"update": np.zeros(10), "squares": np.zeros(1)}
    for name, value in change.items():
        (numbers if name in numbers else sums)[name] = value
    sums = {name: value for name, value in sums.items() if value is not None}
    with pytest.raises(DataError, match=message):
        merge(sums, "block", layout, plan, **numbers)


def test_a_lone_contributor_is_revealed_by_coordinate_and_hidden_by_block():
    """The leak that the granularities differ in, as the docstring says it."""
    tau = np.zeros((4, 64), np.float32)
    tau[2, 10] = 0.7  # one client alone moves coordinate 10
    tau[:, 11:] = updates(4, 53)
    clip, layout = 1.0, Layout(sizes=(64,))
    seen = {}
    for granularity in ("coordinate", "block"):
        plan = RingPlan(
            bits=32,
            clients=4,
            segments=segments_of(granularity, layout, clip=clip, clients=4, bits=32),
        )
        seen[granularity] = set(contribution(tau[2], granularity, layout, plan))
    assert seen["coordinate"] == {"update", "magnitude", "signs"}
    assert seen["block"] == {"update", "squares"}


@pytest.mark.parametrize(
    ("bits", "ratio", "least", "most"),
    [(16, 1, 0, 0.01), (16, 20, 0.05, 0.3), (16, 60, 0.4, 0.7), (24, 20, 0, 0.01), (24, 60, 0, 0.01)],
)
def test_a_coarse_ring_spoils_elections_by_blocks_in_tensors_that_move_less(bits, ratio, least, most):
    clients, half = 4, 4000
    tau = updates(clients, d=2 * half)
    tau[:, half:] /= ratio
    sizes = (half, half)
    exact, made = (fused(tau, "block", sizes=sizes, bits=b).step[half:] for b in (32, bits))
    error = np.linalg.norm(made - exact) / np.linalg.norm(exact)
    assert least <= error <= most
