"""A12: the API's counter, fillers, R, the share of weights held, the hidden size, the attack as a whole."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from attacks.base import KNOWN_BAD, NOBODY, Budget, NotApplicable, Truth, replace_view
from attacks.extraction.api import Api, OverBudget
from attacks.extraction.behaviour import KL, ExtractionQuestion, Scale, behaviour, scales, scores
from attacks.extraction.lessons import imitate, loss_of, predict, teach
from attacks.extraction.logits import LogitSvd, width_of
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.scored import HEALED, KL_LEFT, PROXY, Original, Stolen
from attacks.extraction.starts.fillers import gaps_of, grown, guess_gaps, shapes, spread
from attacks.extraction.texts import known_texts, public_windows, sampled
from attacks.extraction.thief import FEWEST_QUERIES, FEWEST_STEPS, FEWEST_TEXTS, effort
from attacks.extraction.verbatim import held, read_tensors
from attacks.trial import run_one
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import parse_config
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.experiments.run import run
from fedproxy_secure.models.llm import blocks_of, load_llm, with_blocks
from fedproxy_secure.record.view import View, view
from tests.support.tiny import VOCABULARY, save_tiny, tiny_llama, tiny_settings, tiny_tokenizer
from threat_models import get as threat_model

KEPT = (0, 3)
NO_CLIENTS = Truth(clients={})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A victim of four blocks, and its proxy of the outer two."""
    place = tmp_path_factory.mktemp("extraction")
    save_tiny(place / "llm")
    save_model(with_blocks(tiny_llama(), list(KEPT)), tiny_tokenizer(), place / "proxy")
    return place


@pytest.fixture
def seen(folders):
    return View(
        threat_model="client",
        settings=None,
        adapters={0: np.zeros(0, np.float32)},
        proxy=folders / "proxy",
        api=folders / "llm",
    )


def texts(count, tokens=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(3, VOCABULARY, size=(count, tokens)))


def asked_of(ids):
    places = np.tile(np.arange(ids.shape[1] - 1), (len(ids), 1))
    return ExtractionQuestion(depth=4, texts=ids.numpy(), places=places, records=())


@torch.no_grad()
def outputs(model, ids):
    return model(input_ids=ids, use_cache=False).logits


# The API


def test_the_query_after_the_last_is_refused_and_none_of_its_call_is_answered(folders):
    api = Api(folders / "llm", limit=3)
    ids = texts(5)
    first = api.ask(ids[:2])
    with pytest.raises(OverBudget, match="queries=4: must be <= 3"):
        api.ask(ids[1:4])
    assert api.asked == 2
    assert torch.equal(api.ask(ids[:2]).numbers, first.numbers)  # from notes, not counted
    api.ask(ids[2:3])
    assert api.asked == 3
    with pytest.raises(OverBudget):
        api.ask(ids[4:])


def test_answers_are_the_llms_logits_and_in_the_controls_another_texts_or_noise(folders):
    ids = texts(3)
    true = outputs(tiny_llama(), ids)
    assert torch.allclose(Api(folders / "llm", limit=3).ask(ids).numbers, true, atol=1e-5)
    shuffled = Api(folders / "llm", limit=3, mode="shuffled").ask(ids).numbers
    assert torch.allclose(shuffled, true[[2, 0, 1]], atol=1e-5)
    noise = Api(folders / "llm", limit=3, mode="noise").ask(ids).numbers
    assert abs(float((noise.flatten() @ true.flatten()) / noise.norm() / true.norm())) < 0.05


# Fillers


def gpt2(blocks):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=blocks, n_head=2, n_positions=64, initializer_range=0.2
    )
    return GPT2LMHeadModel(config).eval()


def qwen2(blocks):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", [tiny_llama, gpt2, qwen2])
def test_zero_fillers_change_nothing_until_they_are_trained(kind):
    proxy = kind(2)
    big, fillers = grown(proxy, (0, 3, 1), "zero")
    assert len(blocks_of(big)) == big.config.num_hidden_layers == 6
    assert len(fillers) == 4
    assert torch.allclose(outputs(big, texts(2)), outputs(proxy, texts(2)), atol=1e-5)
    own = {id(p) for p in proxy.parameters()}
    assert len({id(p) for f in fillers for p in f.parameters()} - own) == sum(
        len(list(f.parameters())) for f in fillers
    )  # no two share a parameter


