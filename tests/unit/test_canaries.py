"""A7: exposure by its known answers, secrets ranked as they should be, what the plug-in does to them."""

import math

import numpy as np
import pytest

from attacks import white_box
from attacks.base import Budget, NotApplicable, Truth, replace_view
from attacks.membership.canaries import (
    FUSED,
    PROXY,
    REFERENCES,
    CanaryExposure,
    Ranked,
    Secrets,
    exposure,
    rank_of,
)
from attacks.membership.overfit import overfitted
from attacks.trial import run_one
from fedproxy_secure.config import AdapterConfig, LocalConfig
from fedproxy_secure.data.encode import encode_records
from fedproxy_secure.data.planted import draw_canaries
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.measures.privacy import CANARY_EXPOSURE_BITS
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, get_vector
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.record.private import PrivateState
from fedproxy_secure.record.view import View
from tests.support.lab import make_lab
from tests.support.tiny import save_tiny, tiny_tokenizer

CANARIES = draw_canaries("c0", [1, 4, 16], seed=0)
HARD = LocalConfig(steps=60, batch_size=3, learning_rate=2e-2)


def rng(seed=0):
    return np.random.default_rng(seed)


def state(canaries):
    planted = [c.record() for c in canaries for _ in range(c.repeats)]
    items = encode_records(planted, tiny_tokenizer(), max_tokens=64).items
    return PrivateState(client="c0", train=items, holdout=(), canaries=canaries, rounds={})


