"""A12 as a whole: queries bring it above the proxy, controls hold, and what cannot be attacked says so."""

import dataclasses

import numpy as np
import pytest

from attacks.base import KNOWN_BAD, NOBODY, Budget, NotApplicable, replace_view
from attacks.extraction import proxy as attack_of_proxy
from attacks.extraction import questions, thief
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.scored import HEALED, KL_LEFT, NOTHING, PROXY, TOLD, queries
from attacks.extraction.thief import FEWEST_QUERIES, TRIAL, Thief, effort
from attacks.trial import run_one
from fedproxy_secure.config import parse_config
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.experiments.run import run
from fedproxy_secure.record.view import View, view
from tests.support.extraction import NO_CLIENTS
from tests.support.tiny import VOCABULARY, tiny_settings
from threat_models import get as threat_model


def test_what_it_spent_stands_in_the_finding(finding):
    by_name = {e.metric: e for e in finding.estimates}
    assert by_name["steps of each training"].value == 24
    assert by_name["steps in turn"].value == 3 * 24  # healing, 16 queries, 64 queries
    assert by_name["texts asked about"].value == 64
    assert finding.estimates[0].n == 32
    assert finding.effort == {
        "steps of each training": 24,
        "numbers of queries": 2,
        "texts asked about": 64,
        "held-out texts": 32,
    }


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


def steps_of(model):
    return getattr(model, "steps_taken", 0)  # a copy of the model has them, too


def test_models_that_are_compared_were_trained_for_the_same_number_of_steps(seen, monkeypatch):
    """API gain, proxy gain and R of weaker APIs would otherwise show training, not queries or the proxy."""

    def teach(model, *_args, steps, **_how):
        model.steps_taken = steps_of(model) + steps
        return -model.steps_taken  # more training is always better

    monkeypatch.setattr(thief, "teach", teach)
    monkeypatch.setattr(Thief, "_loss", lambda _self, model, _texts, _lesson: -steps_of(model))
    monkeypatch.setattr(attack_of_proxy, "behaviour", lambda model, **_how: steps_of(model))
    monkeypatch.setattr(
        questions,
        "effort",
        lambda budget, **how: dataclasses.replace(effort(budget, **how), all_controls=True, steps=TRIAL),
    )
    one, budget = ProxyExtraction(), Budget(profile="smoke")
    exam = one.exam(NO_CLIENTS, seen, np.random.default_rng(0))
    trained = one.guess(seen, exam.question, budget, np.random.default_rng(1)).models
    one_training = TRIAL + 1  # with the trial that went before
    compared = (queries(64), HEALED, NOTHING, *TOLD.values())
    assert {name: trained[name] for name in compared} == dict.fromkeys(compared, 3 * one_training)
    assert trained[queries(16)] == 2 * one_training


def test_a_guess_asks_no_more_than_its_largest_number_of_queries(seen, monkeypatch):
    monkeypatch.setattr(
        questions, "effort", lambda budget, **how: dataclasses.replace(effort(budget, **how), steps=1)
    )
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
