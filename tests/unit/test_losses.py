"""Losses on free text: known answers, the same with and without packing, and intervals over records."""

import json
import math
import operator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.evaluate import response_losses
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.evidence.answers import alone, gap_closed
from fedproxy_secure.evidence.losses import (
    TextLoss,
    loss_gap_over_seeds_or_records,
    loss_of,
    loss_over_seeds_or_records,
    losses_in,
    mean_loss,
    measured,
    resolved_loss_gap,
)
from fedproxy_secure.experiments.results import Accuracy, average, from_texts, to_texts
from fedproxy_secure.models.packing.packed import can_pack
from tests.support.finished_cells import lost
from tests.support.tiny import VOCABULARY, tiny_llama, tiny_tokenizer

MOST = 64
RIGHT = Accuracy(correct=(True, False), correct_norm=(True, True))


def told(*texts: str, prompt="Q: {}?") -> list[Record]:
    return [Record(prompt=prompt.format(i), choices=(f" {t}",), label=0) for i, t in enumerate(texts)]


def loss(*nats: float, tokens=1) -> dict[str, TextLoss]:
    return {"t": TextLoss(nats=nats, tokens=(tokens,) * len(nats))}


def drawn(count: int, seed: int, mean=2.0) -> dict[str, TextLoss]:
    rng = np.random.default_rng(seed)
    tokens = np.random.default_rng(count).integers(1, 20, count)  # of the same records for every model
    nats = tokens * rng.gamma(4, mean / 4, count)
    return {"t": TextLoss(nats=tuple(nats.tolist()), tokens=tuple(tokens.tolist()))}


# --- one model, one record


def test_a_records_loss_is_the_one_that_transformers_computes():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    records = told("a", "some longer answer", "x" * 40)
    lost = response_losses(model, tokenizer, records, max_tokens=MOST)
    for index, item in enumerate(encode_records(records, tokenizer, max_tokens=MOST).items):
        ids = torch.tensor([item.ids])
        labels = ids.clone()
        labels[:, : item.response_start] = -100
        with torch.no_grad():
            theirs = float(model(input_ids=ids, labels=labels).loss)
        assert lost.nats[index] / lost.tokens[index] == pytest.approx(theirs, abs=1e-5)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary_at_each_token():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    torch.nn.init.zeros_(model.lm_head.weight)
    records = told("yes", "never on a Sunday")
    lost = response_losses(model, tokenizer, records, max_tokens=MOST)
    assert lost.tokens.tolist() == [len(" yes") + 1, len(" never on a Sunday") + 1]  # and the end token
    assert lost.nats / lost.tokens == pytest.approx([math.log(VOCABULARY)] * 2, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=30), min_size=1, max_size=6))
def test_a_records_loss_does_not_depend_on_those_that_are_read_with_it(texts):
    model, tokenizer = tiny_llama(2), tiny_tokenizer()
    records = told(*texts)
    together = response_losses(model, tokenizer, records, max_tokens=MOST)
    each = [response_losses(model, tokenizer, [r], max_tokens=MOST) for r in records]
    assert together.nats == pytest.approx(np.concatenate([e.nats for e in each]), abs=1e-4)
    assert together.tokens.tolist() == [int(e.tokens[0]) for e in each]


def test_a_model_that_cannot_be_packed_has_the_same_loss():
    tokenizer, records, other = tiny_tokenizer(), told("a", "bb", "ccc"), tiny_llama(2)
    other.config.sliding_window = 1000  # wider than any record, and a reason not to pack
    assert not can_pack(other)
    packed = response_losses(tiny_llama(2), tokenizer, records, max_tokens=MOST)
    assert response_losses(other, tokenizer, records, max_tokens=MOST).nats == pytest.approx(packed.nats)


def test_a_model_that_has_diverged_has_an_infinite_loss_that_is_kept_and_counts_as_not_measured():
    model = tiny_llama(2)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    found = response_losses(model, tiny_tokenizer(), told("a", "b"), max_tokens=MOST)
    assert np.isinf(found.nats).all()
    scores = {"t": TextLoss(nats=tuple(found.nats.tolist()), tokens=tuple(found.tokens.tolist()))}
    kept = json.dumps(to_texts("fused", scores), allow_nan=False)
    assert from_texts("fused", json.loads(kept)) == scores
    assert not measured(scores)
    assert not measured({})
    assert measured(loss(1.0))


