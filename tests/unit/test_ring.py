"""Ring words: nothing wraps, rounding is unbiased and bounded, and what does not fit is refused."""

import numpy as np
import pytest

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.ring import (
    CHUNK_WORDS,
    MAX_CLIP,
    MIN_CLIP,
    RING_BITS,
    RingPlan,
    Segment,
    add_packed,
    pack,
    quantise,
    read_sum,
)


def plan_of(bits=32, clients=4, d=10, clip=1.0):
    return RingPlan(bits=bits, clients=clients, segments=(Segment(name="x", length=d, clip=clip),))


@pytest.mark.parametrize("bits", RING_BITS)
@pytest.mark.parametrize("clients", [3, 16, 64])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_largest_values_of_all_clients_add_without_wrapping(bits, clients, side):
    plan = plan_of(bits, clients)
    total = np.zeros(plan.words, dtype=plan.word_type)
    for _ in range(clients):
        add_packed(plan, total, pack(plan, quantise(plan, {"x": np.full(10, side, np.float32)}).words))
    np.testing.assert_allclose(read_sum(plan, total)["x"], side * clients, rtol=1e-6)


@pytest.mark.parametrize("bits", RING_BITS)
@pytest.mark.parametrize("clip", [MIN_CLIP, MAX_CLIP])
def test_the_smallest_and_the_largest_clip_work_as_any_other(bits, clip):
    plan = plan_of(bits, 64, d=3, clip=clip)
    made = quantise(plan, {"x": np.array([0.0, clip, -clip], np.float32)})
    np.testing.assert_allclose(read_sum(plan, made.words)["x"], [0, clip, -clip], rtol=1e-6)
    assert made.clipped == 0


def test_a_segment_and_the_place_of_its_words_are_found_by_name():
    first, second = Segment(name="x", length=3, clip=1.0), Segment(name="n", length=2, largest=5)
    plan = RingPlan(bits=16, clients=3, segments=(first, second))
    assert (plan.segment("x"), plan.segment("n")) == (first, second)
    words = quantise(plan, {"x": np.ones(3), "n": np.array([4, 5])}).words
    assert words[plan.place_of("n")].tolist() == [4, 5]
    assert words[plan.place_of("x")].tolist() == [plan.levels] * 3
    for find in (plan.segment, plan.place_of):
        with pytest.raises(ConfigError, match="segment update: must be one of x, n"):
            find("update")


def test_32_bits_round_to_the_nearest_so_that_a_run_repeats():
    plan = plan_of(32, 64, d=1000)
    step = plan.step_of(plan.segments[0])
    x = np.random.default_rng(0).uniform(-1, 1, 1000)
    one, two = quantise(plan, {"x": x}).words, quantise(plan, {"x": x}).words
    assert np.array_equal(one, two)
    assert np.array_equal(one.view(np.int32), np.rint(x * plan.levels))
    error = read_sum(plan, one)["x"] / step - x / step
    levels_of_float32 = 2**-24 / step
    assert np.abs(error).max() <= 0.5 + levels_of_float32
    assert abs(error.mean()) < 0.05


@pytest.mark.parametrize("bits", [16, 24])
def test_random_rounding_is_unbiased_and_less_than_a_step_off(bits):
    n = 3 * CHUNK_WORDS
    plan = plan_of(bits, 64, d=n)
    step = plan.step_of(plan.segments[0])
    for fraction in (0.0, 0.1, 0.5, 0.93):
        x = np.full(n, (7 + fraction) * step)
        words = quantise(plan, {"x": x}).words
        error = read_sum(plan, words)["x"] / step - (7 + fraction)
        assert np.abs(error).max() < 1 + 1e-5
        deviation = np.sqrt(fraction * (1 - fraction) / n)
        assert abs(error.mean()) < 5 * deviation + 2e-3
        assert abs(error.var() - fraction * (1 - fraction)) < 0.01