def learn(tuned):
    items = list(dict.fromkeys(state(CANARIES).train))
    train(tuned, items, steps=HARD.steps, local=HARD, pad_id=0, rng=rng(), subject="test")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A view whose proxy and fused LLM know three canaries by heart, and the truth."""
    place = tmp_path_factory.mktemp("canaries")
    lab = make_lab(place / "proxy", hidden=32, adapter={"rank": 8}, max_tokens=64)
    with lab.opened() as box:
        learn(box.tuned)
        learnt = get_vector(box.tuned)
    fused = save_tiny(place / "fused", blocks=2)
    tuned = attach(load_llm(fused, device="cpu")[0], AdapterConfig(rank=8), seed=0)
    learn(tuned)
    tuned.merge_and_unload().save_pretrained(fused)
    seen = replace_view(lab.view({}), adapters={0: lab.start, 1: learnt}, api=fused)
    return seen, Truth(clients={"c0": state(CANARIES)})


@pytest.mark.parametrize(
    ("perplexity", "bits"), [(0, 4.0), (20, 4 - math.log2(17)), (3.5, 2.0), (16, 4 - math.log2(17))]
)
def test_known_exposures_among_references_one_to_sixteen_come_out(perplexity, bits):
    assert exposure(perplexity, np.arange(1, 17)) == pytest.approx(bits, abs=1e-12)


def test_the_measure_s_range_begins_at_the_last_rank_among_the_fewest_references_of_any_profile():
    last = exposure(1.0, np.zeros(min(REFERENCES.values())))
    assert CANARY_EXPOSURE_BITS.within[0] == pytest.approx(last, abs=1e-12)


def test_a_tie_counts_against_the_adversary():
    assert rank_of(2.0, np.array([1.0, 2.0, 2.0, 3.0])) == 4


def test_of_secrets_that_nobody_planted_exposure_is_that_of_a_uniform_rank():
    draws = [exposure(v, r) for v, *r in rng().random((4000, 65)).tolist() for r in [np.array(r)]]
    expected = np.mean([6 - math.log2(rank) for rank in range(1, 66)])
    assert np.mean(draws) == pytest.approx(expected, abs=4 * np.std(draws) / math.sqrt(4000))


def metrics(found):
    return {e.metric: e.value for e in found}


def test_secrets_known_by_heart_are_first_said_aloud_and_survive_the_plug_in(world):
    seen, truth = world
    attack = CanaryExposure()
    exam = attack.exam(truth, seen, rng())
    guess = attack.guess(seen, exam.question, Budget(), rng())
    found = metrics(attack.score(guess, exam.answer))
    assert found["auc"] == found[f"auc, {PROXY}"] == found[f"auc, {FUSED}"] == 1
    assert found[f"extracted from the {PROXY}"] == found[f"extracted from the {FUSED}"] == 1
    for times in (1, 4, 16):
        for what in ("gained in", "in"):
            assert found[f"exposure {what} the {PROXY}, {times} times"] == math.log2(REFERENCES["smoke"])
    assert found["exposure gained by the plug-in"] == 0


def test_a_proxy_that_knew_the_secrets_before_round_0_has_gained_no_exposure(world):
    """A model that finds some secrets likely whether it was tuned or not."""
    seen, truth = world
    learnt = seen.adapters[1]
    before = replace_view(seen, adapters={0: learnt, 1: learnt}, api=None)
    attack = CanaryExposure()
    exam = attack.exam(truth, before, rng())
    found = metrics(attack.score(attack.guess(before, exam.question, Budget(), rng()), exam.answer))
    assert found[f"auc, {PROXY}"] == 1
    assert found["auc"] == 0.5
    for times in (1, 4, 16):
        assert found[f"exposure in the {PROXY}, {times} times"] == math.log2(REFERENCES["smoke"])
        assert found[f"exposure gained in the {PROXY}, {times} times"] < 0


def test_a_secret_that_was_likely_before_tuning_does_not_count_as_exposed():
    before = np.array([[1.0, 5.0, 6.0, 7.0, 8.0], [5.0, 6.0, 7.0, 8.0, 9.0]])
    tuned = before - np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.0, 0.5, 0.0, 0.0]])
    guess = Ranked(losses={PROXY: tuned}, said={PROXY: ("", "")}, before=before)
    answer = Secrets(at=(0, 2), secrets=("1111", "2222"), repeats=(1, 16))
    found = metrics(CanaryExposure().score(guess, answer))
    # the first canary: likeliest all along, but every other candidate gained more than it did
    assert found[f"exposure in the {PROXY}, 1 times"] == 2.0
    assert found[f"exposure gained in the {PROXY}, 1 times"] == pytest.approx(2 - math.log2(5))
    # the second: still behind two others, but no other gained as much
    assert found[f"exposure in the {PROXY}, 16 times"] == pytest.approx(2 - math.log2(3))
    assert found[f"exposure gained in the {PROXY}, 16 times"] == 2.0
    assert found["auc"] == 0.5
    assert found[f"auc, {PROXY}"] == pytest.approx((1 + 0.5) / 2)


def test_a_client_that_missed_round_0_compares_with_the_proxy_as_it_was_sent(world):
    """Its first broadcast is of a round that others have trained in."""
    seen, truth = world
    late = replace_view(seen, adapters={1: seen.adapters[1], 2: seen.adapters[1]}, api=None)
    attack = CanaryExposure()
    exam = attack.exam(truth, late, rng())
    guess = attack.guess(late, exam.question, Budget(), rng())
    with white_box.opened(late) as box:
        untuned = get_vector(box.tuned)
    early = replace_view(late, adapters={0: untuned, 1: seen.adapters[1]})
    expected = attack.guess(early, exam.question, Budget(), rng())
    np.testing.assert_array_equal(guess.before, expected.before)
    assert metrics(attack.score(guess, exam.answer))["auc"] > 0.9


def test_the_measure_of_exposure_takes_what_tuning_gained_where_that_is_known():
    taken = [
        metric
        for metric in (
            f"exposure gained in the {PROXY}, 4 times",
            f"exposure in the {PROXY}, 4 times",
            f"exposure in the {FUSED}, 4 times",
            "exposure gained by the plug-in",
        )
        if any(feeds.takes(metric) for feeds in CanaryExposure.info.measures)
    ]
    assert taken == [f"exposure gained in the {PROXY}, 4 times", f"exposure in the {FUSED}, 4 times"]


def test_a_plug_in_that_forgets_is_measured(world, tmp_path):
    seen, truth = world
    forgetful = replace_view(seen, api=save_tiny(tmp_path, blocks=2))
    attack = CanaryExposure()
    exam = attack.exam(truth, forgetful, rng())
    found = metrics(attack.score(attack.guess(forgetful, exam.question, Budget(), rng()), exam.answer))
    assert found["auc"] == found[f"auc, {PROXY}"] == 1
    assert found[f"extracted from the {FUSED}"] == 0
    assert found["exposure gained by the plug-in"] < -2


def test_a_customer_of_the_api_measures_the_fused_llm_alone(world):
    seen, truth = world
    outside = View(threat_model="api_user", api=seen.api)
    attack = CanaryExposure()
    exam = attack.exam(truth, outside, rng())
    guess = attack.guess(outside, exam.question, Budget(), rng())
    assert set(guess.losses) == {FUSED}
    assert guess.before is None
    found = metrics(attack.score(guess, exam.answer))
    assert found["auc"] == 1
    assert not any(metric.startswith("exposure gained") for metric in found)


@pytest.mark.slow
def test_the_attack_as_a_whole_finds_all_in_models_that_know_and_says_that_three_are_too_few(world):
    seen, truth = world
    found = run_one(CanaryExposure(), seen, truth, profile="smoke", seconds=60, seed=0)
    assert found.headline.value == found.positive.value == 1
    assert found.headline.n == 3
    assert found.headline.low < 0.5 < found.headline.high  # three of three: Wilson's interval
    assert found.outcome == Outcome.INCONCLUSIVE
    assert found.negative.low < 0.5
    fresh = replace_view(seen, adapters={0: seen.adapters[0]}, api=None)
    found = run_one(CanaryExposure(), fresh, truth, profile="smoke", seconds=60, seed=0)
    assert found.outcome != Outcome.SUCCEEDED


def test_its_positive_control_knows_every_client_s_canaries(world):
    seen, truth = world
    fresh = replace_view(seen, adapters={0: seen.adapters[0]}, api=None)
    more = Truth(clients={**truth.clients, "c1": state(draw_canaries("c1", [2], seed=0))})
    open_view, open_truth = overfitted(fresh, more, what="canaries")
    assert open_truth.clients == more.clients
    attack = CanaryExposure()
    exam = attack.exam(open_truth, open_view, rng())
    guess = attack.guess(open_view, exam.question, Budget(), rng())
    assert attack.score(guess, exam.answer)[0].value > 0.9


def test_its_positive_control_trains_the_model_that_decides_and_no_other(world):
    """The headline is the proxy's where the view has one; to train the whole LLM would cost the most."""
    seen, truth = world
    held, _ = CanaryExposure().positive(seen, truth)
    assert held.api is None
    assert max(held.adapters) > max(seen.adapters)
    outside, _ = CanaryExposure().positive(View(threat_model="api_user", api=seen.api), truth)
    assert outside.api not in (None, seen.api)


