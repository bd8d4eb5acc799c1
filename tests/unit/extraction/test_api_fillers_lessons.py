"""A12: what the API counts and answers, the fillers for missing blocks, and what they are trained on."""

import numpy as np
import pytest
import torch

from attacks.base import Budget
from attacks.extraction.api import Api, OverBudget
from attacks.extraction.lessons import imitate, loss_of, predict, teach
from attacks.extraction.starts.fillers import gaps_of, grown, guess_gaps, shapes, spread
from attacks.extraction.texts import sampled
from fedproxy_secure.config import ApiConfig
from fedproxy_secure.models.llm import blocks_of, load_llm, with_blocks
from tests.support.extraction import KEPT, gpt2, outputs, qwen2, texts
from tests.support.tiny import tiny_llama, tiny_tokenizer

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


def test_a_shuffled_answer_to_a_text_that_is_asked_alone_is_anothers_and_one_query(folders):
    """An LLM of many tokens is asked about one text at a time."""
    ids = texts(1)
    halves_turned = torch.cat([ids[:, 8:], ids[:, :8]], dim=1)
    true, other = outputs(tiny_llama(), ids), outputs(tiny_llama(), halves_turned)
    assert not torch.allclose(true, other, atol=0.1)
    api = Api(folders / "llm", limit=1, mode="shuffled")
    for _ in range(2):
        assert torch.allclose(api.ask(ids).numbers, other, atol=1e-5)
    assert api.asked == 1
    noisy = Api(folders / "llm", limit=1, mode="shuffled", policy=ApiConfig(noise=1.0)).ask(ids)
    asked = Api(folders / "llm", limit=1, policy=ApiConfig(noise=1.0)).ask(halves_turned)
    assert torch.allclose(noisy.numbers, asked.numbers, atol=1e-4)


# Fillers


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