def test_copies_stand_beside_their_originals_and_averages_between():
    llm = tiny_llama(3)
    copied, _ = grown(llm, (0, 1, 0, 0), "copy")
    by_hand = with_blocks(llm, [0, 0, 1, 2])
    assert torch.allclose(outputs(copied, texts(2)), outputs(by_hand, texts(2)), atol=1e-5)
    _, (middle,) = grown(llm, (0, 0, 1, 0), "average")
    below, above = (list(blocks_of(llm)[i].parameters()) for i in (1, 2))
    for mine, a, b in zip(middle.parameters(), below, above, strict=True):
        assert torch.allclose(mine, (a + b) / 2)


def test_gaps_that_do_not_fit_the_proxy_are_refused():
    with pytest.raises(ValueError, match="must be 3 counts"):
        grown(tiny_llama(2), (1, 1), "copy")


@pytest.mark.parametrize(
    ("own", "missing", "gaps"),
    [(4, 4, (0, 1, 2, 1, 0)), (1, 3, (1, 2)), (2, 6, (0, 6, 0)), (3, 0, (0,) * 4)],
)
def test_even_spreading_puts_all_blocks_between(own, missing, gaps):
    assert spread(own, missing) == gaps
    assert gaps_of(KEPT, 4) == (0, 2, 0)


def test_blocks_that_were_withheld_at_the_bottom_are_put_beside_the_block_that_stands_in_for_them():
    withheld = 3  # of 6: the first of the kept ones stands in for all three
    true = gaps_of(range(withheld - 1, 6), 6)
    assert true == (2, 0, 0, 0, 0)
    assert true in shapes(4, 2)
    assert (0, 2, 0, 0, 0) in shapes(4, 2)
    assert shapes(4, 2)[0] == spread(4, 2)
    assert shapes(2, 3) == ((0, 3, 0), (3, 0, 0))


def test_a_gap_is_found_where_the_missing_block_is_the_mean_of_its_neighbours():
    llm = tiny_llama(4)
    below, middle, above = blocks_of(llm)[1:]
    with torch.no_grad():
        for m, a, b in zip(middle.parameters(), below.parameters(), above.parameters(), strict=True):
            m.copy_((a + b) / 2)
    proxy, ids = with_blocks(llm, [0, 1, 3]), texts(4)
    true = outputs(llm, ids).log_softmax(-1)

    def kl(model):
        return float((true.exp() * (true - outputs(model, ids).log_softmax(-1))).sum(-1).mean())

    assert guess_gaps(proxy, 1, kl) == (0, 0, 1, 0)


# Lessons


def test_the_lessons_are_the_losses_they_are_called(folders):
    api, ids = Api(folders / "llm", limit=4), texts(4)
    true, other = api.ask(ids).numbers, outputs(tiny_llama(seed=1), ids)
    assert float(imitate(api)(true, ids)) == pytest.approx(0, abs=1e-6)
    p, q = true.log_softmax(-1), other.log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert float(imitate(api)(other, ids)) == pytest.approx(kl, rel=1e-5)
    assert 0 < float(imitate(api, "top_k")(other, ids)) < kl  # merging tokens can only lower KL
    first = true.argmax(-1)
    lead = float((other.amax(-1) - other.gather(-1, first[..., None])[..., 0]).mean())
    assert float(imitate(api, "text")(other, ids)) == pytest.approx(lead, rel=1e-5)
    with torch.no_grad():
        differs = float((other.argmax(-1) != first).float().mean())
        assert float(imitate(api, "text")(other, ids)) == pytest.approx(differs)
        own = float(tiny_llama()(input_ids=ids, labels=ids).loss)
    assert float(predict(true, ids)) == pytest.approx(own, rel=1e-5)


def test_training_never_ends_worse_on_held_out_answers_than_it_began(folders):
    api = Api(folders / "llm", limit=40, mode="noise")  # nothing can be learnt from it
    big, fillers = grown(load_llm(folders / "proxy")[0], (0, 2, 0), "zero")
    before = {n: p.clone() for n, p in big.named_parameters()}
    ids, lesson, budget = texts(40), imitate(api), Budget()
    start = loss_of(big, ids[32:], lesson, budget=budget)
    rng = np.random.default_rng(0)
    end = teach(big, fillers, lesson, ids[:32], ids[32:], steps=12, batch=4, rng=rng, budget=budget)
    assert end <= start
    assert end == pytest.approx(loss_of(big, ids[32:], lesson, budget=budget))
    inside = {id(p) for f in fillers for p in f.parameters()}
    outside = [n for n, p in big.named_parameters() if id(p) not in inside]
    assert all(torch.equal(dict(big.named_parameters())[n], before[n]) for n in outside)


