"""A6: finds the records of a model that knows them, none by labels that say nothing; published scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from attacks import white_box
from attacks.base import Budget, Inconclusive, NotApplicable, Truth, replace_view
from attacks.membership.blind import PERMUTATIONS, TELLS, bag_of_words, refuse_told
from attacks.membership.gradients import record_gradients
from attacks.membership.models import ModelMembership, Scored
from attacks.membership.overfit import overfitted
from attacks.membership.references import halves, hard_tokens, lira, rmia, slopes, window_votes
from attacks.membership.scores import Likelihoods, continuation_losses, likelihoods, membership_scores
from attacks.statistics import auc_value, p_by_chance
from attacks.trial import run_one
from fedproxy_secure.config import AdapterConfig, FederateConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.data.planted import Canary
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.models.adapters import attach, get_vector
from fedproxy_secure.record.view import View
from tests.support.lab import records
from tests.support.memorised import HARD, RECORDS, learn, memorised, rng, state
from tests.support.tiny import tiny_llama, tiny_tokenizer
from tests.support.toys import late


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A view before and after a proxy has learnt `RECORDS` records by heart, and the truth."""
    return memorised(tmp_path_factory.mktemp("lab"))


def asked(world, seen=None, profile="smoke"):
    view, truth = world
    attack, seen = ModelMembership(), seen or view
    exam = attack.exam(truth, seen, rng())
    return attack, exam, attack.guess(seen, exam.question, Budget(profile=profile), rng())


def test_records_known_by_heart_are_told_from_others_without_error(world):
    attack, exam, guess = asked(world)
    headline, *_ = attack.score(guess, exam.answer)
    assert guess.headline == "fall of loss since round 0"
    assert headline.value == 1
    assert headline.low > 0.55
    assert headline.n == 2 * RECORDS


@pytest.mark.slow
def test_every_score_that_a_larger_profile_adds_finds_them_too(world):
    view, truth = world
    settings = view.settings.changed(local=HARD, federate=FederateConfig(rounds=1))  # as `world` trained
    _, exam, guess = asked((replace_view(view, settings=settings), truth), profile="full")
    assert {"slope over rounds", "RMIA, offline", "gradient norm", "LiRA, 8 shadows"} <= set(guess.scores)
    for name, scores in guess.scores.items():
        assert auc_value(scores, exam.answer[: len(scores)]) > 0.9, name


def test_a_proxy_whose_step_says_nothing_leaves_the_attack_at_chance(world):
    attack, exam, _ = asked(world)
    values = []
    for seed in range(8):
        empty, same = attack.negative(world[0], exam, rng(seed))
        assert same is exam
        np.testing.assert_array_equal(empty.adapters[0], world[0].adapters[0])
        guess = attack.guess(empty, same.question, Budget(profile="standard"), rng())
        assert "gradient norm" not in guess.scores  # of a control the headline is enough
        values.append(auc_value(guess.scores[guess.headline], same.answer))
    assert abs(np.mean(values) - 0.5) < 4 * np.std(values, ddof=1) / np.sqrt(8)


def test_an_api_alone_has_no_negative_control(world, tmp_path):
    seen = View(threat_model="api_user", api=tmp_path)
    exam = ModelMembership().exam(world[1], seen, rng())
    assert ModelMembership().negative(seen, exam, rng()) == (seen, exam)


def test_a_customer_of_the_api_finds_them_without_a_reference(world, tmp_path, monkeypatch):
    items = world[1].clients["c0"].train
    tuned = attach(tiny_llama(blocks=2), AdapterConfig(rank=8), seed=0)
    learn(tuned, items)
    tuned.merge_and_unload().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    outside = View(threat_model="api_user", api=tmp_path)
    attack, exam, guess = asked(world, outside)
    assert guess.headline == "Min-K%++"
    assert attack.score(guess, exam.answer)[0].value > 0.95
    monkeypatch.setattr("attacks.membership.models.FEWEST", 8)  # a control begins late, and reads as many
    again = attack.guess(outside, exam.question, late(), rng())
    assert len(again.scores["Min-K%++"]) == 2 * RECORDS


