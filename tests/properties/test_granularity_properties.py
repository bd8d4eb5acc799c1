"""What fusion over sums must do for every input: symmetries, limits, exactness. The sums are float64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.federate.fusion import algorithms as plaintext
from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.secagg.granularity import Layout, contribution, merge, segments_of
from fedproxy_secure.secagg.ring import RingPlan

KEPT = st.sampled_from([1.0, 0.5, 0.2])
ELECTING = st.sampled_from(["coordinate", "block"])


@st.composite
def cohorts(draw):
    """Updates [K, d], trimmed to the kept share, and that share."""
    clients, d = draw(st.sampled_from([3, 4, 7])), draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tau = rng.standard_normal((clients, d)) + draw(st.sampled_from([0.0, 1.0])) * rng.standard_normal(d)
    kept, scale = draw(KEPT), draw(st.sampled_from([1e-4, 1e-2, 1.0]))
    return np.stack([keep_largest(t, kept) for t in (scale * tau).astype(np.float32)]), kept


def fused(tau, granularity, kept, *, rho=1.1):
    clients, d = tau.shape
    layout, clip = Layout(sizes=(d,)), float(np.abs(tau).max()) or 1.0
    plan = RingPlan(
        bits=32,
        clients=max(clients, 3),
        segments=segments_of(granularity, layout, clip=clip, clients=max(clients, 3), bits=32),
    )
    parts = [contribution(t, granularity, layout, plan) for t in tau]
    sums = {
        n: np.sum(
            [p[n] for p in parts],
            axis=0,
            dtype=np.result_type(parts[0][n], np.float64) if parts[0][n].dtype.kind == "f" else np.int64,
        )
        for n in parts[0]
    }
    return merge(sums, granularity, layout, plan, clients=clients, weight=clients, rho=rho, kept=kept)


def same(a, b, scale):
    """Equal but for coordinates where float32 rounding tips an election."""
    np.testing.assert_array_less(np.abs(a - b), 1e-4 * scale + 1e-12)


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.sampled_from([1.0, 1.1]))
def test_coordinate_is_exact_for_every_cohort(case, rho):
    tau, kept = case
    made = fused(tau, "coordinate", kept, rho=rho)
    exact = plaintext.elect(tau, np.full(len(tau), 1 / len(tau)), rho=rho)
    p, n = np.maximum(tau, 0).sum(axis=0, dtype=float), np.maximum(-tau, 0).sum(axis=0, dtype=float)
    top, low = np.maximum(p, n), np.minimum(p, n)
    clear = np.abs(top - rho * low) > 1e-5 * (top + low)  # elsewhere rounding may tip the election
    clear |= top == 0
    scale = float(np.abs(tau).max())
    same(made.step[clear], exact[clear], 0.1 * scale)  # within 1e-5 of the largest value
    np.testing.assert_allclose(made.conflict, plaintext.analyse(tau).conflict, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.integers(0, 2**32 - 1))
def test_block_is_odd_ignores_order_scales_with_its_input_and_is_finite(case, seed):
    tau, kept = case
    base, scale = fused(tau, "block", kept), float(np.abs(tau).max())
    assert np.isfinite(base.step).all()
    assert ((base.conflict >= 0) & (base.conflict <= 1)).all()
    # a mean that cancels to about zero has no sign to speak of
    clear = np.abs(tau.mean(axis=0, dtype=float)) > 1e-4 * scale
    same(-fused(-tau, "block", kept).step[clear], base.step[clear], scale)
    shuffled = np.random.default_rng(seed).permutation(tau)
    same(fused(shuffled, "block", kept).step[clear], base.step[clear], scale)
    same(fused(8 * tau, "block", kept).step[clear] / 8, base.step[clear], scale)


@settings(max_examples=25, deadline=None)
@given(cohorts(), ELECTING)
def test_equal_clients_give_what_they_agree_on(case, granularity):
    tau, kept = case
    alike = np.tile(tau[0], (len(tau), 1))
    same(fused(alike, granularity, kept).step, tau[0], float(np.abs(tau).max()))


@settings(max_examples=20, deadline=None)
@given(cohorts(), ELECTING)
def test_one_client_is_its_own_fusion(case, granularity):
    tau, kept = case
    same(fused(tau[:1], granularity, kept).step, tau[0], float(np.abs(tau).max()))


@settings(max_examples=20, deadline=None)
@given(cohorts(), ELECTING)
def test_exactly_opposed_clients_do_not_move_it(case, granularity):
    tau, kept = case
    opposed = np.concatenate([tau, -tau])
    # pairs lie side by side, so that the sum cancels exactly
    opposed = np.stack([tau, -tau], axis=1).reshape(opposed.shape)
    assert not fused(opposed, granularity, kept).step.any()


@settings(max_examples=10, deadline=None)
@given(st.integers(3, 9), ELECTING, KEPT)
def test_zero_updates_are_no_step_and_full_conflict(clients, granularity, kept):
    made = fused(np.zeros((clients, 100), np.float32), granularity, kept)
    assert not made.step.any()
    assert (made.conflict == 1).all()
