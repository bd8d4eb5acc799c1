"""What one client that sends any words it likes can do to a sum, to the mean and to the numbers beside it.

Masking hides every client's words, from those who would check them too. What is left is what sums can show:
a sum that honest clients cannot have aborts the attempt.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.secagg.control import (
    FRACTION,
    LIMB_BITS,
    LIMBS,
    NAMES,
    Control,
    Expected,
    check_control,
    decode_control,
    encode_control,
)
from fedproxy_secure.secagg.granularity import Layout, contribution, merge, segments_of
from fedproxy_secure.secagg.masking.client import ClientSession
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.ring import RingPlan, quantise, read_sum
from fedproxy_secure.secagg.selftest.rehearsal import Cohort, identities, names, ring, terms_for
from fedproxy_secure.secagg.signs import coordinates_per_word, pack_signs
from fedproxy_secure.secagg.sum_checks import check_sums

K, D, CLIP = 5, 8, 0.003
KEYS, ROSTER = identities(K)
PLAN = ring(K, D, clip=CLIP)
TERMS = terms_for(PLAN, ROSTER)
UNIFORM = Expected(least_weight=1.0, steps=10, coordinates=D)
COSINES = replace(UNIFORM, least_weight=np.exp(-1))
LAYOUT = Layout(sizes=(D,))


def liar(change):
    """A client session that lets `change` write into c00's words before they are masked."""

    class Liar(ClientSession):
        def mask(self, inbox, words):
            if self.name == "c00":
                change(words)
            return super().mask(inbox, words)

    return Liar


def lied(change, expected=UNIFORM):
    """A round in which the honest clients' values are half the clip."""

    class Holding(ServerSession):
        def __init__(self, **terms):
            super().__init__(**terms, expected=expected)

    cohort = Cohort(terms=TERMS, keys=KEYS, roster=ROSTER, session=liar(change), server=Holding)
    return cohort.run({n: np.full(D, CLIP / 2, np.float32) for n in names(K)})


def mean_of(made):
    return merge(
        made.sums, "plain", LAYOUT, PLAN, clients=len(made.clients), weight=made.control.weight, rho=1.0
    ).step


def sets(name, others_each):
    """A change of c00's words after which the sum of a control number is whatever it wants."""

    def change_to(wanted):
        def change(words):
            at = D + LIMBS * NAMES.index(name)
            for limb in range(LIMBS):
                others = (K - 1) * ((others_each >> (LIMB_BITS * limb)) & 255)
                own = ((wanted >> (LIMB_BITS * limb)) & 255) - others
                words[at + limb] = np.uint32(own % 2**32)

        return change

    return change_to


def test_an_honest_round_passes_and_its_mean_is_half_the_clip():
    made = lied(lambda words: None)
    np.testing.assert_allclose(mean_of(made), CLIP / 2, rtol=1e-6)


@pytest.mark.parametrize("expected", [UNIFORM, COSINES], ids=["equal weights", "weights from cosines"])
def test_the_weight_word_no_longer_moves_the_mean_by_thousands_of_clips(expected):
    """It made the sum of weights 2^-20: the mean was a million times as long."""
    tiny = sets("weight", round(FRACTION))(1)
    with pytest.raises(ProtocolAborted, match=r"weight in the sum is 9\.53674e-07: must be"):
        lied(tiny, expected)
    unchecked = lied(tiny, Expected())
    assert unchecked.control.weight == 1 / FRACTION


@pytest.mark.parametrize(
    ("name", "others", "wanted", "line"),
    [
        ("weight", round(FRACTION), round(5.5 * FRACTION), "weight in the sum is 5.5: must be 5"),
        ("weight", round(FRACTION), round(4.99 * FRACTION), "weight in the sum is 4.99: must be 5"),
        ("steps", 10, 51, "steps in the sum is 51: must be 50"),
        ("steps", 10, 0, "steps in the sum is 0: must be 50"),
        ("clipped", 0, K * D + 1, "clipped in the sum is 41: must be 0 to 40"),
        ("largest", round(0.25 * FRACTION), round(5001 * FRACTION), "largest in the sum is 5001: must be"),
        ("clients", 1, 4, "count in the sum is 4: must be 5"),
    ],
)
def test_a_sum_that_honest_clients_cannot_have_aborts_and_names_nobody(name, others, wanted, line):
    with pytest.raises(ProtocolAborted, match=line) as caught:
        lied(sets(name, others)(wanted))
    assert not any(n in str(caught.value) for n in names(K))