def test_sampled_texts_begin_with_the_start_token_and_follow_the_seed():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    one = sampled(model, tokenizer, count=5, tokens=12, seed=3, at_once=2)
    assert one.shape == (5, 12)
    assert (one[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(one, sampled(model, tokenizer, count=5, tokens=12, seed=3, at_once=2))
    assert not torch.equal(one, sampled(model, tokenizer, count=5, tokens=12, seed=4, at_once=2))


# R


def test_the_proxy_itself_has_r_zero_the_llm_r_one_and_both_are_exact(folders):
    asked = asked_of(texts(8))
    proxy, llm = (load_llm(folders / name)[0] for name in ("proxy", "llm"))
    found = {
        name: scores(behaviour(m, asked), behaviour(llm, asked), asked)
        for name, m in (("proxy", proxy), ("LLM", llm))
    }
    scale = scales(found, "proxy", "LLM")[KL]
    for name, value in (("proxy", 0.0), ("LLM", 1.0)):
        made = scale.estimate(found[name][KL], "R")
        assert (made.value, made.low, made.high) == (value, value, value)
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
    logits = hidden @ rng.normal(size=(7, 90))
    assert width_of(logits) == 7
    assert width_of(logits + 50 * rng.normal(size=(60, 1))) == 7
    assert width_of((hidden @ rng.normal(size=(7, 90)))[:12]) == 0  # too few rows, one far larger value


def test_the_hidden_size_comes_out_of_the_api(seen, folders):
    outsider = View(threat_model="api_user", settings=None, api=folders / "llm")
    found = run_one(LogitSvd(), outsider, NO_CLIENTS, profile="smoke", seconds=60, seed=0)
    assert found.outcome == Outcome.SUCCEEDED
    assert found.estimates[0].value == 1
    assert found.estimates[1].value == 16
    assert found.negative.value == 0


def test_what_an_attack_spends_follows_from_the_llms_pace():
    whole, slow, slower = (effort(Budget(seconds=90), token_s=t) for t in (0.0, 2.5e-4, 1.0))
    assert (whole.grid, whole.steps, whole.texts, whole.records) == ((16, 64), 24, 32, 48)
    assert slow.grid == (64,)
    assert slower.grid == (16,)  # its steps read no more
    assert len(whole.recipes) > len(slow.recipes) == len(slower.recipes) == 1
    assert whole.steps > slow.steps >= slower.steps == FEWEST_STEPS
    assert whole.texts >= slow.texts >= slower.texts == FEWEST_TEXTS
    assert slower.records == 0


def test_what_it_spent_stands_in_the_finding(finding):
    by_name = {e.metric: e for e in finding.estimates}
    assert by_name["steps of each training"].value == 24
    assert by_name["texts asked about"].value == 64
    assert finding.estimates[0].n == 32


def test_of_an_llm_that_is_not_the_demos_half_of_an_adversarys_texts_are_public_and_half_its_models_own():
    model, tokenizer, rng = tiny_llama(), tiny_tokenizer(), np.random.default_rng
    texts = known_texts(model, tokenizer, count=9, tokens=16, rng=rng(0))
    seed = int(rng(0).integers(2**31))
    assert torch.equal(texts[::2], public_windows(tokenizer, count=5, tokens=16, seed=seed))
    assert torch.equal(texts[1::2], sampled(model, tokenizer, count=4, tokens=16, seed=seed))


# The attack as a whole


@pytest.fixture(scope="module")
def finding(folders):
    known = View(
        threat_model="client",
        settings=None,
        adapters={0: np.zeros(0, np.float32)},
        proxy=folders / "proxy",
        api=folders / "llm",
    )
    return run_one(ProxyExtraction(), known, NO_CLIENTS, profile="smoke", seconds=1000, seed=0)


def test_queries_bring_the_attack_above_the_proxy_and_the_controls_hold(finding):
    by_name = {e.metric: e for e in finding.estimates}
    assert by_name["extraction R"].low > 0
    ways = ("extraction R, 16 queries", "extraction R, 64 queries", "closed form R", "healing R")
    assert by_name["extraction R"].value == max(by_name[name].value for name in ways)
    left = by_name["KL of the proxy"].value * (1 - by_name["extraction R"].value)
    assert by_name[KL_LEFT].value == pytest.approx(left)
    assert by_name[KL_LEFT].unit == "nats"
    without = max(by_name["healing R"].value, 0)  # who has no queries may also keep the proxy as it is
    (named,) = (name for name in by_name if name.startswith("extraction R by "))
    assert by_name[named].value == by_name["extraction R"].value
    assert by_name["closed form R"].value <= 1
    gained = by_name["extraction R"].value - without
    assert by_name["API gain"].value == pytest.approx(gained)
    assert finding.positive.low > 0.05
    assert finding.negative.high < by_name["extraction R"].low
    assert by_name["weights held verbatim"].value == pytest.approx(
        (2 * VOCABULARY * 16 + 16 + 2 * 2592) / (2 * VOCABULARY * 16 + 16 + 4 * 2592)
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(finding, seen):
    again = run_one(ProxyExtraction(), seen, NO_CLIENTS, profile="smoke", seconds=1000, seed=0)
    assert dataclasses.replace(again, seconds=finding.seconds) == finding


def test_a_guess_asks_no_more_than_its_largest_number_of_queries(seen):
    one, budget = ProxyExtraction(), Budget(profile="smoke", queries=20)
    exam = one.exam(NO_CLIENTS, seen, np.random.default_rng(0))
    guess = one.guess(seen, exam.question, budget, np.random.default_rng(1))
    assert guess.grid == (16, 20)
    assert guess.asked == 20


def test_what_cannot_be_attacked_is_not_applicable(seen, folders):
    one, rng = ProxyExtraction(), np.random.default_rng(0)
    with pytest.raises(NotApplicable, match="has no API"):
        one.exam(NO_CLIENTS, replace_view(seen, api=None), rng)
    with pytest.raises(NotApplicable, match="owns the LLM"):
        one.exam(NO_CLIENTS, replace_view(seen, llm=folders / "llm"), rng)
    alone, few = replace_view(seen, threat_model=NOBODY), Budget(queries=FEWEST_QUERIES - 1)
    with pytest.raises(NotApplicable, match="no answer belongs to another query"):
        one.guess(alone, one.exam(NO_CLIENTS, seen, rng).question, few, rng)


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


def test_with_too_few_queries_to_learn_from_the_proxy_is_healed_and_nothing_is_asked(seen):
    one, few = ProxyExtraction(), Budget(profile="smoke", queries=FEWEST_QUERIES - 1)
    exam = one.exam(NO_CLIENTS, seen, np.random.default_rng(0))
    guess = one.guess(seen, exam.question, few, np.random.default_rng(1))
    assert set(guess.models) == {PROXY, HEALED}
    assert (guess.grid, guess.asked) == ((), 0)
    found = {e.metric: e.value for e in one.score(guess, exam.answer)}
    assert found["extraction R"] == found["healing R"]
    assert "API gain" not in found


def test_the_controls_are_other_adversaries_not_other_code(seen, folders):
    one, rng = ProxyExtraction(), np.random.default_rng(0)
    open_view, _ = one.positive(seen, NO_CLIENTS)
    assert (open_view.threat_model, open_view.llm) == (KNOWN_BAD, folders / "llm")
    exam = one.exam(NO_CLIENTS, seen, rng)
    empty, same = one.negative(seen, exam, rng)
    assert empty.threat_model == NOBODY
    assert same is exam


@pytest.mark.slow
def test_a_client_of_a_recorded_run_holds_the_fused_llms_own_blocks(tmp_path):
    settings = tiny_settings(tmp_path / "files", audit={"record": True, "holdout": 0.3})
    run(parse_config(settings), tmp_path / "run")
    client = view(tmp_path / "run" / "seed-0", threat_model("client"))
    done = run_one(ProxyExtraction(), client, NO_CLIENTS, profile="standard", seconds=6000, seed=0)
    by_name = {e.metric: e for e in done.estimates}
    block = 2592
    around = 2 * VOCABULARY * 16 + 16
    share = (around + 2 * block) / (around + 4 * block)
    assert by_name["weights held verbatim"].value == pytest.approx(share)  # tuned blocks among them
    assert by_name["extraction R"].low > 0
    assert by_name["proxy gain"].low > 0
    assert done.positive.low > 0.05
    assert done.negative.high < by_name["extraction R"].low
    outsider = view(tmp_path / "run" / "seed-0", threat_model("server"))
    refused = run_one(ProxyExtraction(), outsider, NO_CLIENTS, profile="smoke", seconds=100, seed=0)
    assert refused.outcome == Outcome.NOT_APPLICABLE


def test_a_score_that_takes_few_values_has_an_r_although_some_draws_have_no_gap():
    proxy, llm = np.zeros(40), np.zeros(40)
    llm[:5] = 1.0
    scale = Scale(proxy=proxy, llm=llm)
    assert scale.usable
    assert ((llm - proxy)[scale.picks].mean(-1) == 0).any()
    found = scale.estimate(llm / 2, "R")
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
