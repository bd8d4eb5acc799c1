"""A16: what a proxy knows by heart it writes out, and a proxy that has read nothing writes nothing true."""

from dataclasses import replace

import numpy as np
import pytest

from attacks.base import Budget, NotApplicable, Truth, replace_view
from attacks.membership.overfit import RECORDS
from attacks.memorization import client_details
from attacks.memorization.client_details import ClientDetails, Guessed
from attacks.memorization.details import Detail, find_details
from attacks.trial import run_one
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import AdapterConfig, Config, LocalConfig
from fedproxy_secure.data.encode import Encoded, encode_records, text_ids
from fedproxy_secure.data.worlds.demo_notes import NOTE_TASKS, note_records
from fedproxy_secure.experiments.stages import exact_proxy, prepare
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, get_vector
from fedproxy_secure.models.llm import load_tokenizer
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import PublicSettings, View
from tests.support.toys import late

NOTES = 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "File K7 - 4412 : Ana Bel , born on 3 May 1961 , cough .",
            [("number", "K7 - 4412"), ("name", "Ana Bel"), ("date", "3 May 1961")],
        ),
        ("On 3 May 1961 Ana Bel paid 250 crowns .", [("date", "3 May 1961"), ("name", "Ana Bel")]),
        ("Patient Ana Bel, ana.bel@post.org", [("name", "Ana Bel"), ("address", "ana.bel@post.org")]),
        ("born 2001-02-28, phone 170 1234567", [("date", "2001-02-28"), ("number", "1234567")]),
        ("The doctor came in 1961 with 4411 crowns .", []),
    ],
)
def test_details_are_found_by_their_form(text, expected):
    found = find_details(text)
    assert [(f.detail.kind, f.detail.text) for f in found] == expected
    assert all(text[f.start : f.end] == f.detail.text for f in found)


@pytest.mark.parametrize("task", NOTE_TASKS)
def test_every_note_of_the_world_holds_a_name_a_date_and_a_number(task):
    for note in note_records(task, "train", 60):
        kinds = [f.detail.kind for f in find_details(note.prompt)]
        assert {"name", "date", "number"} <= set(kinds), note.prompt


