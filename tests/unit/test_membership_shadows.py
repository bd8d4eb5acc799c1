"""A6's shadows pass over records as the run did, and end within the attack's seconds."""

import numpy as np
import pytest

from attacks import white_box
from attacks.base import Budget, replace_view
from attacks.membership.models import ModelMembership, ModelQuestion, Scored
from attacks.membership.scores import Likelihoods
from attacks.membership.shadows import shadowed
from fedproxy_secure.config import FederateConfig, LocalConfig
from tests.support.lab import records
from tests.support.memorised import HARD, RECORDS, memorised, rng


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A view before and after a proxy has learnt `RECORDS` records by heart, and the truth."""
    return memorised(tmp_path_factory.mktemp("lab"))


def shadows_of(world, *, steps, seconds=600.0):
    """What shadows tell of a run whose clients took so many steps on all of their 16 records."""
    view, truth = world
    local = LocalConfig(steps=steps, batch_size=RECORDS, learning_rate=2e-2)
    settings = view.settings.changed(local=local, federate=FederateConfig(rounds=1))
    documents = (*truth.clients["c0"].train, *truth.clients["c0"].holdout[:RECORDS])
    with white_box.opened(view) as box:
        return shadowed(
            box,
            settings,
            view.adapters[0],
            documents,
            np.ones(len(documents)),
            records=RECORDS,
            budget=Budget(profile="full", seconds=seconds),
            rng=rng(),
        )


def test_liras_shadows_pass_over_their_records_as_often_as_the_run_did(world):
    for steps in (3, 20):  # of 16 records each, all that a client or a shadow has
        told = shadows_of(world, steps=steps)
        assert (told.run, told.shadow) == (steps, steps)
        assert told.name == "LiRA, 8 shadows"


def test_shadows_that_have_too_little_time_are_called_short_and_the_finding_has_both_numbers(world):
    told = shadows_of(world, steps=10_000, seconds=20.0)
    assert 1 <= told.shadow < 0.9 * told.run == 9_000
    assert told.name == "LiRA, 8 short shadows"
    labels = np.arange(2 * RECORDS) < RECORDS
    scored = Scored(
        scores={"loss": told.scores, told.name: told.scores},
        headline="loss",
        blind=np.zeros((2 * RECORDS, 1), np.float32),
        shadows=told,
    )
    found = {e.metric: e.value for e in ModelMembership().score(scored, labels)}
    assert found["passes over a record in the run"] == 10_000
    assert found["passes over a record in a shadow"] == told.shadow
    assert "auc, LiRA, 8 short shadows" in found


class Clock:
    """A clock that only reading, gradients and steps advance, and fakes of these that take no time."""

    def __init__(self, monkeypatch, *, document, step, slower=1):
        self.now, self.document, self.step, self.slower = 0.0, document, step, slower
        self.trained = 0
        for module in ("budget", "membership.shadows"):
            monkeypatch.setattr(f"attacks.{module}.time", self)
        for module in ("models", "shadows"):
            monkeypatch.setattr(f"attacks.membership.{module}.likelihoods", self.likelihoods)
        monkeypatch.setattr("attacks.membership.models.record_gradients", self.record_gradients)
        monkeypatch.setattr("attacks.membership.shadows.train", self.train)

    def monotonic(self):
        return self.now

    def likelihoods(self, _model, items, *, budget):
        self.now += self.document * len(items)
        budget.check()
        values = [rng(len(i.ids)).random(len(i.ids) - i.response_start) for i in items]
        return [Likelihoods(nll=v, standard=-v) for v in values]

    def record_gradients(self, _box, items, *, budget):
        self.now += 4 * self.document * len(items)
        budget.check()
        return np.ones((len(items), 2))

    def train(self, _tuned, _items, *, steps, on_step, **_):
        for number in range(steps):
            self.now += self.step * (self.slower if self.trained else 1)
            on_step(number)
        self.trained += 1


def read_at(world, clock, *, rounds, seconds, documents=2000):
    """The scores that the full profile has of so many documents and rounds, and the seconds it took."""
    seen = world[0]
    settings = seen.settings.changed(local=HARD.model_copy(update={"steps": 10_000}))
    view = replace_view(seen, adapters={n: seen.adapters[0] for n in range(rounds)}, settings=settings)
    items = records(rng(), documents + 200, tokens=40, length=12)
    question = ModelQuestion(documents=items[:documents], population=items[documents:], records=16)
    budget = Budget(profile="full", seconds=seconds, began=0.0)
    return ModelMembership().guess(view, question, budget, rng()), clock.now


@pytest.mark.parametrize("rounds", [3, 4, 6])
def test_where_reading_takes_all_its_time_a6_still_ends_with_time_for_its_controls(
    world, monkeypatch, rounds
):
    clock = Clock(monkeypatch, document=1.0, step=3.0)
    guess, seconds = read_at(world, clock, rounds=rounds, seconds=10_000)
    assert 0.5 * 10_000 < seconds < 0.85 * 10_000
    read = len(guess.scores[guess.headline])
    assert 64 <= len(guess.shadows.scores) < read < 2000
    assert len(guess.scores[guess.shadows.name]) == len(guess.shadows.scores)
    assert ModelMembership().effort(guess)["documents of shadows"] == len(guess.shadows.scores)


def test_where_there_is_time_for_few_documents_alone_a6_keeps_its_other_scores_and_trains_no_shadow(
    world, monkeypatch
):
    clock = Clock(monkeypatch, document=1.0, step=3.0)
    guess, seconds = read_at(world, clock, rounds=3, seconds=2_000)
    assert (guess.shadows, clock.trained) == (None, 0)
    assert {"gradient norm", "RMIA, offline", "loss"} <= set(guess.scores)
    assert seconds < 0.85 * 2_000


def test_shadows_that_turn_out_slower_than_they_seemed_do_not_lose_the_other_scores(world, monkeypatch):
    clock = Clock(monkeypatch, document=1.0, step=3.0, slower=4)
    guess, seconds = read_at(world, clock, rounds=3, seconds=10_000)
    assert clock.trained > 1
    assert guess.shadows is None
    assert "gradient norm" in guess.scores
    assert seconds < 10_000


def test_where_there_is_time_shadows_read_every_document_of_the_exam(world, monkeypatch):
    guess, _ = read_at(world, Clock(monkeypatch, document=1e-3, step=3.0), rounds=3, seconds=10_000)
    assert len(guess.shadows.scores) == len(guess.scores[guess.headline]) == 2000


def test_a6_s_controls_have_the_headline_s_scores_alone_and_train_no_shadow(world, monkeypatch):
    monkeypatch.setattr("attacks.membership.models.shadowed", None)
    seen, truth = world
    attack = ModelMembership()
    open_view, open_truth = attack.positive(seen, truth)
    exam = attack.exam(open_truth, open_view, rng())
    guess = attack.guess(open_view, exam.question, Budget(profile="full"), rng())
    assert attack.score(guess, exam.answer)[0].low > 0.55
    assert "gradient norm" not in guess.scores
