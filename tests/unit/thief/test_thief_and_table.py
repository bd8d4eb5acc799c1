"""Extraction: how the adversary trains and picks its best model, and the table of its results."""

import numpy as np
import pytest
import torch

from attacks.base import Budget, Truth
from attacks.extraction.api import Api
from attacks.extraction.behaviour import agreed, greedy
from attacks.extraction.lessons import imitate, loss_of, split
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.starts.fillers import grown
from attacks.extraction.starts.offered import ALL, FILLERS, Offer, leaked, offers
from attacks.extraction.starts.widened import sizes_in
from attacks.extraction.table import BEST, _Table, extraction_table
from attacks.extraction.thief import Effort, Thief
from attacks.trial import run_one
from fedproxy_secure.config import ApiConfig
from fedproxy_secure.models.llm import blocks_of, load_llm
from fedproxy_secure.record.view import View
from fedproxy_secure.runtime.progress import NoProgress
from tests.support.thief import BUDGET, outputs, texts
from tests.support.tiny import tiny_llama

SMALL = Effort(grid=(16,), steps=6, batch=4, all_controls=False, texts=8, records=0, recipes=(FILLERS, ALL))


def thief_of(folders, name="proxy", *, limit=16, mode="true", policy=None):
    proxy, _ = load_llm(folders / name, dtype="float32")
    api = Api(folders / "llm", limit=limit, mode=mode, policy=policy or ApiConfig())
    return Thief(proxy, api, texts(32), SMALL, BUDGET, 0)


def offers_of(thief, missing=2, sizes=None, gaps=()):
    return offers(
        thief.proxy,
        missing,
        sizes=sizes or {},
        texts=thief.texts,
        loss=thief.next_token_loss,
        seed=0,
        gaps=gaps,
    )


# Offers and the thief


def test_the_first_offer_behaves_as_the_proxy_and_each_has_the_llms_depth(folders):
    thief = thief_of(folders)
    for number, offer in enumerate(offers_of(thief)):
        model, fillers = offer.make()
        assert (len(blocks_of(model)), len(fillers)) in ((4, 2), (2, 0))
        if number == 0:
            assert torch.allclose(outputs(model, texts(2)), outputs(thief.proxy, texts(2)), atol=1e-5)


def test_without_missing_blocks_all_weights_are_trained_from_the_proxy(folders):
    thief = thief_of(folders, "narrow")
    starts = offers_of(thief, 0, sizes_in(folders / "llm"))
    assert [o.name for o in starts] == ["widened", "the proxy"]
    won = thief.distilled(16, starts)
    assert "all weights" in won.name or "ghosted" in won.name
    lesson, held_out = imitate(thief.api), thief.texts[12:16]
    assert won.loss < loss_of(thief.proxy, held_out, lesson, budget=BUDGET)
    assert won.loss == pytest.approx(loss_of(won.model, held_out, lesson, budget=BUDGET), rel=1e-4)
    assert thief.api.asked == 16


def test_without_fillers_several_learning_rates_are_tried_whatever_the_profile(folders):
    thief = thief_of(folders, "narrow")
    assert thief.spent.recipes == (FILLERS, ALL)
    assert [r.rate for r in thief.usable((thief.proxy, []))] == [1e-3, 3e-4]
    filled = grown(thief_of(folders).proxy, (0, 2, 0), "zero")
    assert thief.usable(filled) == [FILLERS, ALL]


def test_a_model_is_healed_on_no_text_that_a_number_of_queries_holds_out(folders):
    thief = thief_of(folders)
    held_out = {tuple(text.tolist()) for text in split(thief.texts[:16])[1]}
    assert len(held_out) == 4
    assert len(thief.public) == 28
    assert not held_out & {tuple(text.tolist()) for text in thief.public}


def test_fillers_are_offered_where_first_blocks_were_withheld(folders):
    thief = thief_of(folders)
    shapes = thief.shapes(2)
    assert set(shapes) == {(0, 2, 0), (2, 0, 0)}
    below = [o for o in offers_of(thief) if o.name.endswith("gaps 2-0-0")]
    assert [o.name.partition(",")[0] for o in below] == ["copies"]
    likeliest = offers_of(thief, gaps=((2, 0, 0), (0, 2, 0)))
    linear = [o for o in likeliest if o.name == "linear fillers"]
    assert len(linear) == 1
    for offer in (*below, *linear):
        model, fillers = offer.make()
        assert [id(f) for f in fillers] == [id(b) for b in blocks_of(model)[:2]]


def test_the_control_starts_no_nearer_than_the_proxy_and_only_learning_leads_back(folders):
    thief = thief_of(folders)
    start = leaked(thief.proxy, folders / "llm", loss=thief.next_token_loss, seed=0)
    model, _ = start.make()
    assert thief.next_token_loss(model) >= thief.next_token_loss(thief.proxy)
    before = loss_of(model, thief.texts[12:16], imitate(thief.api), budget=BUDGET)
    assert before > 0.01
    assert thief.distilled(16, [start]).loss < 0.9 * before


def test_a_recipe_that_trains_fillers_leaves_all_other_weights(folders):
    thief = thief_of(folders)
    start = Offer(name="zero", make=lambda: grown(thief.proxy, (0, 2, 0), "zero"))
    done = thief.distilled(16, [start], recipes=(FILLERS,))
    model, fillers = done.start
    mine = {id(p) for f in fillers for p in f.parameters()}
    kept = [p for p in model.parameters() if id(p) not in mine]
    own = {tuple(p.shape): [] for p in thief.proxy.parameters()}
    for p in thief.proxy.parameters():
        own[tuple(p.shape)].append(p)
    assert all(any(torch.equal(p, q) for q in own[tuple(p.shape)]) for p in kept)