def test_progress_is_told_of_every_record_and_the_model_is_left_as_it_was():
    model, seen = tiny_llama(2).train(), []
    response_losses(
        model, tiny_tokenizer(), told("a", "b"), max_tokens=MOST, on_passes=lambda *n: seen.append(n)
    )
    assert seen[-1] == (2, 2)
    assert model.training


# --- on disk


def test_scores_are_read_back_as_they_were_written_and_no_accuracy_counts_free_text():
    scores = {"coded": RIGHT, "letters": TextLoss(nats=(1.5, 2.0), tokens=(3, 4))}
    assert from_texts("fused", to_texts("fused", scores)) == scores
    assert average(scores) == RIGHT.value == 0.5
    with pytest.raises(DataError, match="all tasks are free text"):
        average({"letters": scores["letters"]})
    assert "fused_loss" not in to_texts("fused", {"coded": RIGHT})
    assert losses_in({"fused": {}}, "fused") == {}


@pytest.mark.parametrize(
    ("nats", "tokens"),
    [
        ((), ()),
        ((1.0,), (1, 2)),
        ((float("nan"),), (1,)),
        ((-1.0,), (1,)),
        ((1.0,), (0,)),
        ((1.0,), (1.5,)),
    ],
)
def test_losses_that_no_model_has_are_refused(nats, tokens):
    with pytest.raises(ValueError, match="losses: "):
        TextLoss(nats=nats, tokens=tokens)


# --- over records and seeds


def test_a_loss_counts_tokens_and_each_task_the_same():
    assert TextLoss(nats=(1.0, 9.0), tokens=(1, 4)).value == 2.0
    assert mean_loss({**loss(1.0), "other": TextLoss(nats=(9.0, 9.0), tokens=(3, 3))}) == 2.0


def test_over_many_records_the_interval_is_about_students():
    values = np.random.default_rng(0).normal(5, 1, 400)
    found = loss_of({0: loss(*values)}, "loss")
    half = 1.966 * values.std(ddof=1) / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert found.unit == "nats"
    assert found.n == 400


def test_few_records_have_a_wider_interval_and_one_has_none():
    few, many = (loss_of({0: loss(*[1.0, 2.0, 3.0] * n)}, "loss") for n in (1, 30))
    assert few.high - few.low > 5 * (many.high - many.low)
    assert few.low >= 0
    one = loss_of({0: loss(1.0)}, "loss")
    assert (one.low, one.high) == (None, None)
    assert "no interval" in one.how


def test_what_is_hard_about_a_record_cancels_out_of_a_difference():
    hard = np.random.default_rng(1).gamma(2, 2, 100)
    a, b = loss(*hard), loss(*(hard + 0.1))
    assert loss_of({0: a}, "a").high > loss_of({0: b}, "b").low
    found = loss_over_seeds_or_records({0: (b, a)}, operator.sub, "b minus a")
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(found.high) == pytest.approx(0.1)


@pytest.mark.parametrize("count", [3, 6, 20])
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("paired", [False, True])
def test_an_interval_over_records_covers_the_truth_as_often_as_it_says(count, spread, paired):
    rng, below, above, draws = np.random.default_rng(count), 0, 0, 1000
    for _ in range(draws):
        tokens = np.ceil(np.exp(rng.normal(3, spread, count)))
        own, other = (tokens * rng.gamma(8, 1 / 8, count) for _ in range(2))
        models = [
            {"t": TextLoss(nats=tuple(nats.tolist()), tokens=tuple(tokens.astype(int).tolist()))}
            for nats in (2 * own, other)[: 1 + paired]
        ]
        statistic, truth = (operator.sub, 1.0) if paired else (alone, 2.0)
        found = loss_over_seeds_or_records({0: models}, statistic, "x")
        below, above = below + (found.high < truth), above + (found.low > truth)
    assert 0.93 <= 1 - (below + above) / draws <= 0.99
    assert max(below, above) <= 0.06 * draws


