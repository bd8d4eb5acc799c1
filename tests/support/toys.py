"""Attacks with fixed results, for tests of how attacks are run and judged."""

import time
from dataclasses import replace

from attacks import base
from attacks.base import (
    Attack,
    AttackInfo,
    Exam,
    OutOfTime,
    Truth,
)
from attacks.suite import run_suite
from attacks.trial import run_one
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import View
from threat_models import get as threat_model

SERVER, CLIENT = threat_model("server"), threat_model("client")
NOTHING = Truth(clients={})


def estimate(value, low, high, metric="auc"):
    return Estimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=10,
        unit="AUC",
        seeds=(7,),
        how="for the test",
        nature="sampled",
    )


HIGH, CHANCE, POOR = estimate(0.9, 0.8, 0.95), estimate(0.5, 0.45, 0.55), estimate(0.4, 0.3, 0.5)
INFO = AttackInfo(id="T0", name="toy", title="a toy", paper="none", needs=(frozenset(),))


class Toy(Attack):
    """Finds everything; positive control as good, negative one at chance."""

    info = INFO
    found, control, empty = HIGH, HIGH, CHANCE

    def __init__(self, name="toy", **changes):
        self.info = replace(INFO, name=name, **changes)
        self.guesses = 0

    def guess(self, view, question, budget, rng):
        self.guesses += 1
        return view.threat_model

    def score(self, guess, answer):
        return ({"open": self.control, "empty": self.empty}.get(guess, self.found),)

    def positive(self, view, truth):
        return base.replace_view(view, threat_model="open"), truth

    def negative(self, view, exam, rng):
        return base.replace_view(view, threat_model="empty"), exam


class Raises(Toy):
    error: BaseException = ValueError("no idea")

    def guess(self, view, question, budget, rng):
        raise self.error


class RunsOut(Toy):
    """Says itself that its seconds are over, except in its positive control: no clock is asked."""

    def guess(self, view, question, budget, rng):
        if view.threat_model != "open":
            raise OutOfTime(budget.seconds)


class TakesForever(Toy):
    def guess(self, view, question, budget, rng):
        while view.threat_model != "open":
            time.sleep(0.01)


class TakesEveryExceptionForItsOwn(Toy):
    """As training under differential privacy does, whose failures nobody may be told."""

    def guess(self, view, question, budget, rng):
        try:
            for _ in range(100):
                time.sleep(0.01)
        except Exception:
            return view.threat_model
        return view.threat_model


class RunsOutInItsControl(Toy):
    def guess(self, view, question, budget, rng):
        if view.threat_model == "open":
            raise OutOfTime(budget.seconds)


class DrawsAtRandom(Toy):
    def guess(self, view, question, budget, rng):
        return rng.random()

    def exam(self, truth, view, rng):
        return Exam(answer=rng.random())

    def score(self, guess, answer):
        return (estimate(guess * answer, 0.0, 1.0),)


def one(attack, seconds=60.0, seed=0, seen=None):
    return run_one(
        attack, seen or View(threat_model="toy"), NOTHING, profile="smoke", seconds=seconds, seed=seed
    )


def suite(run, *attacks, **more):
    settings = {"threat_models": [SERVER], "seconds": 60.0}
    return run_suite(run, attacks=attacks, **(settings | more))


def without_seconds(results):
    return [replace(r, seconds=0.0) for r in results]


def late(**limits):
    """Return the budget of a control: 600 of 1000 s have passed, more than any attack takes for itself."""
    return base.Budget(seconds=1000, began=time.monotonic() - 600, **limits)
