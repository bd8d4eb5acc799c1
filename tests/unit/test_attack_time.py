"""An attack that takes too long is stopped, and each of its controls gets its part of the time."""

import signal
import time

import pytest

from attacks.base import (
    Budget,
    OutOfTime,
)
from attacks.trial import run_one
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.record.view import View
from tests.support.toys import (
    NOTHING,
    RunsOutInItsControl,
    TakesEveryExceptionForItsOwn,
    TakesForever,
    Toy,
    one,
)


def test_an_attack_that_takes_too_long_is_stopped():
    found = one(TakesForever(), seconds=0.2)
    assert found.outcome == Outcome.INCONCLUSIVE
    assert found.reason == "ran out of its 0.2 s in the attack itself"


class Bars:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def start(self, task, total):
        self.told.append(("start", task, total))

    def advance(self, task, steps=1, note=""):
        self.told.append(("advance", task, steps, note))

    def done(self, task):
        self.told.append(("done", task))


def test_a_bar_counts_the_seconds_of_an_attack_that_says_nothing_and_names_its_part(monkeypatch):
    monkeypatch.setattr("attacks.budget.TICK_S", 0.05)
    bars = Bars()
    a_second = ("advance", "toy, toy", 1, "positive control")

    class SaysNothing(Toy):
        """Takes as long in its control as it takes until the bar has told a second of it."""

        def guess(self, view, question, budget, rng):
            while view.threat_model == "open" and a_second not in bars.told:
                time.sleep(0.01)

    seen = View(threat_model="toy")
    run_one(SaysNothing(), seen, NOTHING, profile="smoke", seconds=99.5, seed=0, progress=bars)
    assert bars.told[0] == ("start", "toy, toy", 100)
    assert a_second in bars.told
    assert bars.told[-1] == ("done", "toy, toy")


def test_what_was_found_before_the_time_was_over_is_kept():
    found = one(RunsOutInItsControl())
    assert found.outcome == Outcome.INCONCLUSIVE
    assert found.reason == "ran out of its 60 s in its positive control"
    assert found.headline.value == 0.9
    assert found.positive is None


def test_time_that_runs_out_is_not_lost_in_code_that_takes_every_exception_for_its_own():
    found = one(TakesEveryExceptionForItsOwn(), seconds=0.3)
    assert (found.outcome, found.headline) == (Outcome.INCONCLUSIVE, None)
    assert "ran out of its 0.3 s in the attack itself" in found.reason


def test_a_budget_is_over_when_its_seconds_are():
    Budget(seconds=10).check()
    with pytest.raises(OutOfTime, match="ran out of its 10 s"):
        Budget(seconds=10, began=time.monotonic() - 11).check()
    assert Budget(profile="full").pick(smoke=1, standard=2, full=3) == 3
    assert Budget(seconds=1e6, began=time.monotonic() - 5e5).used == pytest.approx(0.5, abs=0.05)


def test_a_control_that_begins_late_is_given_as_much_as_the_attack_and_leaves_time_to_score():
    began = time.monotonic()
    fresh, begun, spent = (Budget(seconds=1e6, began=began - late) for late in (0, 3e5, 8e5))
    assert fresh.until(0.4) == pytest.approx(0.4, abs=0.01)
    assert begun.until(0.4) == pytest.approx(0.7, abs=0.01)
    assert spent.until(0.4) == 0.9


def test_the_control_that_comes_first_leaves_half_of_the_rest_to_the_other():
    begun = Budget(seconds=1e6, began=time.monotonic() - 3e5)
    assert begun.halfway().until(0.4) == pytest.approx(0.6, abs=0.01)
    assert begun.halfway().until(0.1) == pytest.approx(0.4, abs=0.01)
    spent = Budget(seconds=1e6, began=time.monotonic() - 9.5e5).halfway()
    assert spent.until(0.4) < spent.used

    last = {}

    class Notes(Toy):
        def guess(self, view, question, budget, rng):
            last[view.threat_model] = budget.last
            return view.threat_model

    one(Notes())
    assert last["empty"] == pytest.approx(0.45, abs=0.01)
    assert last["toy"] == last["open"] == 0.9


def test_an_alarm_that_rings_while_the_attack_ends_leaves_no_handler_behind(monkeypatch):
    """The system's alarm comes when it likes; here it comes as the attack's own is taken off."""
    before, set_timer = signal.getsignal(signal.SIGALRM), signal.setitimer
    others = set_timer(signal.ITIMER_REAL, 1000)  # another alarm, set before, such as the test's own limit

    def rings_as_it_is_taken_off(which, seconds):
        if seconds == 0:
            signal.getsignal(signal.SIGALRM)(signal.SIGALRM, None)
        return set_timer(which, 1000 if 0 < seconds < 1 else seconds)

    monkeypatch.setattr(signal, "setitimer", rings_as_it_is_taken_off)
    try:
        found = one(Toy(), seconds=1e-4)
        assert "ran out of its 0.0001 s" in found.reason
        assert signal.getsignal(signal.SIGALRM) is before
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] < 1000
    finally:
        signal.signal(signal.SIGALRM, before)
        set_timer(signal.ITIMER_REAL, *others)