def test_its_positive_control_knows_a_dozen_records_of_one_client_by_heart(world):
    seen, truth = world
    untouched = replace_view(seen, adapters={0: seen.adapters[0]})
    open_view, open_truth = overfitted(untouched, truth, what="answers")
    (made,) = open_truth.clients.values()
    assert len(made.train) == len(made.rounds[0].used) == 12
    for before, after in zip(truth.clients["c0"].train, made.train, strict=False):
        assert after.ids[: after.response_start] == before.ids[: after.response_start]
    attack, exam, guess = asked((open_view, open_truth))
    assert attack.score(guess, exam.answer)[0].low > 0.55


def test_the_attack_as_a_whole_succeeds_where_records_are_known_and_resists_where_they_are_not(world):
    seen, truth = world
    found = run_one(ModelMembership(), seen, truth, profile="smoke", seconds=60, seed=0)
    assert found.outcome == Outcome.SUCCEEDED
    assert found.effort == {"documents": 2 * RECORDS}
    assert found.negative.low < 0.5 < found.negative.high
    fresh = replace_view(seen, adapters={0: seen.adapters[0], 1: seen.adapters[0] * 1.001})
    found = run_one(ModelMembership(), fresh, truth, profile="smoke", seconds=60, seed=0)
    assert found.outcome != Outcome.SUCCEEDED
    assert found.positive.low > 0.55


# the question


def test_the_question_mixes_drawn_records_with_others_evenly_and_leaves_out_canaries():
    items = records(rng(), 60, tokens=40, length=12)
    planted = (Canary(prompt="p", secret="0000", repeats=2),)
    truth = Truth(
        clients={"c0": state(items[:32], items[32:], used=[0, 1, 2, 2, 3, 9, 30, 31], canaries=planted)}
    )
    exam = ModelMembership().exam(truth, View(threat_model="toy"), rng())
    members = {d for d, there in zip(exam.question.documents, exam.answer, strict=True) if there}
    assert members == {items[i] for i in (0, 1, 2, 3, 9)}
    assert exam.answer.sum() * 2 == len(exam.answer)
    assert not set(exam.question.population) & set(exam.question.documents)
    assert set(exam.question.population) <= set(items[32:])
    assert not exam.answer[: exam.answer.sum()].all()


def test_without_records_set_aside_there_is_no_question():
    items = records(rng(), 30, tokens=40, length=12)
    truth = Truth(clients={"c0": state(items[:28], items[28:])})
    with pytest.raises(NotApplicable, match="too few records were drawn, or set aside"):
        ModelMembership().exam(truth, View(threat_model="toy"), rng())
    bare = Truth(clients={"c0": state(items[:28], ())})
    with pytest.raises(NotApplicable, match="no records were set aside"):
        ModelMembership().exam(bare, View(threat_model="toy"), rng())


def test_a_text_that_an_honest_client_trains_on_is_neither_a_nonmember_nor_in_the_population():
    items = records(rng(), 64, tokens=40, length=12)
    first, second = items[:16], items[16:32]
    truth = Truth(
        clients={"c0": state(first, (*items[32:48], *second)), "c1": state(second, (*items[48:], *first))}
    )
    for seed in range(9):
        exam = ModelMembership().exam(truth, View(threat_model="toy"), rng(seed))
        absent = {d for d, label in zip(exam.question.documents, exam.answer, strict=True) if not label}
        assert absent
        assert exam.question.population
        assert (absent | set(exam.question.population)) <= set(items[32:])


def test_a_view_without_a_model_is_not_applicable(world):
    with pytest.raises(NotApplicable, match="holds no model"):
        asked(world, View(threat_model="toy"))