@pytest.mark.parametrize("bits", [16, 24])
def test_random_rounding_never_moves_a_whole_number_however_large(bits):
    plan = plan_of(bits, 3, d=1 << 20)
    most = min(plan.levels, 1 << 15)
    whole = np.tile(np.arange(plan.levels - most, plan.levels), (1 << 20) // most + 1)[: 1 << 20]
    for side in (-1, 1):
        words = quantise(plan, {"x": side * whole * plan.step_of(plan.segments[0])}).words
        steps = read_sum(plan, words)["x"] / plan.step_of(plan.segments[0])
        assert np.array_equal(np.rint(steps), side * whole)


def test_random_rounding_has_no_side_over_values_of_all_fractions():
    """Its grid alone would round up 1 / 512 too rarely; half a grid step mends that."""
    n = 1 << 22
    plan = plan_of(16, 64, d=n)
    step = plan.step_of(plan.segments[0])
    x = np.random.default_rng(0).uniform(-200, 200, n)
    error = quantise(plan, {"x": x * step}).words.view(np.int16) - x
    assert abs(error.mean()) < 5 * np.sqrt(1 / 6 / n)  # 1e-3; the variance of f(1 - f) and f is 1 / 6


def test_random_rounding_differs_from_call_to_call():
    plan = plan_of(16, 64, d=1000)
    x = np.full(1000, 0.5 * plan.step_of(plan.segments[0]))
    assert not np.array_equal(quantise(plan, {"x": x}).words, quantise(plan, {"x": x}).words)


@pytest.mark.parametrize("bits", RING_BITS)
def test_rounding_to_the_nearest_repeats_in_every_ring_and_is_at_most_half_a_step_off(bits):
    plan = plan_of(bits, 64, d=1000)
    steps = np.random.default_rng(0).uniform(-300, 300, 1000)
    values = {"x": steps * plan.step_of(plan.segments[0])}
    one, two = (quantise(plan, values, nearest=True).words for _ in range(2))
    assert np.array_equal(one, two)
    found = one.astype(np.int16 if bits == 16 else np.int32)
    assert np.abs(found - steps).max() <= 0.5 + 1e-3


def test_values_beyond_the_clip_are_clipped_and_counted():
    plan = plan_of(d=5)
    made = quantise(plan, {"x": np.array([0.5, 2.0, -3.0, 1.0, -1.0])})
    assert (made.clipped, made.largest) == (2, 3.0)
    np.testing.assert_allclose(read_sum(plan, made.words)["x"], [0.5, 1, -1, 1, -1], atol=1e-8)


def test_what_is_clipped_is_counted_over_all_segments():
    segments = (Segment(name="x", length=3, clip=1.0), Segment(name="y", length=4, clip=0.5))
    plan = RingPlan(bits=32, clients=4, segments=segments)
    made = quantise(plan, {"x": np.array([4.0, -2.0, 2.0]), "y": np.array([0.6, 0.1, -0.5, 0.5])})
    assert (made.clipped, made.largest) == (4, 4.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, CHUNK_WORDS + 3])
def test_a_value_that_is_no_number_is_refused(bad, at):
    x = np.zeros(CHUNK_WORDS + 5, dtype=np.float32)
    x[at] = bad
    with pytest.raises(DataError, match="segment x: holds NaN or infinity"):
        quantise(plan_of(d=len(x)), {"x": x})


def test_counts_add_exactly_and_out_of_range_ones_are_refused():
    plan = RingPlan(bits=16, clients=64, segments=(Segment(name="n", length=3, largest=1023),))
    counts = np.array([0, 1, 1023])
    total = np.zeros(3, dtype=np.uint16)
    for _ in range(64):
        add_packed(plan, total, pack(plan, quantise(plan, {"n": counts}).words))
    assert read_sum(plan, total)["n"].tolist() == [0, 64, 64 * 1023]
    for bad in (np.array([0, 1, 1024]), np.array([-1, 0, 0])):
        with pytest.raises(DataError, match="counts must be 0 to 1023"):
            quantise(plan, {"n": bad})
    with pytest.raises(DataError, match="counts must be integers"):
        quantise(plan, {"n": np.array([0.0, 1.0, 2.0])})