def test_a_limb_of_more_than_all_clients_can_send_aborts():
    at = D + LIMBS * NAMES.index("loss")

    def limb(value):
        def change(words):
            words[at] = np.uint32(value % 2**32)

        return change

    # the honest limb is 0; that one client sent more than 255 of it cannot be seen
    honest = lied(lambda words: None).control.loss
    for possible in (0, 255, K * 255):
        assert lied(limb(possible)).control.loss == honest + possible / FRACTION
    for impossible in (K * 255 + 1, -1, 2**31):
        with pytest.raises(ProtocolAborted, match="control words: add up to more than"):
            lied(limb(impossible))


def test_under_client_level_noise_the_numbers_beside_the_sum_are_silent():
    silent = Expected(least_weight=1.0, steps=10, coordinates=D, silent=True)
    quiet = Control(clients=K, weight=K, clipped=0, loss=0.0, steps=10 * K, largest=0.0)
    check_control(quiet, silent)
    for change in ({"loss": 2**-20}, {"clipped": 1}, {"largest": 2**-20}):
        with pytest.raises(ProtocolAborted, match=f"{next(iter(change))} in the sum is .*: must be 0"):
            check_control(replace(quiet, **change), silent)


def test_numbers_that_are_none_are_refused():
    good = Control(clients=K, weight=K, clipped=0, loss=0.0, steps=50, largest=0.0)
    for change in ({"loss": np.nan}, {"loss": np.inf}, {"weight": np.nan}, {"largest": np.nan}):
        with pytest.raises(ProtocolAborted, match="in the sum is"):
            check_control(replace(good, **change), Expected())


@pytest.mark.parametrize("weight", [1.0, float(np.exp(-1)), 0.5])
@pytest.mark.parametrize("clients", [1, 3, 64])
def test_honest_weights_pass_whatever_rounding_does(weight, clients):
    context = b"c" * 32
    words = encode_control(Control(weight=weight, clipped=0, loss=0.0, steps=10, largest=0.0), context)
    sums = {n: clients * w for n, w in words.items()}
    expected = Expected(least_weight=min(weight, float(np.exp(-1))), steps=10)
    assert decode_control(sums, context, clients=clients, expected=expected).weight > 0
    least = Expected(least_weight=weight, steps=10)
    assert decode_control(sums, context, clients=clients, expected=least).weight > 0


# ring words


@given(st.lists(st.integers(0, 2**32 - 1), min_size=D, max_size=D))
@settings(max_examples=30, deadline=None)
def test_whatever_words_one_client_sends_the_mean_stays_within_the_clip(own):
    """So one client moves a coordinate by less than two clips, not by thousands."""

    def change(words):
        words[:D] = np.array(own, dtype=np.uint32)

    assert np.abs(mean_of(lied(change))).max() <= CLIP * (1 + 1e-6)


def test_one_client_chooses_every_coordinate_of_the_mean_within_the_clip():
    """The honest sentence: nothing in a sum shows words beyond the clip. A proof with each vector would."""
    honest = (K - 1) * round(PLAN.levels / 2)

    def change(words):
        words[:D] = np.uint32((-K * PLAN.levels - honest) % 2**32)

    moved = mean_of(lied(lambda words: None)) - mean_of(lied(change))
    np.testing.assert_allclose(moved, 1.5 * CLIP, rtol=1e-5)  # from half the clip to the other end


def plan_of(granularity, bits=32):
    own = segments_of(granularity, LAYOUT, clip=CLIP, clients=K, bits=bits)
    return RingPlan(bits=bits, clients=K, segments=own)


def sums_of(granularity, plan, updates, own=None):
    """Sums of honest clients, with one more that adds any words of its own."""
    total = np.zeros(plan.words, dtype=plan.word_type)
    for update in updates:
        total += quantise(plan, contribution(update, granularity, LAYOUT, plan)).words
    if own is not None:
        total += own.astype(plan.word_type)
    return read_sum(plan, total)


HONEST = np.random.default_rng(0).normal(0, CLIP / 3, (K, D)).clip(-CLIP, CLIP).astype(np.float32)


def lies(kind, words, plan, rng):
    """The words that a client sends in place of its honest ones, int64 [plan.words]."""
    if kind == "any words":
        return rng.integers(2**32, size=plan.words)
    own = words.astype(np.int64)
    if kind == "some words":
        own[rng.integers(plan.words, size=2)] = rng.integers(2**32, size=2)
        return own
    at, by = rng.integers(D), rng.integers(-2 * plan.levels, 3 * plan.levels)
    own[at] += by * rng.choice([-1, 1])
    if kind == "the mass of one side":
        own[D + at] += by
    return own