def test_healing_asks_nothing_and_an_api_of_text_gives_no_closed_form(folders):
    thief = thief_of(folders, policy=ApiConfig(answers="text"))
    thief.healed(offers_of(thief))
    assert thief.api.asked == 0
    assert "ghosted" not in thief.closed_form(16, offers_of(thief)).name


def test_a_closed_form_of_all_queries_is_fitted_once(folders):
    thief = thief_of(folders)
    closed = thief.closed_form(16, offers_of(thief))
    assert "ghosted" in closed.name
    assert thief.closed_form(16, offers_of(thief)) is closed
    again = thief_of(folders)
    assert again.distilled(16, offers_of(again)).loss == thief.distilled(16, offers_of(thief)).loss


def test_logits_are_told_in_the_order_of_the_texts(folders):
    thief = thief_of(folders)
    llm = load_llm(folders / "llm")[0]
    assert torch.allclose(thief.api.logits(texts(4)), outputs(llm, texts(4)), atol=1e-5)


@pytest.mark.slow
def test_the_attack_of_a_proxy_with_all_blocks_finds_more_than_the_proxy(folders):
    known = View(
        threat_model="client",
        settings=None,
        adapters={0: np.zeros(0, np.float32)},
        proxy=folders / "narrow",
        api=folders / "llm",
    )
    found = run_one(ProxyExtraction(), known, Truth(clients={}), profile="smoke", seconds=1000, seed=0)
    by_name = {e.metric: e for e in found.estimates}
    assert by_name["extraction R"].low > 0
    assert found.positive.low > 0.05
    assert found.negative.high < by_name["extraction R"].low


# What a model writes


def test_greedy_continuations_are_the_likeliest_tokens_one_after_another():
    model, prompts = tiny_llama(2), texts(3, tokens=5)
    written = greedy(model, prompts.numpy(), tokens=4)
    ids = prompts
    for step in range(4):
        ids = torch.cat([ids, outputs(model, ids)[:, -1:].argmax(-1)], dim=1)
        assert (written[:, step] == ids[:, -1].numpy()).all()
    assert greedy(model, prompts.numpy()[:0], tokens=4).shape == (0, 4)


def test_continuations_agree_up_to_the_first_difference():
    theirs = np.array([[1, 2, 3, 4]] * 3)
    mine = np.array([[1, 2, 3, 4], [1, 9, 3, 4], [9, 2, 3, 4]])
    assert agreed(mine, theirs).tolist() == [1, 0.25, 0]


# The table


class Told(NoProgress):
    """Notes of what was told."""

    def __init__(self):
        self.notes = []

    def advance(self, task, steps=1, note=""):
        self.notes.append(note)


@pytest.fixture(scope="module")
def table(folders):
    told = Told()
    budget = Budget(profile="smoke", seconds=3600)
    rows = extraction_table(
        folders / "proxy",
        folders / "llm",
        grid=(0, 16),
        answers=("logits", "text"),
        budget=budget,
        progress=told,
    )
    return rows, told.notes


def test_the_table_has_a_row_for_each_attack_answer_and_number_of_queries(table):
    rows, notes = table
    found = [(row.attack, row.answers, row.queries) for row in rows]
    attacks = ("closed form", "fillers", "all weights", BEST)
    free = [(name, None, 0) for name in ("the proxy", "linear", "healed")]
    asked = [(name, kind, 16) for kind in ("logits", "text") for name in attacks]
    assert found == free + asked
    assert notes == ["no query", "logits, 16 queries", "text, 16 queries"]


def test_in_the_table_the_proxy_is_at_zero_and_the_best_is_one_of_its_line(table):
    rows, _ = table
    assert (rows[0].r.low, rows[0].r.value, rows[0].r.high) == (0, 0, 0)
    assert rows[0].seconds == 0
    for kind in ("logits", "text"):
        line = {row.attack: row for row in rows if row.answers == kind}
        others = [row for name, row in line.items() if name != BEST]
        assert line[BEST].r in [row.r for row in others]
        assert line[BEST].seconds >= max(row.seconds for row in others)
    assert max(row.r.value for row in rows if row.answers == "logits") > 0


def test_an_adversary_of_the_table_keeps_what_fewer_queries_brought(folders):
    budget = Budget(profile="smoke", seconds=3600)
    made = _Table(folders / "proxy", folders / "llm", (), (16, 24), 0, budget, 3)
    assert [row.queries for row in made.without_queries()] == [0, 0, 0]
    made.line("text", 16)
    cheaper = made.won["text"]
    made.line("text", 24)
    lesson = imitate(Api(folders / "llm", limit=24, policy=ApiConfig(answers="text")))
    again = loss_of(cheaper.model, split(made.texts[:24])[1], lesson, budget=BUDGET)
    assert made.won["text"].loss <= again


def test_a_number_of_queries_that_holds_nothing_out_is_refused(folders):
    with pytest.raises(ValueError, match="grid=3: must be 0, or 16 to 4096"):
        extraction_table(folders / "proxy", folders / "llm", grid=(3,), budget=BUDGET)
