"""A12: R, the share of weights that a client holds, and the hidden size that logits tell."""

import numpy as np
import pytest
import torch

from attacks.base import Budget, Exam
from attacks.extraction import logits
from attacks.extraction.behaviour import KL, ExtractionQuestion, Scale, behaviour, scales, scores
from attacks.extraction.logits import LogitSvd, width_of
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.scored import KL_LEFT, PROXY, Original, Stolen
from attacks.extraction.texts import known_texts, public_windows, sampled
from attacks.extraction.thief import FEWEST_STEPS, FEWEST_TEXTS, effort
from attacks.extraction.verbatim import held, read_tensors
from attacks.trial import run_one
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.record.view import View
from tests.support.extraction import KEPT, NO_CLIENTS, outputs, texts
from tests.support.tiny import VOCABULARY, tiny_llama, tiny_tokenizer


def asked_of(ids):
    places = np.tile(np.arange(ids.shape[1] - 1), (len(ids), 1))
    return ExtractionQuestion(depth=4, texts=ids.numpy(), places=places, records=())


# R


def test_the_proxy_itself_has_r_zero_and_the_llm_r_one_as_far_as_texts_tell(folders):
    asked = asked_of(texts(8))
    proxy, llm = (load_llm(folders / name)[0] for name in ("proxy", "llm"))
    found = {
        name: scores(behaviour(m, asked), behaviour(llm, asked), asked)
        for name, m in (("proxy", proxy), ("LLM", llm))
    }
    scale = scales(found, "proxy", "LLM")[KL]
    for name, value in (("proxy", 0.0), ("LLM", 1.0)):
        made = scale.estimate(found[name][KL], "R")
        assert (made.value, made.low, made.high) == (value, value - 3 / 8, min(1, value + 3 / 8))
    halfway = (found["proxy"][KL] + found["LLM"][KL]) / 2
    assert scale.ratio(halfway) == pytest.approx(0.5)
    gain = scale.estimate(found["LLM"][KL], "gain", against=halfway)
    assert gain.value == pytest.approx(0.5)
    assert gain.low <= 0.5 <= gain.high


def test_scores_are_those_of_the_definition(folders):
    ids = texts(3)
    asked, llm, other = asked_of(ids), tiny_llama(), tiny_llama(seed=1)
    found = scores(behaviour(other, asked), behaviour(llm, asked), asked)
    p, q = (outputs(m, ids)[:, :-1].double().log_softmax(-1) for m in (llm, other))
    assert found[KL] == pytest.approx(-(p.exp() * (p - q)).sum(-1).mean(-1).numpy(), rel=1e-4)
    nll = q.gather(-1, ids[:, 1:, None])[..., 0].mean(-1).numpy()
    assert found["log perplexity"] == pytest.approx(nll, rel=1e-4)
    assert found["agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean(-1).numpy())


# What is held


def test_the_share_held_verbatim_by_hand(folders):
    block = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
    around = 2 * VOCABULARY * 16 + 16  # embeddings, head, last norm
    share = (around + 2 * block) / (around + 4 * block)
    proxy, llm = (read_tensors(folders / name) for name in ("proxy", "llm"))
    mine = held(proxy, llm)
    assert mine.share == pytest.approx(share)
    assert (mine.kept, mine.depth) == (KEPT, 4)
    assert held(llm, llm).share == 1


def test_a_tensor_that_differs_in_one_bit_is_not_held(folders):
    mine, llm = read_tensors(folders / "proxy"), read_tensors(folders / "llm")
    name = "model.layers.1.mlp.down_proj.weight"
    mine[name] = mine[name].clone()
    mine[name].view(torch.int32)[0, 0] ^= 1
    lost = held(read_tensors(folders / "proxy"), llm).share - held(mine, llm).share
    assert lost == pytest.approx(16 * 32 / sum(t.numel() for t in llm.values()))


def test_what_a_model_in_memory_holds_of_an_llm_in_half_precision_is_told_in_the_files_precision(tmp_path):
    save_model(tiny_llama().bfloat16(), tiny_tokenizer(), tmp_path / "llm")
    llm = read_tensors(tmp_path / "llm")
    assert {t.dtype for t in llm.values()} == {torch.bfloat16}
    mine = held(load_llm(tmp_path / "llm", dtype="float32")[0].state_dict(), llm)
    assert (mine.share, mine.kept) == (1, (0, 1, 2, 3))


# The hidden size


def test_the_rank_of_logits_is_the_hidden_size_and_noise_has_none():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 90))
    assert width_of(low) == 7
    assert width_of(low.astype(np.float32)) == 7
    assert width_of(rng.normal(size=(60, 90))) == 0
    assert width_of(low[:10]) == 0  # too few rows to tell