# the blind baseline


def test_a_split_that_tells_by_itself_makes_every_score_inconclusive():
    labels = np.arange(80) % 2 == 0
    told = np.stack([labels, ~labels]).T.astype(np.float32)
    values = labels.astype(float)
    scored = Scored(scores={"loss": values}, headline="loss", blind=told)
    with pytest.raises(
        Inconclusive, match="a blind baseline reaches AUC 1: texts alone separate members from non-members"
    ):
        ModelMembership().score(scored, labels)


def test_a_score_that_finds_more_than_the_headline_reaches_the_measures_and_the_blind_baseline_does_not():
    labels, generator = np.arange(800) % 2 == 0, rng()
    scores = {"loss": generator.normal(size=800), "LiRA, 8 shadows": labels + generator.normal(0, 0.1, 800)}
    scored = Scored(scores=scores, headline="loss", blind=np.zeros((800, 1), np.float32))
    estimates = ModelMembership().score(scored, labels)
    assert [e.metric for e in estimates].count("auc, loss") == 0  # it is the headline's own number
    assert estimates[0].how.endswith("; of loss")
    for measure in ("membership_auc", "tpr_at_1pct_fpr"):
        (feeds,) = (f for f in ModelMembership.info.measures if f.measure == measure)
        fed = [e for e in estimates if feeds.takes(e.metric)]
        assert len(fed) == 2
        assert max(e.value for e in fed) == 1


def test_a_score_of_fewer_documents_than_the_headline_is_told_and_feeds_no_measure():
    """Of 200 and 200 documents chance alone reaches above .55, however many the others are."""
    labels, generator = np.arange(800) % 2 == 0, rng()
    scores = {n: generator.normal(size=800) for n in ("loss", "LiRA, 8 shadows")}
    scored = Scored(scores=scores, headline="loss", blind=np.zeros((800, 1), np.float32))
    few = replace(scored, scores={**scores, "gradient norm": scores["loss"][:400]})
    estimates = ModelMembership().score(few, labels)
    assert [e.n for e in estimates if e.metric == "gradient norm of 400 documents, AUC"] == [400]
    for feeds in ModelMembership.info.measures:
        fed = [e for e in estimates if feeds.takes(e.metric)]
        assert len(fed) == 2
        assert not any("gradient norm" in e.metric for e in fed)
    rates = [e.metric for e in ModelMembership().score(few, labels) if e.metric.startswith("TPR at 1.0%")]
    assert rates == ["TPR at 1.0% FPR", "TPR at 1.0% FPR, LiRA, 8 shadows"]  # of 200 no rate is decided