def test_responses_of_one_length_have_students_interval_for_a_loss_of_its_logarithm():
    values = (1.0, 2.0, 4.0, 5.0)
    found = loss_of({0: loss(*values, tokens=1)}, "loss")
    half = 3.182446305 * np.std(values, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((3 * math.exp(-half / 3), 3 * math.exp(half / 3)))
    found = loss_over_seeds_or_records({0: (loss(*values), loss(*[0.0] * 4))}, operator.sub, "minus")
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_a_gap_that_test_records_do_not_resolve_has_no_interval():
    rng = np.random.default_rng(0)
    zero, ceiling, method = (loss(*rng.gamma(4, 0.5, 6)) for _ in range(3))
    found = loss_over_seeds_or_records({0: (method, zero, ceiling)}, gap_closed, "gap", unit="share")
    assert (found.low, found.high) == (None, None)
    assert "do not resolve the gap" in found.how


def test_the_interval_of_a_gap_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        tokens = np.ceil(np.exp(rng.normal(3, 1, 20)))
        zero, ceiling, method = (
            {"t": TextLoss(nats=tuple(own.tolist()), tokens=tuple(tokens.astype(int).tolist()))}
            for own in (tokens * rng.gamma(20, mean / 20, 20) for mean in (4.0, 2.0, 3.0))
        )
        found = loss_over_seeds_or_records({0: (method, zero, ceiling)}, gap_closed, "gap", unit="share")
        covered += found.low is None or found.low <= 0.5 <= found.high
    assert 930 <= covered <= 990


def test_a_task_of_one_test_record_allows_no_interval_over_seeds_either():
    found = loss_of({0: loss(2.0), 1: loss(2.02)}, "loss")
    assert (found.low, found.high) == (None, None)
    assert found.how == "mean over seeds; a task of one test record, no interval"


def test_models_of_other_test_records_are_not_paired():
    a, b = loss(1.0, 2.0), loss(1.0, 2.0, tokens=2)
    for other in (b, loss(1.0), {"other": a["t"]}):
        with pytest.raises(DataError, match="x, seed 3: the models' losses are of different test records"):
            loss_over_seeds_or_records({3: (a, other)}, operator.sub, "x")


def test_gap_closed_by_loss_is_0_without_tuning_and_1_at_the_ceiling():
    zero, ceiling = drawn(50, 0, mean=4.0), drawn(50, 1, mean=2.0)
    assert resolved_loss_gap({0: (zero, ceiling)})
    assert not resolved_loss_gap({0: (ceiling, zero)})
    for method, value in ((zero, 0.0), (ceiling, 1.0)):
        found = loss_over_seeds_or_records({0: (method, zero, ceiling)}, gap_closed, "gap", unit="share")
        assert found.value == found.low == found.high == value
    half = {"t": replace(zero["t"], nats=tuple(4 * n for n in zero["t"].nats))}
    found = loss_over_seeds_or_records({0: (half, zero, ceiling)}, gap_closed, "gap", unit="share")
    assert found.high < 0  # it got worse
    assert found.unit == "share"


def test_the_gap_closed_by_loss_over_seeds_is_the_ratio_of_means_with_fieller_s_interval():
    means = {0: (3.0, 4.0, 2.0), 1: (3.0, 4.0, 2.5), 2: (3.5, 4.0, 3.0)}  # method, zero-shot, ceiling
    by_seed = {s: [{"t": lost(s, nats, records=400)} for nats in three] for s, three in means.items()}
    found = loss_over_seeds_or_records(by_seed, gap_closed, "gap", unit="share")
    ways, gaps = np.array([1.0, 1.0, 0.5]), np.array([2.0, 1.5, 1.0])
    assert found.value == pytest.approx(ways.sum() / gaps.sum())
    for end in (found.low, found.high):
        apart = ways - end * gaps
        half = 4.302652730 * apart.std(ddof=1) / math.sqrt(3)
        assert abs(apart.mean()) == pytest.approx(half, rel=1e-3)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_gap_closed_by_loss_is_told_where_the_interval_of_the_gap_itself_has_zero_in_it(seeds):
    tiny = {s: (drawn(40, s), drawn(40, 10 + s), drawn(40, 20 + s, mean=1.95)) for s in range(seeds)}
    negative = {s: (drawn(40, s), drawn(40, 10 + s, mean=1.0), drawn(40, 20 + s)) for s in range(seeds)}
    one_record = {s: (loss(2.0), loss(3.0), loss(1.0)) for s in range(seeds)}
    for by_seed in (tiny, negative, one_record):
        assert loss_gap_over_seeds_or_records(by_seed, "gap") is None
    clear = {
        s: (drawn(40, s, mean=3.0), drawn(40, 10 + s, mean=6.0), drawn(40, 20 + s)) for s in range(seeds)
    }
    found = loss_gap_over_seeds_or_records(clear, "gap")
    assert found == loss_over_seeds_or_records(clear, gap_closed, "gap", unit="share")
    assert found.low < found.value < found.high


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6), st.floats(1.0, 3.0), st.integers(1, 3))
def test_a_gap_closed_by_loss_that_is_told_has_an_interval(count, seed, mean, seeds):
    by_seed = {
        s: (drawn(count, seed + s), drawn(count, seed + s + 10, mean=mean), drawn(count, seed + s + 20))
        for s in range(seeds)
    }
    found = loss_gap_over_seeds_or_records(by_seed, "gap")
    assert found is None or found.low <= found.value <= found.high