def test_what_all_logits_have_in_common_is_not_taken_for_the_hidden_size():
    """In a real LLM one direction outweighs all others by far; a log-probability differs by a sum a row."""
    rng = np.random.default_rng(0)
    hidden = np.concatenate([300 + rng.normal(size=(60, 1)), rng.normal(size=(60, 6))], axis=1)
    answers = hidden @ rng.normal(size=(7, 90))
    assert width_of(answers) == 7
    assert width_of(answers + 50 * rng.normal(size=(60, 1))) == 7
    assert width_of((hidden @ rng.normal(size=(7, 90)))[:12]) == 0  # too few rows, one far larger value


def test_the_hidden_size_comes_out_of_the_api(seen, folders):
    outsider = View(threat_model="api_user", settings=None, api=folders / "llm")
    found = run_one(LogitSvd(), outsider, NO_CLIENTS, profile="smoke", seconds=60, seed=0)
    assert found.outcome == Outcome.SUCCEEDED
    assert found.estimates[0].value == 1
    assert found.estimates[1].value == 16
    assert found.negative.value == 0


class WideLLM:
    """An API whose logits, all 0, are as many as a hidden size of 8,000 takes to be found."""

    vocabulary, asked = 8192, 0

    def __init__(self, *_args, **_options):
        pass

    def logits(self, ids):
        return torch.zeros((*ids.shape, self.vocabulary), dtype=torch.bool)


def test_a_hidden_size_of_8000_is_within_reach_of_the_search(monkeypatch, tmp_path):
    monkeypatch.setattr(logits, "Api", WideLLM)
    monkeypatch.setitem(logits.TRIES, "smoke", 2)
    monkeypatch.setattr(logits, "width_of", lambda table: 8000 if len(table) >= 8008 else 0)
    outsider = View(threat_model="api_user", settings=None, api=tmp_path)
    found = LogitSvd().guess(outsider, None, Budget(profile="smoke"), np.random.default_rng(0))
    assert set(found.found) == {8000}


@pytest.mark.parametrize(("width", "rows"), [(16, 256), (248, 256), (249, 512), (576, 1024)])
def test_the_control_in_noise_asks_no_larger_matrix_than_a_search_for_the_true_size(
    monkeypatch, folders, width, rows
):
    asked = []

    def width_in_noise(table):
        asked.append(len(table))
        return 0

    monkeypatch.setattr(logits, "width_of", width_in_noise)
    monkeypatch.setattr(logits, "Api", WideLLM)
    outsider, rng = (
        View(threat_model="api_user", settings=None, api=folders / "llm"),
        np.random.default_rng(0),
    )
    view, exam = LogitSvd().negative(outsider, Exam(answer=width), rng)
    assert exam.answer == width
    assert not any(LogitSvd().guess(view, exam.question, Budget(profile="smoke"), rng).found)
    assert max(asked) == rows