def test_a_split_that_does_not_is_called_telling_no_more_often_than_its_interval_says():
    generator, telling = rng(), 0
    for _ in range(200):
        counts = generator.poisson(0.3, (40, 50)).astype(np.float32)
        try:
            telling += refuse_told(counts, generator.permutation(np.arange(40) < 20)).low > 0.5
        except Inconclusive:
            telling += 1
    assert stats.binomtest(telling, 200, 0.025, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize(("each", "told"), [(5, True), (4, False)])
def test_scores_that_tell_everything_are_called_telling_even_of_few_documents(each, told):
    """Of 4 and 4 documents one of 70 ways to deal the labels out is as good."""
    labels = np.arange(2 * each) < each
    assert (p_by_chance(labels.astype(float), labels, permutations=PERMUTATIONS) < TELLS) == told


def test_the_p_value_of_scores_that_say_nothing_is_uniform():
    labels, generator = np.arange(40) < 20, rng()
    values = [p_by_chance(generator.normal(size=40), labels, permutations=9_999) for _ in range(150)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_bags_of_words_count_tokens_that_two_documents_have():
    a, b = (Encoded(ids=ids, response_start=1) for ids in ((5, 5, 6), (7, 6, 5)))
    np.testing.assert_array_equal(bag_of_words([a, b]), [[2, 1], [1, 1]])


# the scores


def test_likelihoods_are_those_of_response_tokens_one_by_one():
    model, items = tiny_llama(), records(rng(), 5, tokens=40, length=9)
    items = [replace(i, ids=i.ids[: 9 - n]) for n, i in enumerate(items)]
    for item, found in zip(items, likelihoods(model, items, budget=Budget()), strict=True):
        with torch.inference_mode():
            logs = model(torch.tensor([item.ids])).logits[0].double().log_softmax(-1)
        for j, place in enumerate(range(item.response_start, len(item.ids))):
            law = logs[place - 1]
            assert found.nll[j] == pytest.approx(-float(law[item.ids[place]]), abs=1e-4)
            mean = float((law.exp() * law).sum())
            spread = float((law.exp() * (law - mean).square()).sum()) ** 0.5
            assert found.standard[j] == pytest.approx(
                (float(law[item.ids[place]]) - mean) / spread, abs=1e-3
            )
        assert len(found.nll) == len(item.ids) - item.response_start


def test_continuations_of_a_prompt_cost_what_they_would_alone():
    model, prompt = tiny_llama(), [1, 40, 41, 42]
    continuations = [(7, 8, 9), (7, 8, 10), (7,), (11, 12), (7, 8, 9)]
    found = continuation_losses(model, prompt, continuations, budget=Budget())
    for tokens, loss in zip(continuations, found, strict=True):
        item = Encoded(ids=(*prompt, *tokens), response_start=len(prompt))
        (alone,) = likelihoods(model, [item], budget=Budget())
        assert loss == pytest.approx(alone.nll.sum(), abs=1e-4)


def test_min_k_looks_at_the_least_likely_fifth_and_zlib_at_the_texts_bytes():
    nll = np.arange(10.0)
    found = [Likelihoods(nll=nll, standard=-nll / 2)]
    item = Encoded(ids=tuple(range(3, 14)), response_start=1)
    scores = membership_scores(found, [item], tiny_tokenizer())
    assert scores["loss"] == pytest.approx(-4.5)
    assert scores["Min-K%"] == pytest.approx(-8.5)
    assert scores["Min-K%++"] == pytest.approx(-4.25)
    assert -45 / 8 < scores["loss/zlib"][0] < 0
    # of a record the response alone is compressed, whose loss it is
    longer = Encoded(ids=(*range(100, 140), *item.ids[1:]), response_start=40)
    alone = membership_scores(found, [replace(item, ids=item.ids)], tiny_tokenizer())["loss/zlib"]
    assert membership_scores(found, [longer], tiny_tokenizer())["loss/zlib"] == alone


def test_slopes_are_those_of_least_squares():
    series = rng().random((5, 3))
    expected = [np.polyfit(np.arange(5), column, 1)[0] for column in series.T]
    np.testing.assert_allclose(slopes(series), expected)


def test_rmia_counts_the_population_that_a_record_beats():
    first, last = np.array([2.0, 2.0, 2.0]), np.array([0.5, 1.5, 2.5])
    population = np.array([1.0, 2.0])
    found = rmia(first, last, np.array([2.0, 2.0]), population)
    np.testing.assert_allclose(found, [1.0, 0.5, 0.0], atol=1e-4)
    # of two records whose loss fell alike the one that stays unlikely beats fewer
    likely, unlikely = rmia(np.array([0.2, 3.0]), np.array([0.1, 2.9]), first, last)
    assert likely > unlikely


def test_each_document_is_in_half_of_the_shadows():
    with_it = halves(8, 50, rng())
    assert (with_it.sum(axis=0) == 4).all()
    assert with_it.sum(axis=1).min() > 50 * 4 / 8 - 4 * 5


def test_lira_tells_members_of_gaussian_worlds_and_nobody_in_worlds_alike():
    generator = rng()
    with_it, member = halves(8, 400, generator), np.arange(400) % 2 == 0
    hardness = generator.normal(0, 1, 400)
    noise = generator.normal(0, 0.1, (9, 400))
    inside = np.vstack([with_it, member])
    seen = np.exp(hardness + noise - 0.3 * inside)
    assert auc_value(lira(seen[8], seen[:8], with_it), member) > 0.95
    same = np.exp(hardness + noise)
    assert 0.4 < auc_value(lira(same[8], same[:8], with_it), member) < 0.6


def test_the_white_box_of_the_view_is_left_at_the_last_adapter_for_gradients(world):
    seen, _ = world
    _, exam, guess = asked(world, profile="standard")
    documents = exam.question.documents[:4]
    with white_box.opened(seen, seen.adapters[1]) as box:
        norms = np.linalg.norm(record_gradients(box, documents, budget=Budget()), axis=1)
    np.testing.assert_allclose(-guess.scores["gradient norm"][:4], norms, rtol=1e-3)


def test_the_white_box_is_put_back_and_gives_no_model_away_after_its_block(world):
    seen, _ = world
    with white_box.opened(seen) as outer:
        untrained = get_vector(outer.tuned)
        with white_box.opened(seen, seen.adapters[1]) as inner:
            np.testing.assert_array_equal(get_vector(inner.tuned), seen.adapters[1])
            inner.set(seen.adapters[0])
        np.testing.assert_array_equal(get_vector(outer.tuned), untrained)
        with pytest.raises(RuntimeError, match="its `with` block has ended; open it again"):
            inner.losses(world[1].clients["c0"].train[:1])
    with pytest.raises(NotApplicable), white_box.opened(seen) as box:
        raise NotApplicable("whatever ends the block")
    with white_box.opened(seen) as again:
        np.testing.assert_array_equal(get_vector(again.tuned), untrained)
    assert box.names == again.names


def test_windows_vote_by_sign_so_that_one_large_fall_does_not_outweigh_many_small_ones():
    before = [np.full(12, 4.0), np.full(12, 4.0)]
    one_large, many_small = np.full(12, 4.05), np.full(12, 3.9)
    one_large[0] = 0.0
    votes = window_votes(before, [one_large, many_small])
    assert (before[0] - one_large).mean() > (before[1] - many_small).mean()
    assert votes[1] == pytest.approx(1, abs=1e-5)
    assert votes[0] < 0.6


def test_windows_of_equal_votes_are_told_apart_by_the_mean_fall():
    before = [np.full(9, 4.0), np.full(9, 4.0)]
    votes = window_votes(before, [np.full(9, 3.9), np.full(9, 3.0)])
    assert votes[1] > votes[0]
    assert votes == pytest.approx([1, 1], abs=1e-5)


def test_texts_shorter_than_every_window_but_the_first_still_vote():
    assert window_votes([np.array([2.0])], [np.array([1.0])])[0] == pytest.approx(1, abs=1e-5)


def test_only_the_hardest_tokens_count_as_hard():
    before = [np.array([9.0, 9.0, 9.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])]
    known = [np.array([0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0])]
    assert hard_tokens(before, known)[0] == pytest.approx(1 - np.exp(-9))


def test_texts_that_are_learned_whole_are_judged_by_window_votes(world):
    view, truth = world
    whole = Truth(
        clients={
            name: replace(
                held,
                train=tuple(Encoded(ids=i.ids, response_start=1) for i in held.train),
                holdout=tuple(Encoded(ids=i.ids, response_start=1) for i in held.holdout),
            )
            for name, held in truth.clients.items()
        }
    )
    attack, _, guess = asked((view, whole))
    assert guess.headline == "windows whose loss fell since round 0"
    control = attack.positive(view, whole)
    assert asked(control)[2].headline == guess.headline
    assert {"gain of hard tokens", "fall of loss since round 0"} <= set(guess.scores)