@pytest.mark.parametrize("means", [(3.0, 4.0, 2.0), (2.5, 3.0, 1.0)])  # without rounding
def test_seeds_and_records_that_all_agree_make_the_gap_closed_by_loss_no_certainty(means):
    tokens = (1, 2, 3, 5)
    models = [{"t": TextLoss(nats=tuple(mean * n for n in tokens), tokens=tokens)} for mean in means]
    by_seed = {s: models for s in range(3)}
    found = loss_over_seeds_or_records(by_seed, gap_closed, "gap", unit="share")
    method, zero_shot, ceiling = means
    assert found.value == pytest.approx((zero_shot - method) / (zero_shot - ceiling))
    assert (found.low, found.high, found.nature) == (None, None, "sampled")


def test_a_gap_by_loss_over_seeds_has_no_interval_where_seeds_do_not_resolve_it():
    by_seed = {s: (drawn(40, s), drawn(40, 10 + s, mean=g), drawn(40, 20 + s)) for s, g in ((0, 9), (1, 3))}
    found = loss_over_seeds_or_records(by_seed, gap_closed, "gap", unit="share")
    assert (found.low, found.high) == (None, None)
    assert "do not resolve the gap" in found.how
    one = {s: (loss(2.0), loss(3.0), loss(1.0)) for s in range(3)}
    found = loss_over_seeds_or_records(one, gap_closed, "gap", unit="share")
    assert (found.value, found.low, found.how[-38:]) == (
        0.5,
        None,
        "a task of one test record, no interval",
    )


def test_a_seed_whose_ceiling_loses_more_counts_in_the_gap_where_the_mean_gap_is_resolved():
    gaps = (2.0, 2.1, 1.9, 2.0, -0.1, 2.0, 2.1, 1.9)
    by_seed = {
        s: [{"t": lost(s, nats)} for nats in (4 - gap / 2, 4.0, 4 - gap)] for s, gap in enumerate(gaps)
    }
    found = loss_gap_over_seeds_or_records(by_seed, "gap")
    assert found.value == pytest.approx(0.5)
    assert found.low is not None


def test_a_seed_without_any_gap_counts_in_the_gap_closed_by_loss_over_seeds():
    three = {0: (3.0, 4.0, 2.0), 1: (3.5, 4.0, 4.0)}  # of seed 1 the ceiling learned nothing
    by_seed = {s: [{"t": lost(s, nats)} for nats in losses] for s, losses in three.items()}
    found = loss_over_seeds_or_records(by_seed, gap_closed, "gap", unit="share")
    assert found.value == pytest.approx(1.5 / 2)
    assert (found.n, found.seeds) == (2, (0, 1))


def test_several_seeds_are_no_surer_than_one_is_over_its_records():
    one = drawn(40, 3)
    found = loss_of({0: one, 1: one}, "loss")
    alone_ = loss_of({0: one}, "loss")
    assert found.value == pytest.approx(alone_.value)
    assert found.how == "seeds that agree, as wide as a seed's own"
    assert found.high - found.low == pytest.approx(alone_.high - alone_.low, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6))
def test_an_interval_holds_its_number(count, seed):
    a, b = drawn(count, seed), drawn(count, seed + 1)
    for models, statistic in (((a,), alone), ((a, b), operator.sub)):
        found = loss_over_seeds_or_records({0: models}, statistic, "x")
        assert found.low <= found.value <= found.high