def test_the_question_hides_each_secret_among_others_of_its_space(world):
    seen, truth = world
    exam = CanaryExposure().exam(truth, seen, rng())
    for candidates, at, canary in zip(exam.question.candidates, exam.answer.at, CANARIES, strict=True):
        assert candidates[at] == canary.secret
        assert sorted(candidates) == [f"{v:04d}" for v in range(10_000)]
        assert at <= REFERENCES["smoke"]
    assert exam.answer.repeats == (1, 4, 16)


def test_the_negative_control_asks_of_secrets_that_nobody_planted(world):
    seen, truth = world
    exam = CanaryExposure().exam(truth, seen, rng())
    same, empty = CanaryExposure().negative(seen, exam, rng())
    assert same is seen
    assert empty.question is exam.question
    for before, after in zip(exam.answer.at, empty.answer.at, strict=True):
        assert before != after
        assert after <= REFERENCES["smoke"]
    assert not set(empty.answer.secrets) & set(exam.answer.secrets)


def test_without_canaries_there_is_no_question():
    with pytest.raises(NotApplicable, match="no canaries were planted"):
        CanaryExposure().exam(Truth(clients={"c0": state(())}), View(threat_model="toy"), rng())


def test_a_hand_made_ranking_gives_the_exposures_counted_by_hand():
    losses = np.array([[1.0, 5.0, 6.0, 7.0, 8.0], [9.0, 1.0, 2.0, 3.0, 4.0]])
    guess = Ranked(
        losses={PROXY: losses, FUSED: losses[:, ::-1]}, said={PROXY: ("1111", "0"), FUSED: ("", "")}
    )
    answer = Secrets(at=(0, 1), secrets=("1111", "2222"), repeats=(1, 16))
    found = metrics(CanaryExposure().score(guess, answer))
    assert found["auc"] == 1.0
    assert found[f"exposure in the {PROXY}, 1 times"] == 2.0
    assert found[f"exposure in the {FUSED}, 1 times"] == pytest.approx(2 - math.log2(5))
    assert found[f"extracted from the {PROXY}"] == 0.5
    # the second canary: first of four before, then behind two of them
    assert found["exposure gained by the plug-in"] == pytest.approx((-math.log2(5) - math.log2(3)) / 2)
