"""Attacks on the fused LLM are told what the run's API tells: they ask no more, and use all of it."""

import numpy as np
import pytest
import torch

from attacks.base import Budget, NotApplicable, Truth, replace_view
from attacks.extraction.api import Api, OverBudget
from attacks.extraction.lessons import LITTLE_NOISE, _near, holds, imitate, span_of
from attacks.extraction.logits import TRIES, LogitSvd
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.questions import held_model, prepared
from attacks.extraction.scored import TOLD
from attacks.folder import attack_folder
from attacks.membership.canaries import CanaryExposure, CanaryQuestion
from attacks.membership.models import ModelMembership, ModelQuestion
from attacks.trial import run_one
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import ApiConfig
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.models.llm import with_blocks
from fedproxy_secure.record.view import View
from fedproxy_secure.serve.noise import noise
from tests.support.tiny import VOCABULARY, save_tiny, tiny_llama, tiny_tokenizer
from tests.support.toys import late

NO_CLIENTS = Truth(clients={})
KEY = Secret(bytes(32))
WEAKER = [
    ApiConfig(answers="top_k"),
    ApiConfig(answers="text"),
    ApiConfig(noise=0.5),
    ApiConfig(queries=5000),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A victim of four blocks, and its proxy of the outer two."""
    place = tmp_path_factory.mktemp("policy")
    save_tiny(place / "llm")
    save_model(with_blocks(tiny_llama(), [0, 3]), tiny_tokenizer(), place / "proxy")
    return place


def customer(folders, **policy) -> View:
    return View(threat_model="api_user", api=folders / "llm", api_policy=ApiConfig(**policy))


def client(folders, **policy) -> View:
    adapters = {0: np.zeros(0, np.float32)}
    seen = customer(folders, **policy)
    return replace_view(seen, threat_model="client", proxy=folders / "proxy", adapters=adapters)


def texts(count, tokens=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, size=(count, tokens)))


@torch.no_grad()
def outputs(model, ids):
    return model(input_ids=ids, use_cache=False).logits


# What the API tells


def test_an_attack_is_told_what_the_owners_service_would_tell(folders):
    ids, logits = texts(3), outputs(tiny_llama(), texts(3))
    said = Api(folders / "llm", limit=3, policy=ApiConfig(answers="text")).ask(ids)
    assert said.numbers is None
    assert torch.equal(said.tokens[..., 0], logits.argmax(-1))
    top = Api(folders / "llm", limit=3, policy=ApiConfig(answers="top_k", top_k=4)).ask(ids)
    assert torch.allclose(top.numbers, logits.log_softmax(-1).topk(4).values, atol=1e-5)
    assert top.tokens.shape == (3, 16, 4)


def test_noise_is_the_same_for_whoever_asks_again(folders):
    first, second = (Api(folders / "llm", limit=9, policy=ApiConfig(noise=1.0)) for _ in range(2))
    ids = texts(2)
    asked = first.ask(ids).numbers
    assert torch.allclose(second.ask(ids).numbers, asked, atol=1e-4)
    other_endings = torch.cat([ids[:, :8], texts(2, 8, seed=5)], dim=1)
    assert torch.allclose(first.ask(other_endings).numbers[:, :8], asked[:, :8], atol=1e-4)
    assert not torch.allclose(asked, outputs(tiny_llama(), ids), atol=0.1)


def test_the_policys_limits_hold_beside_the_adversarys_budget(folders):
    api = Api(folders / "llm", limit=100, policy=ApiConfig(queries=3, tokens=40))
    api.ask(texts(2))
    api.ask(texts(2))  # from its notes
    with pytest.raises(OverBudget, match=r"tokens=48: must be <= 40, api\.tokens"):
        api.ask(texts(3))
    with pytest.raises(OverBudget, match=r"queries=4: must be <= 3, api\.queries"):
        api.ask(texts(2, tokens=2, seed=1))
    assert api.asked == 2


# What is learned from


def test_the_loss_follows_from_what_is_told(folders):
    ids, other = texts(4), outputs(tiny_llama(seed=1), texts(4))
    true = outputs(tiny_llama(), ids)
    top = Api(folders / "llm", limit=4, policy=ApiConfig(answers="top_k", top_k=20))
    open_api = Api(folders / "llm", limit=4)
    assert float(imitate(top)(other, ids)) == pytest.approx(float(imitate(open_api, "top_k")(other, ids)))
    for api in (top, open_api):  # who is told more can do as if it were less
        assert float(imitate(api, "text")(other, ids)) == pytest.approx(
            float(imitate(Api(folders / "llm", limit=4, policy=ApiConfig(answers="text")))(other, ids))
        )
    said = Api(folders / "llm", limit=4, policy=ApiConfig(answers="text"))
    assert float(imitate(said)(true, ids)) == 0


def test_from_first_choices_a_model_learns_nothing_where_it_agrees(folders):
    """Likelihood would go on to make it surer than the API is, which costs more KL than it brings."""
    ids = texts(4)
    lesson = imitate(Api(folders / "llm", limit=4, policy=ApiConfig(answers="text")))
    logits = outputs(tiny_llama(seed=1), ids)
    agrees = logits.argmax(-1) == outputs(tiny_llama(), ids).argmax(-1)
    logits[0] = outputs(tiny_llama(), ids)[0]
    logits.requires_grad_(True)
    lesson(logits, ids).backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert not moved[0].any()
    assert torch.equal(moved[1:], ~agrees[1:])
    with torch.no_grad():  # models are compared by how often they differ: flat logits gain nothing
        flat = lesson(1e-3 * logits, ids)
        assert float(flat) == float(lesson(logits, ids)) == pytest.approx(float(moved.float().mean()))


def test_the_loss_on_noisy_logits_is_half_the_noises_variance_at_the_truth_and_kl_more_nearby(folders):
    ids = texts(16)
    true = outputs(tiny_llama(), ids)
    noisy = Api(folders / "llm", limit=16, policy=ApiConfig(noise=0.5))
    p = true.log_softmax(-1)

    def kl(logits):
        return float((p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean())

    at_truth = float(imitate(noisy)(true, ids))
    spread = (
        0.5**2 / 2 * np.sqrt(2.0 / 256)
    )  # of the mean over 256 places, were one token's noise all of it
    assert abs(at_truth - 0.5**2 / 2) < 3.3 * spread  # two-sided, 1 in 1000
    near = true + 0.1 * outputs(tiny_llama(seed=1), ids)
    assert float(imitate(noisy)(near, ids)) - at_truth == pytest.approx(kl(near), abs=0.02)
    assert kl(near) > 0.001


@pytest.mark.parametrize("sure", [1, 100])
def test_what_noise_adds_to_the_loss_is_the_same_for_a_sure_model_as_for_a_doubtful_one(folders, sure):
    ids = texts(16)
    mine = sure * outputs(tiny_llama(), ids)
    told = noise(KEY, ids.flatten().numpy(), level=0.5, size=VOCABULARY).reshape(mine.shape)
    added = float(_near(mine + torch.from_numpy(told), mine, 0.5))
    assert abs(added - 0.5**2 / 2) < 3.3 * 0.5**2 / 2 * np.sqrt(2.0 / 256)


def test_logits_lie_in_the_span_of_their_head_and_noise_mostly_does_not(folders):
    true = outputs(tiny_llama(), texts(16))
    span = span_of(tiny_llama())
    torch.testing.assert_close(true @ span @ span.T, true, atol=1e-4, rtol=1e-4)
    told = torch.from_numpy(noise(KEY, texts(16).flatten().numpy(), level=0.5, size=VOCABULARY))
    left = (told @ span @ span.T).square().mean() / told.square().mean()
    assert float(left) == pytest.approx(span.shape[1] / span.shape[0], rel=0.1)


def test_a_span_is_told_from_one_that_holds_less_than_the_llms_logits(folders):
    api = Api(folders / "llm", limit=16, policy=ApiConfig(noise=0.5))
    span = span_of(tiny_llama())
    assert holds(span, api.logits(texts(16)), 0.5)
    assert not holds(span[:, :-4], api.logits(texts(16)), 0.5)


def test_where_little_noise_is_left_in_the_span_the_loss_is_kl_to_what_is_left(folders):
    true, ids, span = outputs(tiny_llama(), texts(16)), texts(16), span_of(tiny_llama())
    kept = np.sqrt(span.shape[1] / span.shape[0])
    for left in (0.9 * LITTLE_NOISE, 1.1 * LITTLE_NOISE):
        api = Api(folders / "llm", limit=16, policy=ApiConfig(noise=float(left / kept)))
        told = (api.logits(ids) @ span @ span.T).log_softmax(-1)
        kl = float((told.exp() * (told - true.log_softmax(-1))).sum(-1).mean())
        same = float(imitate(api, span=span)(true, ids)) == pytest.approx(kl, rel=1e-3)
        assert same == (left < LITTLE_NOISE)


def test_without_the_noise_outside_of_the_span_the_loss_has_the_same_mean_and_less_spread(folders):
    true, ids, span = outputs(tiny_llama(), texts(16)), texts(16), span_of(tiny_llama())
    mine = true + 0.1 * outputs(tiny_llama(seed=1), ids)
    losses = {name: [] for name in ("raw", "projected")}
    for draw in range(40):
        told = noise(Secret(bytes([draw] * 32)), ids.flatten().numpy(), level=0.5, size=VOCABULARY)
        noisy = true + torch.from_numpy(told).reshape(true.shape)
        losses["raw"].append(float(_near(noisy, mine, 0.5)))
        losses["projected"].append(float(_near(noisy, mine, 0.5, span)))
    mean = {name: np.mean(values) for name, values in losses.items()}
    spread = {name: np.std(values, ddof=1) for name, values in losses.items()}
    assert abs(mean["raw"] - mean["projected"]) < 3.3 * np.hypot(*spread.values()) / np.sqrt(40)
    assert spread["projected"] < 0.8 * spread["raw"]


# The attacks


def attacked(one, view):
    return run_one(one, view, NO_CLIENTS, profile="smoke", seconds=100, seed=0)


@pytest.mark.parametrize("answers", ["top_k", "text"])
def test_without_logits_there_is_no_hidden_size_to_look_for(folders, answers):
    found = attacked(LogitSvd(), customer(folders, answers=answers))
    assert found.outcome == Outcome.NOT_APPLICABLE
    assert answers in found.reason


def test_noise_hides_the_hidden_size_and_the_control_without_noise_finds_it(folders):
    found = attacked(LogitSvd(), customer(folders, noise=0.5))
    assert found.outcome == Outcome.RESISTED
    assert found.estimates[0].value == 0
    assert found.positive.value == 1


def test_a_control_that_begins_late_tries_as_often_to_find_the_hidden_size(folders):
    found = LogitSvd().guess(customer(folders), None, late(), np.random.default_rng(0))
    assert len(found.found) == TRIES["smoke"]


def test_the_search_for_the_hidden_size_asks_no_more_than_the_policy_allows(folders):
    found = attacked(LogitSvd(), customer(folders, queries=40))
    by_name = {e.metric: e.value for e in found.estimates}
    assert by_name["hidden size found, median"] == 16
    assert by_name["queries of all tries"] <= 40
    few = attacked(LogitSvd(), customer(folders, queries=40, tokens=64 * 10))
    assert few.outcome == Outcome.NOT_APPLICABLE
    assert "queries=10: must be >= 20" in few.reason


def test_extraction_and_both_of_its_controls_go_through_the_policy(folders):
    one, seen = ProxyExtraction(), client(folders, answers="text", queries=16)
    exam = one.exam(NO_CLIENTS, seen, np.random.default_rng(0))
    guess = one.guess(seen, exam.question, Budget(profile="smoke"), np.random.default_rng(1))
    assert guess.grid == (16,)
    assert guess.asked <= 16
    assert not set(TOLD.values()) & set(guess.models)  # no weaker API than the true one is left to try
    known_bad, _ = one.positive(seen, NO_CLIENTS)
    assert known_bad.api_policy == seen.api_policy
    empty, _ = one.negative(seen, exam, np.random.default_rng(0))
    assert empty.api_policy == seen.api_policy


def test_an_api_that_answers_too_few_texts_to_learn_from_leaves_healing_which_asks_nothing(folders):
    found = attacked(ProxyExtraction(), client(folders, queries=100, tokens=64 * 15))
    by_name = {e.metric: e.value for e in found.estimates}
    assert found.outcome != Outcome.NOT_APPLICABLE
    assert by_name["extraction R"] == by_name["healing R"]
    assert by_name["texts asked about"] == 0
    assert found.positive is not None  # healed, too, from the LLM with noise
    assert found.negative is None  # there is no answer to shuffle


def test_an_adversary_with_few_queries_uses_them_all_and_heals_on_more_texts(folders):
    seen, budget = client(folders), Budget(profile="smoke", queries=20)
    question = ProxyExtraction().exam(NO_CLIENTS, seen, np.random.default_rng(0)).question
    ready = prepared(seen, *held_model(seen), question, budget, seed=0)
    assert ready.spent.grid == (16, 20)
    assert len(ready.texts) == 64


@pytest.mark.parametrize("policy", WEAKER, ids=lambda p: p.says[:60])
@pytest.mark.parametrize("one", [ModelMembership(), CanaryExposure()], ids=lambda a: a.info.name)
def test_attacks_that_read_likelihoods_do_not_read_them_past_the_policy(folders, one, policy):
    question = (
        ModelQuestion(documents=(), population=())
        if isinstance(one, ModelMembership)
        else CanaryQuestion(prompts=("a",), candidates=(("0001", "0002"),))
    )
    seen = View(threat_model="api_user", api=folders / "llm", api_policy=policy)
    with pytest.raises(NotApplicable, match="no API that tells all logits as they are"):
        one.guess(seen, question, Budget(), np.random.default_rng(0))


def test_a_model_alone_is_attacked_through_the_api_that_is_named(folders):
    (found,) = attack_folder(folders / "llm", api=ApiConfig(answers="text"), seconds=60)
    assert (found.attack, found.outcome) == ("logit_svd", Outcome.NOT_APPLICABLE)