def view_after(folder, *, steps):
    """The view of one client of a proxy that was trained on another client's notes, and the truth."""
    config = Config(adapter=AdapterConfig(rank=64, alpha=128))
    materials = prepare(config)
    proxy = exact_proxy(config, materials, seed=0, remove_ratio=0.5)
    save_model(proxy.model, materials.tokenizer, folder)
    tuned = attach(proxy.model, config.adapter, seed=0)
    start = get_vector(tuned)
    own, theirs = (
        encode_records(note_records(t, "train", NOTES), materials.tokenizer, max_tokens=96).items
        for t in ("bank_letter", "petition")
    )
    local = LocalConfig(steps=1, batch_size=NOTES, learning_rate=4e-3)
    if steps:
        train(
            tuned,
            theirs,
            steps=steps,
            local=local,
            pad_id=materials.tokenizer.pad_token_id,
            rng=np.random.default_rng(0),
            subject="test",
        )
    learnt = get_vector(tuned)

    def state(name, items):
        done = PrivateRound(update=learnt - start, used=np.arange(NOTES))
        return PrivateState(client=name, train=items, holdout=(), canaries=(), rounds={0: done})

    settings = PublicSettings(
        seed=0,
        d=len(start),
        adapter=config.adapter,
        local=config.local,
        fusion=config.fusion,
        federate=config.federate,
        protect=config.protect,
        privacy=config.privacy,
        max_tokens=96,
        blocks=None,
        clients=("a", "b"),
    )
    view = View(
        threat_model="client",
        settings=settings,
        adapters={0: start, 1: learnt},
        own={"a": state("a", own)},
        proxy=folder,
    )
    return view, Truth(clients={"b": state("b", theirs)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A proxy that knows another client's notes by heart."""
    return view_after(tmp_path_factory.mktemp("proxy"), steps=150)


def written(view, truth):
    attack, rng = ClientDetails(), np.random.default_rng(0)
    exam = attack.exam(truth, view, rng)
    guess = attack.guess(view, exam.question, Budget(seconds=300), rng)
    return {e.metric: e for e in attack.score(guess, exam.answer)}


@pytest.mark.slow
def test_numbers_known_by_heart_are_written_out(world):
    found = written(*world)
    assert found["share of details written out"].n == NOTES
    assert found["share of details written out"].low > 0.005
    assert found["share of dates written out"].value > 0


def test_a_proxy_that_has_read_nothing_writes_no_number_of_anybody(tmp_path, monkeypatch):
    view, truth = view_after(tmp_path, steps=0)
    attack = ClientDetails()
    exam = attack.exam(truth, view, np.random.default_rng(0))
    untrained, _ = attack.negative(view, exam, np.random.default_rng(0))
    monkeypatch.setattr(Budget, "pick", lambda budget, **sizes: 96)  # prompts
    assert written(untrained, truth)["share of details written out"].value == 0


@pytest.mark.slow
def test_a_control_that_begins_late_writes_as_much_as_the_attack(tmp_path):
    view, _ = view_after(tmp_path, steps=0)
    fresh, begun = (
        ClientDetails().guess(view, None, budget, np.random.default_rng(0))
        for budget in (Budget(seconds=1000), late())
    )
    assert any(fresh.ranked.values())
    assert begun == fresh


@pytest.mark.slow
def test_a_proxy_trained_by_heart_is_the_control_that_must_succeed(world):
    view, truth = world
    untrained, _ = ClientDetails().negative(view, ClientDetails().exam(truth, view, None), None)
    finding = run_one(ClientDetails(), untrained, truth, profile="smoke", seconds=600, seed=0)
    assert finding.positive.low > 0.005
    assert finding.headline.value == 0


@pytest.mark.slow
def test_what_the_adversary_held_anyway_is_neither_guessed_nor_asked_for(world):
    view, truth = world
    both = replace_view(view, own={"b": truth.clients["b"]})
    with pytest.raises(NotApplicable, match="no names"):
        ClientDetails().exam(truth, both, np.random.default_rng(0))
    guess = ClientDetails().guess(both, None, Budget(seconds=60), np.random.default_rng(0))
    exam = ClientDetails().exam(truth, view, np.random.default_rng(0))
    assert not set().union(*exam.answer) & {d for kind in guess.ranked.values() for d in kind}


def test_kinds_are_scored_apart_and_the_first_that_records_hold_decides():
    number, date = Detail(kind="number", text="K1 - 0001"), Detail(kind="date", text="3 May 1961")
    guess = Guessed(ranked={"number": (number, Detail(kind="number", text="x")), "date": ()})
    found = {e.metric: e.value for e in ClientDetails().score(guess, (frozenset({number, date}),))}
    assert found == {
        "share of details written out": 1,
        "guesses of numbers that are right": 0.5,
        "share of dates written out": 0,
        "guesses of dates that are right": 0,
    }


def test_details_of_one_record_are_found_or_missed_together():
    numbers = [Detail(kind="number", text=f"K1 - {i:04}") for i in range(16)]
    apart, together = tuple(frozenset({n}) for n in numbers), (frozenset(numbers),)
    for ranked in ((), tuple(numbers)):
        few, many = (
            ClientDetails().score(Guessed(ranked={"number": ranked}), a)[0] for a in (together, apart)
        )
        assert few.value == many.value
        assert few.n == many.n == 16
        assert few.high - few.low > 0.7 > 0.2 > many.high - many.low
    dates = frozenset({Detail(kind="date", text="3 May 1961")})
    found = ClientDetails().score(Guessed(ranked={}), (*apart, dates, dates))
    assert [e.how.rsplit("over ")[1] for e in found[::2]] == ["16 groups", "1 groups"]


def test_each_record_that_was_drawn_is_asked_for_its_own_details(tmp_path):
    view, truth = view_after(tmp_path, steps=0)
    answer = ClientDetails().exam(truth, view, np.random.default_rng(0)).answer
    assert len(answer) == NOTES
    assert all(any(d.kind == "number" for d in details) for details in answer)


def test_the_control_is_made_of_records_whose_headline_counts_the_same_kind_of_detail(
    tmp_path, monkeypatch
):
    view, truth = view_after(tmp_path, steps=0)
    monkeypatch.setattr(client_details, "overfitted", lambda view, truth, *, what: (view, truth))
    tokenizer = load_tokenizer(view.proxy)
    with_numbers = truth.clients["b"]
    names = [
        found.detail.text
        for item in with_numbers.train
        for found in find_details(tokenizer.decode(item.ids))
        if found.detail.kind == "name"
    ]
    named = tuple(Encoded(ids=tuple(text_ids(f"{n} .", tokenizer)), response_start=1) for n in names)
    only_names = replace(with_numbers, client="c", train=named)
    _, control = ClientDetails().positive(view, Truth(clients={"b": with_numbers, "c": only_names}))
    assert set(control.clients) == {"b"}
    _, control = ClientDetails().positive(view, Truth(clients={"c": only_names}))
    assert set(control.clients) == {"c"}
    items = named * RECORDS + with_numbers.train
    drawn = PrivateRound(update=np.zeros(1, np.float32), used=np.arange(len(items)))
    late_numbers = replace(with_numbers, train=items, rounds={0: drawn})
    _, control = ClientDetails().positive(view, Truth(clients={"b": late_numbers, "c": only_names}))
    assert not control.clients  # numbers count, and no client begins with any