# where signs are counted, hardly any other lie passes the checks
LIES = {"coordinate": ["the mass of one side"]}


@pytest.mark.parametrize("granularity", ["plain", "block", "coordinate"])
def test_whatever_one_client_adds_to_any_segment_the_fused_step_is_bounded_or_the_round_aborts(granularity):
    plan, largest = plan_of(granularity), []
    words = quantise(plan, contribution(HONEST[0], granularity, LAYOUT, plan)).words

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(LIES.get(granularity, ["any words", "some words", "one value"])),
        st.integers(0, 2**32 - 1),
        st.sampled_from([1.0, np.exp(-1)]),
    )
    def is_bounded(kind, seed, least):
        own = lies(kind, words, plan, np.random.default_rng(seed))
        sums, weight = sums_of(granularity, plan, HONEST[1:], own), K * least
        try:
            made = merge(sums, granularity, LAYOUT, plan, clients=K, weight=weight, rho=1.1)
        except ProtocolAborted:
            return
        largest.append(np.abs(made.step).max() * least / CLIP)
        assert largest[-1] <= 1 + 1e-6

    is_bounded()
    assert len(largest) >= 20  # the others aborted


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("granularity", ["plain", "block", "coordinate"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0], ids=["small", "at the clip", "clipped"])
def test_honest_sums_pass_in_every_ring(granularity, bits, spread):
    plan = plan_of(granularity, bits)
    rng = np.random.default_rng(1)
    for _ in range(20):
        updates = rng.normal(0, spread * CLIP, (K, D)).astype(np.float32)
        updates[rng.random((K, D)) < 0.3] = 0
        check_sums(sums_of(granularity, plan, updates), plan, clients=K)


def test_squares_below_zero_or_beyond_the_clip_abort():
    plan = plan_of("block")
    good = sums_of("block", plan, HONEST)
    for squares in (-1e-9, 1.01 * K * CLIP**2):
        with pytest.raises(ProtocolAborted, match=r"sum of squares: has .*; must be 0 to"):
            check_sums({**good, "squares": np.full(1, squares)}, plan, clients=K)
    check_sums({**good, "squares": np.full(1, -1e-9)}, plan, clients=K, error=1e-8 / CLIP**2)


def test_a_sum_beyond_all_clients_clips_aborts():
    plan = plan_of("plain")
    good = sums_of("plain", plan, HONEST)["update"]
    for at, value in ((0, 1.01 * K * CLIP), (D - 1, -1.01 * K * CLIP)):
        beyond = good.copy()
        beyond[at] = value
        with pytest.raises(ProtocolAborted, match="sum of update: has"):
            check_sums({"update": beyond}, plan, clients=K)


def test_counts_and_masses_that_do_not_belong_together_abort():
    plan = plan_of("coordinate")
    good = sums_of("coordinate", plan, HONEST)
    check_sums(good, plan, clients=K)
    all_up = pack_signs(np.ones(D), clients=K, bits=32)
    one_too_many = K * all_up + pack_signs(-np.ones(D), clients=K, bits=32)
    with pytest.raises(ProtocolAborted, match="counts more than 5 at a coordinate"):
        check_sums({**good, "signs": one_too_many}, plan, clients=K)
    # few on a side with much mass: a mean of P / count would be far beyond the clip
    most = {"update": np.full(D, K * CLIP), "magnitude": np.full(D, K * CLIP)}
    with pytest.raises(ProtocolAborted, match="update, magnitude and signs: do not belong together"):
        check_sums({**most, "signs": all_up}, plan, clients=K)
    check_sums({**most, "signs": K * all_up}, plan, clients=K)
    # |S| > A: a side of less than nothing
    less = {**good, "update": np.full(D, 2 * CLIP), "magnitude": np.full(D, CLIP)}
    with pytest.raises(ProtocolAborted, match="do not belong together"):
        check_sums({**less, "signs": K * all_up}, plan, clients=K)
    assert coordinates_per_word(K, 32) == 5
    spare = good["signs"].copy()
    spare[0] += 1 << 30
    beyond_up, beyond_down = good["signs"].copy(), good["signs"].copy()
    beyond_up[-1] += 1 << (6 * (D - 5))  # the last word has three coordinates
    beyond_down[-1] += 1 << (6 * (D - 5) + 3)
    for signs in (spare, beyond_up, beyond_down):
        with pytest.raises(ProtocolAborted, match="counts where there is no coordinate"):
            check_sums({**good, "signs": signs}, plan, clients=K)