def test_an_empty_segment_is_no_trouble():
    plan = RingPlan(
        bits=16,
        clients=3,
        segments=(Segment(name="n", length=0, largest=1), Segment(name="x", length=0, clip=1.0)),
    )
    made = quantise(plan, {"n": np.zeros(0, np.int64), "x": np.zeros(0)})
    assert made.words.shape == (0,)
    assert plan.upload_bytes == 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"bits": 8}, "bits=8: must be one of"),
        ({"clients": 2}, "clients=2: must be 3 to 64"),
        ({"clients": 65}, "clients=65: must be 3 to 64"),
        ({"segments": (Segment(name="x", length=1),)}, "either a clip or a largest count"),
        ({"segments": (Segment(name="x", length=1, clip=1, largest=1),)}, "either a clip or"),
        ({"segments": (Segment(name="x", length=-1, clip=1),)}, "either a clip or"),
        ({"segments": (Segment(name="x", length=1, clip=0.0),)}, "clip=0.0: must be 1.26"),
        ({"segments": (Segment(name="x", length=1, clip=float("inf")),)}, "clip=inf: must be"),
        ({"segments": (Segment(name="x", length=1, clip=float("nan")),)}, "clip=nan: must be"),
        ({"segments": (Segment(name="x", length=1, clip=MIN_CLIP / 2),)}, "must be"),
        ({"segments": (Segment(name="x", length=1, clip=MAX_CLIP * 2),)}, "must be"),
        ({"segments": (Segment(name="x", length=1, largest=2**15),)}, r"4 clients x 32768 must be < 2\^16"),
        ({"segments": (Segment(name="x", length=1, largest=0),)}, r"4 clients x 0 must be"),
        ({"segments": (Segment(name="x", length=1, clip=1),) * 2}, "names must differ"),
    ],
)
def test_a_plan_that_could_wrap_or_means_nothing_is_refused(changes, line):
    good = {"bits": 16, "clients": 4, "segments": (Segment(name="x", length=1, clip=1.0),)}
    with pytest.raises(ConfigError, match=line):
        RingPlan(**(good | changes))


def test_too_few_steps_are_refused(monkeypatch):
    monkeypatch.setattr("fedproxy_secure.secagg.ring.MIN_LEVELS", 1000)
    with pytest.raises(ConfigError, match="leaves 511 steps a side for 64 clients; must be >= 1000"):
        plan_of(16, 64)


def test_segments_of_another_name_or_length_are_refused():
    plan = plan_of(d=3)
    with pytest.raises(DataError, match=r"segments \['y'\]: must be \['x'\]"):
        quantise(plan, {"y": np.zeros(3)})
    with pytest.raises(DataError, match=r"segment x: shape \(4,\); must be \(3,\)"):
        quantise(plan, {"x": np.zeros(4)})
    with pytest.raises(DataError, match="masked vector of 11 bytes: must have 12"):
        add_packed(plan, np.zeros(3, np.uint32), bytes(11))
    with pytest.raises(ConfigError, match="is a count and has no step"):
        plan.step_of(Segment(name="n", length=1, largest=1))


def test_24_bit_words_travel_as_three_bytes():
    plan = plan_of(24, d=CHUNK_WORDS + 7)
    words = np.arange(plan.words, dtype=np.uint32) * 251
    assert len(pack(plan, words)) == plan.upload_bytes == 3 * plan.words
    total = np.zeros(plan.words, dtype=np.uint32)
    add_packed(plan, total, pack(plan, words))
    assert np.array_equal(total, words & 0xFFFFFF)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_mask_that_cannot_be_made_is_an_error_in_whatever_thread(threads):
    with pytest.raises(ValueError, match="key"):
        add_masks(np.zeros(3 * CHUNK_WORDS, np.uint32), plus=[Secret(b"short")], minus=[], threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("words", [1, CHUNK_WORDS, 5 * CHUNK_WORDS + 11])
def test_masks_do_not_depend_on_how_many_threads_make_them(threads, words):
    keys = [Secret(bytes([i]) * 32) for i in range(3)]
    for kind in (np.uint16, np.uint32):
        one, many = np.zeros(words, kind), np.zeros(words, kind)
        add_masks(one, plus=keys[:2], minus=keys[2:])
        add_masks(many, plus=keys[:2], minus=keys[2:], threads=threads)
        assert np.array_equal(one, many)
        add_masks(many, plus=keys[2:], minus=keys[:2], threads=threads)
        assert not many.any()


def test_the_largest_value_seen_may_be_a_small_one():
    made = quantise(plan_of(d=4), {"x": np.array([0.25, -0.5, 0, 0], np.float32)})
    assert (made.clipped, made.largest) == (0, 0.5)


@pytest.mark.parametrize(
    ("clients", "bits", "levels"), [(7, 16, 4681), (47, 24, 178481), (3, 32, 715827882)]
)
def test_levels_are_the_most_that_do_not_wrap(clients, bits, levels):
    assert plan_of(bits, clients).levels == levels
    assert clients * levels < 2 ** (bits - 1) <= clients * (levels + 1)