def test_what_an_attack_spends_follows_from_the_llms_pace():
    whole, slow, slower = (effort(Budget(seconds=90), token_s=t) for t in (0.0, 1.5e-4, 1.0))
    assert (whole.grid, whole.steps, whole.texts, whole.records) == ((16, 64), 24, 32, 48)
    assert slow.grid == (64,)
    assert slower.grid == (16,)  # its steps read no more
    assert len(whole.recipes) > len(slow.recipes) == len(slower.recipes) == 1
    assert whole.steps > slow.steps >= slower.steps == FEWEST_STEPS
    assert whole.texts >= slow.texts >= slower.texts == FEWEST_TEXTS
    assert slower.records == 0


def test_of_an_llm_that_is_not_the_demos_half_of_an_adversarys_texts_are_public_and_half_its_models_own():
    model, tokenizer, rng = tiny_llama(), tiny_tokenizer(), np.random.default_rng
    texts = known_texts(model, tokenizer, count=9, tokens=16, rng=rng(0))
    seed = int(rng(0).integers(2**31))
    assert torch.equal(texts[::2], public_windows(tokenizer, count=5, tokens=16, seed=seed))
    assert torch.equal(texts[1::2], sampled(model, tokenizer, count=4, tokens=16, seed=seed))


def scored(folders, **models):
    """What the attack's numbers are where these models behave as others do, by metric."""
    asked = asked_of(texts(8))
    original = Original(llm=folders / "llm", asked=asked, gaps=None, share=0.0)
    own = {name: behaviour(load_llm(folders / name)[0], asked) for name in ("proxy", "llm")}
    own["stranger"] = behaviour(tiny_llama(seed=1), asked)
    made = {name.replace("_", " "): own[like] for name, like in models.items()}
    stolen = Stolen(models={PROXY: own["proxy"], **made}, grid=(16, 64), gaps=None, asked=0, steps=1)
    return {e.metric: e.value for e in ProxyExtraction().score(stolen, original)}


def test_extraction_r_is_the_strongest_attacks_whatever_it_asked(folders):
    found = scored(folders, **{"16_queries": "proxy", "64_queries": "stranger", "healed": "llm"})
    assert found["extraction R"] == found["healing R"] == 1
    assert found[KL_LEFT] == pytest.approx(0, abs=1e-6)
    assert found["API gain"] == -1  # of those that ask, the one with 16 queries is no worse than the proxy
    fewer = scored(folders, **{"16_queries": "llm", "64_queries": "proxy"})
    assert (fewer["extraction R"], fewer["extraction R, 64 queries"]) == (1, 0)


def test_no_more_kl_is_left_than_that_of_the_proxy_which_the_attacker_may_keep(folders):
    found = scored(folders, **{"64_queries": "stranger", "healed": "stranger"})
    assert found["extraction R"] < 0
    assert found[KL_LEFT] == found["KL of the proxy"] > 0


def test_a_score_that_takes_few_values_has_an_r_although_some_draws_have_no_gap():
    proxy, llm = np.zeros(40), np.zeros(40)
    llm[:5] = 1.0
    scale = Scale(proxy=proxy, llm=llm)
    assert scale.usable
    assert ((llm - proxy)[scale.picks].mean(-1) == 0).any()
    found = scale.estimate(llm / 2, "R")
    assert found.value == 0.5


@pytest.mark.parametrize(
    ("model", "r", "ends"), [("proxy", 0.0, (-3 / 32, 3 / 32)), ("llm", 1.0, (1 - 3 / 32, 1))]
)
def test_texts_that_all_agree_do_not_make_r_certain(model, r, ends):
    """Such as those of an attacker who keeps the proxy; by the rule of three 3 / n of others may differ."""
    scale = Scale(proxy=np.zeros(32), llm=np.ones(32))
    found = scale.estimate(getattr(scale, model), "R")
    assert (found.value, found.exact) == (r, False)
    assert found.interval == pytest.approx(ends)


def test_scores_that_do_not_tell_the_llm_from_the_proxy_have_a_difference_without_an_interval():
    alike = Scale(proxy=np.ones(32), llm=np.ones(32))
    assert alike.gap.interval is None
    assert not alike.usable
