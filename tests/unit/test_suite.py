"""The suite: what fails stops nothing else, outcomes follow from controls, an interrupted one goes on."""

import json
import math
import os
import sys
import time
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import pytest

from attacks import base, registry
from attacks.base import (
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Feeds,
    Inconclusive,
    NotApplicable,
    OutOfTime,
    Truth,
)
from attacks.judging.outcome import judge
from attacks.judging.power import AucPower
from attacks.statistics import auc_estimate, over_targets, tpr_estimates
from attacks.suite import read_truth, run_suite, seed_folders
from attacks.trial import run_one
from fedproxy_secure.config import parse_config
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Outcome, read_findings
from fedproxy_secure.evidence.measure import MEASURES
from fedproxy_secure.evidence.targets import paired_by_target
from fedproxy_secure.gate.judge import Verdict
from fedproxy_secure.gate.judge import judge as judge_report
from fedproxy_secure.gate.policy import load_policy
from fedproxy_secure.record.view import Sums, View, view
from fedproxy_secure.report.html.page import page
from fedproxy_secure.report.html.tables import first_tables
from fedproxy_secure.report.measured import configuration_of, read_seed
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.markdown import markdown_report
from fedproxy_secure.report.text.trilemma_table import headings
from fedproxy_secure.runtime.preload import warm_up
from fedproxy_secure.runtime.workers import Lost, in_processes
from tests.support.recorded import record_run
from tests.support.tiny import write_records
from threat_models import get as threat_model

SERVER, CLIENT = threat_model("server"), threat_model("client")
NOTHING = Truth(clients={})


def estimate(value, low, high, metric="auc"):
    return Estimate(
        metric=metric, value=value, low=low, high=high, n=10, unit="AUC", seeds=(7,), how="for the test"
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


class TakesForever(Toy):
    def guess(self, view, question, budget, rng):
        while view.threat_model != "open":
            time.sleep(0.01)


class HangsInItsControl(Toy):
    def guess(self, view, question, budget, rng):
        while view.threat_model == "open":
            time.sleep(0.01)


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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with one recorded seed; enough records that some are set aside for a control."""
    place = tmp_path_factory.mktemp("recorded")
    root = write_records(place / "records", clients=4, records=40)
    return record_run(place, federate={"rounds": 2}, data={"root": root}).parent


@pytest.fixture
def clean(run):
    """The run without earlier results."""
    for file in (run / "attacks").glob("*"):
        file.unlink()
    return run


def suite(run, *attacks, **more):
    settings = {"threat_models": [SERVER], "seconds": 60.0}
    return run_suite(run, attacks=attacks, **(settings | more))


def without_seconds(results):
    return [replace(r, seconds=0.0) for r in results]


# what comes out of one attack


@pytest.mark.parametrize(
    ("headline", "positive", "negative", "outcome", "said"),
    [
        (HIGH, HIGH, CHANCE, Outcome.SUCCEEDED, "auc 0.9, chance 0.5"),
        (HIGH, None, None, Outcome.SUCCEEDED, "chance 0.5"),
        (HIGH, CHANCE, CHANCE, Outcome.SUCCEEDED, "chance 0.5"),
        (
            HIGH,
            HIGH,
            HIGH,
            Outcome.INCONCLUSIVE,
            "negative control at 0.9: the attack finds what is not there",
        ),
        (CHANCE, HIGH, HIGH, Outcome.INCONCLUSIVE, "finds what is not there"),
        (
            estimate(0.65, 0.56, 0.74),
            HIGH,
            estimate(0.64, 0.54, 0.73),
            Outcome.INCONCLUSIVE,
            "its interval must begin above the negative control, 0.64",
        ),
        (CHANCE, HIGH, CHANCE, Outcome.RESISTED, "auc 0.5; positive control 0.9"),
        (CHANCE, HIGH, None, Outcome.RESISTED, "positive control 0.9"),
        (POOR, HIGH, POOR, Outcome.RESISTED, "positive control 0.9"),
        (CHANCE, CHANCE, CHANCE, Outcome.INCONCLUSIVE, "positive control 0.5"),
        (CHANCE, None, CHANCE, Outcome.INCONCLUSIVE, "positive control none"),
        (CHANCE, estimate(0.9, None, None), CHANCE, Outcome.INCONCLUSIVE, "positive control 0.9"),
        (estimate(0.7, 0.5, 0.85), HIGH, CHANCE, Outcome.INCONCLUSIVE, "begins below"),
        (estimate(0.5, 0.1, 0.9), HIGH, CHANCE, Outcome.INCONCLUSIVE, "reaches the positive control's"),
        (estimate(0.5, None, None), HIGH, CHANCE, Outcome.INCONCLUSIVE, "reaches the positive control's"),
        (estimate(0.9, None, None), HIGH, CHANCE, Outcome.INCONCLUSIVE, "begins below"),
        (estimate(0.56, 0.549, 0.57), HIGH, CHANCE, Outcome.INCONCLUSIVE, "above 0.55"),
        (estimate(0.56, 0.551, 0.57), HIGH, CHANCE, Outcome.SUCCEEDED, "chance"),
    ],
)
def test_the_outcome_follows_from_the_headline_and_both_controls(
    headline, positive, negative, outcome, said
):
    found, reason = judge(INFO, headline, positive, negative)
    assert found == outcome
    assert said in reason


def test_the_reason_of_resisted_says_what_would_have_been_seen():
    could = Detectable(metric="auc", unit="AUC", bar=0.55, smallest=0.58, how="for the test")
    other = replace(could, metric="TPR at 1.0% FPR")
    found, reason = judge(INFO, CHANCE, HIGH, CHANCE, (could, other))
    assert found == Outcome.RESISTED
    assert (
        reason == "auc 0.5; positive control 0.9; an AUC of 0.58 would have been seen with probability 0.8"
    )
    assert "would have" not in judge(INFO, CHANCE, HIGH, CHANCE, (other,))[1]
    assert "would have" not in judge(INFO, HIGH, HIGH, CHANCE, (could,))[1]


class Ranks(Toy):
    """Scores 80 targets as `strength` says, with the statistics of this project."""

    LABELS = np.arange(80) < 40

    def __init__(self, name="ranks", strength=0.0):
        super().__init__(name, measures=(Feeds(measure="membership_auc", metric="auc"),))
        self.strength = strength

    def exam(self, truth, view, rng):
        return Exam(question=tuple(range(80)), answer=self.LABELS)

    def guess(self, view, question, budget, rng):
        strength = {"open": 9.0, "empty": 0.0}.get(view.threat_model, self.strength)
        return np.random.default_rng(0).normal(size=80) + strength * self.LABELS

    def score(self, guess, answer):
        return (
            auc_estimate(guess, answer, metric="auc", seed=0),
            *tpr_estimates(guess, answer, seed=0, rates=(0.01,)),
        )


def test_a_finding_says_what_it_could_have_shown_what_it_read_and_how_each_target_was_judged():
    found = one(Ranks())
    (could,) = found.detectable  # no measure has the other number
    smallest = AucPower(positives=40, negatives=40).smallest(0.55)
    assert (could.metric, could.bar, could.smallest) == ("auc", pytest.approx(0.55), smallest)
    assert (found.read, found.chance, found.margin) == ((), 0.5, 0.05)
    assert found.reason.endswith(f"an AUC of {smallest:.3g} would have been seen with probability 0.8")
    assert (found.targets.kinds, len(found.targets.values)) == ("1" * 40 + "0" * 40, 80)
    assert {type(e) for e in (*found.estimates, found.positive, found.negative)} == {Estimate}


def test_a_mean_is_paired_only_if_the_exam_asked_about_its_targets():
    attack = Toy()
    attack.score = lambda guess, answer: (over_targets([0.1, 0.5], metric="auc", unit="AUC", seed=0),)
    assert one(attack).targets is None
    attack.exam = lambda truth, view, rng: Exam(question=("a", "b"))
    assert one(attack).targets.values == (0.1, 0.5)


def test_the_same_exam_has_one_fingerprint_whatever_the_attack_finds():
    weak, strong = one(Ranks(strength=0.5)), one(Ranks(strength=1.0), seed=3)
    assert weak.targets.exam == strong.targets.exam
    change = paired_by_target(strong.targets, weak.targets, metric="m", unit="AUC")
    assert change.value == pytest.approx(strong.headline.value - weak.headline.value)


def test_a_finding_says_which_of_its_attacks_sets_of_surfaces_was_used():
    attack = Toy(needs=(frozenset({"IND", "MOD"}), frozenset({"API", "ACT"}), frozenset({"ACT"})))
    found = one(attack, seen=View(threat_model="toy", active=True, api=Path("x")))
    assert found.read == ("ACT", "API")


def test_an_attacks_own_numbers_are_judged_by_their_interval_and_not_paired():
    found = one(Toy())
    assert [d.how for d in found.detectable] == ["the width of its interval"]
    assert found.targets is None


def test_numbers_controls_and_outcome_come_together():
    found = one(Toy(), seed=3)
    assert found.outcome == Outcome.SUCCEEDED
    assert (found.headline.value, found.positive.value, found.negative.value) == (0.9, 0.9, 0.5)
    assert {e.seeds for e in (*found.estimates, found.positive, found.negative)} == {(3,)}


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (ValueError("no idea"), Outcome.ERROR, "ValueError: no idea"),
        (SystemExit(1), Outcome.ERROR, "SystemExit: 1"),
        (MemoryError(), Outcome.ERROR, "MemoryError: "),
        (NotApplicable("nothing here"), Outcome.NOT_APPLICABLE, "nothing here"),
        (Inconclusive("who knows"), Outcome.INCONCLUSIVE, "who knows"),
        (OutOfTime(2.5), Outcome.INCONCLUSIVE, "ran out of its 2.5 s in the attack itself"),
    ],
)
def test_whatever_an_attack_raises_becomes_an_outcome(error, outcome, reason):
    attack = Raises()
    attack.error = error
    found = one(attack)
    assert (found.outcome, found.reason) == (outcome, reason)
    assert found.estimates == ()


def test_an_interrupt_is_no_outcome():
    attack = Raises()
    attack.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        one(attack)


def test_an_attack_without_numbers_is_an_error():
    attack = Toy()
    attack.score = lambda guess, answer: ()
    assert one(attack).outcome == Outcome.ERROR


def test_an_attack_that_takes_too_long_is_stopped():
    began = time.monotonic()
    found = one(TakesForever(), seconds=0.2)
    assert time.monotonic() - began < 2
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
    monkeypatch.setattr("attacks.trial.TICK_S", 0.05)
    bars = Bars()
    seen = View(threat_model="toy")
    run_one(HangsInItsControl(), seen, NOTHING, profile="smoke", seconds=1.3, seed=0, progress=bars)
    assert bars.told[0] == ("start", "toy, toy", 2)
    assert bars.told[-1] == ("done", "toy, toy")
    told = [t for t in bars.told if t[0] == "advance"]
    assert sum(steps for _, _, steps, _ in told) == 1
    assert {note for *_, note in told} == {"positive control"}


def test_what_was_found_before_the_time_was_over_is_kept():
    found = one(HangsInItsControl(), seconds=0.2)
    assert found.outcome == Outcome.INCONCLUSIVE
    assert found.reason == "ran out of its 0.2 s in its positive control"
    assert found.headline.value == 0.9
    assert found.positive is None


def test_a_view_without_what_an_attack_needs_is_not_attacked():
    attack = Toy(needs=(frozenset({"IND", "MOD"}), frozenset({"API"})))
    found = one(attack, seen=View(threat_model="toy", active=True))
    assert found.outcome == Outcome.NOT_APPLICABLE
    assert found.reason == "needs IND+MOD or API; this view has ACT"
    assert attack.guesses == 0
    assert one(attack, seen=View(threat_model="toy", api=Path("x"))).outcome == Outcome.SUCCEEDED


def test_a_control_that_does_not_fit_is_a_control_that_is_not_there():
    attack = Toy()
    attack.found = CHANCE

    def positive(view, truth):
        raise NotApplicable("no records")

    attack.positive = positive
    found = one(attack)
    assert found.positive is None
    assert found.negative.value == 0.5
    assert found.outcome == Outcome.INCONCLUSIVE
    assert "positive control none" in found.reason


def test_the_same_view_and_question_are_not_answered_twice():
    attack = Toy()
    attack.negative = lambda view, exam, rng: (view, Exam(question=exam.question, answer="other"))
    attack.positive = lambda view, truth: (view, truth)
    found = one(attack)
    assert attack.guesses == 1
    assert found.positive == found.headline
    assert found.negative == replace(HIGH, seeds=(0,))


@pytest.mark.parametrize("error", [OutOfTime(2.5), Inconclusive("who knows")])
@pytest.mark.parametrize("found", [HIGH, CHANCE])
def test_success_needs_no_positive_control_and_resistance_does(error, found):
    attack = Toy()
    attack.found = found

    def positive(view, truth):
        raise error

    attack.positive = positive
    made = one(attack)
    assert made.negative.value == CHANCE.value
    if found is HIGH:
        assert made.outcome == Outcome.SUCCEEDED
    else:
        assert (made.outcome, made.reason) == (
            Outcome.INCONCLUSIVE,
            f"{error} in its positive control",
        )


def test_a_negative_control_that_changes_nothing_is_none():
    attack = Toy()
    attack.negative = lambda view, exam, rng: (view, exam)
    assert one(attack).negative is None


def test_guesses_follow_from_the_seed_alone():
    values = [one(DrawsAtRandom(), seed=s).headline.value for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_as_given_the_negative_control_shuffles_every_number_an_update_or_a_step_has():
    rng = np.random.default_rng(0)
    start = rng.random(50).astype(np.float32)
    seen = View(
        threat_model="toy",
        adapters={0: start, 1: start + 1, 2: start + 3, 4: start + 3 + np.arange(50, dtype=np.float32)},
        updates={(0, "a"): np.arange(50.0)},
        sums={0: Sums(clients=("a",), segments={"update": np.arange(50.0), "squares": np.ones(2)})},
    )
    exam = Exam(question=1, answer=2)
    mixed, same = Toy.__mro__[1].negative(Toy(), seen, exam, rng)  # type: ignore[attr-defined]
    assert same is exam
    for before, after in (
        (seen.updates[0, "a"], mixed.updates[0, "a"]),
        (seen.sums[0].segments["update"], mixed.sums[0].segments["update"]),
    ):
        assert not np.array_equal(before, after)
        np.testing.assert_array_equal(np.sort(after), before)
    np.testing.assert_array_equal(mixed.adapters[0], start)
    np.testing.assert_allclose(mixed.adapters[2] - mixed.adapters[1], 2, atol=1e-6)
    step = mixed.adapters[4] - mixed.adapters[2]  # from one round that was seen to the next
    np.testing.assert_allclose(np.sort(step), np.arange(50), atol=1e-5)
    assert not np.allclose(step, np.arange(50))
    np.testing.assert_array_equal(mixed.sums[0].segments["squares"], np.ones(2))


def test_a_budget_is_over_when_its_seconds_are():
    Budget(seconds=10).check()
    with pytest.raises(OutOfTime, match="ran out of its 10 s"):
        Budget(seconds=10, began=time.monotonic() - 11).check()
    assert Budget(profile="full").pick(smoke=1, standard=2, full=3) == 3
    assert Budget(seconds=10, began=time.monotonic() - 5).used == pytest.approx(0.5, abs=0.05)


# the suite


def test_attacks_that_fail_stop_none_of_the_others_and_all_are_in_the_results(clean):
    attacks = [
        Toy("first"),
        Raises("raises"),
        TakesForever("takes_forever"),
        Toy("lacks", needs=(frozenset({"IND"}),)),
        Toy("last"),
    ]
    results = suite(clean, *attacks, threat_models=[SERVER, CLIENT], seconds=0.2)
    row = ["SUCCEEDED", "ERROR", "INCONCLUSIVE", "NOT_APPLICABLE", "SUCCEEDED"]
    assert [str(r.outcome) for r in results] == row * 2
    assert [r.view for r in results] == ["server"] * 5 + ["client"] * 5
    assert read_findings(clean) == results


def test_two_suites_are_equal_but_for_their_seconds(clean):
    attacks = [registry.get(n) for n in ("lora_span_tokens", "sign_counts", "mask_seed_search")]
    first, second = suite(clean, *attacks), suite(clean, *attacks)
    assert without_seconds(first) == without_seconds(second)
    assert {r.outcome for r in first} <= {Outcome.SUCCEEDED, Outcome.RESISTED, Outcome.INCONCLUSIVE}


def test_an_interrupted_suite_leaves_what_it_has_and_goes_on_to_the_same_results(clean):
    stops = Raises("stops")
    stops.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        suite(clean, Toy("first"), DrawsAtRandom("drawn"), stops, Toy("last"))
    assert [r.attack for r in read_findings(clean)] == ["first", "drawn"]

    came = []
    resumed = suite(
        clean,
        Toy("first"),
        DrawsAtRandom("drawn"),
        Toy("stops"),
        Toy("last"),
        resume=True,
        on_result=came.append,
    )
    assert [r.attack for r in came] == ["stops", "last"]
    assert read_findings(clean) == resumed
    unbroken = suite(clean, Toy("first"), DrawsAtRandom("drawn"), Toy("stops"), Toy("last"))
    assert without_seconds(resumed) == without_seconds(unbroken)


def test_a_line_that_a_crash_left_unfinished_is_made_again(clean):
    suite(clean, Toy("first"), Toy("second"))
    events = clean / "attacks" / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-20])
    came = []
    suite(clean, Toy("first"), Toy("second"), resume=True, on_result=came.append)
    assert [r.attack for r in came] == ["second"]


def test_errors_and_what_ran_out_of_time_are_tried_again(clean):
    suite(clean, Raises("raises"), TakesForever("slow"), Toy("fine"), seconds=0.2)
    came = []
    suite(clean, Toy("raises"), Toy("slow"), Toy("fine"), resume=True, seconds=60.0, on_result=came.append)
    assert [(r.attack, r.outcome) for r in came] == [
        ("raises", Outcome.SUCCEEDED),
        ("slow", Outcome.SUCCEEDED),
    ]


@pytest.mark.parametrize("change", [{"profile": "standard"}, {"seed": 1}, {"resume": False}])
def test_results_of_another_profile_or_seed_are_not_taken_over(clean, change):
    suite(clean, Toy())
    came = []
    suite(clean, Toy(), **({"resume": True, "on_result": came.append} | change))
    assert len(came) == 1


def test_progress_counts_what_is_left_and_names_what_came(clean):
    told = []

    class Told:
        def start(self, task, total):
            told.append((task, total))

        def advance(self, task, steps=1, note=""):
            told.append(note)

        def done(self, task):
            told.append(task)

    suite(clean, Toy("first"))
    suite(clean, Toy("first"), Toy("second"), Raises("third"), resume=True, progress=Told())
    whole = [t for t in told if "server" not in str(t)]
    assert whole == [("smoke suite", 2), "second: SUCCEEDED", "third: ERROR", "smoke suite"]
    each = [t for t in told if "server" in str(t)]
    assert each == [("second, server", 60), "second, server", ("third, server", 60), "third, server"]


def test_a_run_that_was_not_recorded_is_refused(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(RunFolderError, match="no seed of it was recorded; run with --record"):
        seed_folders(tmp_path)


def test_views_that_cannot_be_had_are_refused_before_anything_runs(clean):
    many = replace(threat_model("colluding_clients"), clients=9)
    attack = Toy()
    with pytest.raises(RunFolderError, match="corrupts 9 clients; this run has 4"):
        suite(clean, attack, threat_models=[SERVER, many])
    assert attack.guesses == 0


def test_corrupted_clients_are_not_part_of_the_truth(clean):
    (seed,) = seed_folders(clean)
    assert list(read_truth(seed).clients) == ["c0", "c1", "c2", "c3"]
    assert list(read_truth(seed, honest_besides=2).clients) == ["c2", "c3"]


def test_a_seed_folder_names_each_result(clean):
    assert {r.seed_folder for r in suite(clean, Toy())} == {"seed-0"}


def test_results_are_plain_json_with_a_schema_version(clean):
    suite(clean, Toy())
    raw = json.loads((clean / "attacks" / "results.json").read_text())
    assert raw["schema_version"] == 2
    assert raw["results"][0]["outcome"] == "SUCCEEDED"


# processes of their own


def test_a_task_that_dies_or_hangs_takes_no_other_with_it(monkeypatch):
    monkeypatch.setattr("fedproxy_secure.runtime.workers.GRACE_S", 3.0)
    assert dict(in_processes(math.sqrt, [4.0, 9.0, 16.0], jobs=2, seconds=60)) == {0: 2, 1: 3, 2: 4}
    assert dict(in_processes(os._exit, [3], jobs=1, seconds=60)) == {0: Lost(timed_out=False, code=3)}
    (index, lost), *none = in_processes(time.sleep, [60], jobs=1, seconds=0)
    assert (index, none) == (0, [])
    assert lost.timed_out


def test_processes_left_behind_are_ended():
    results = in_processes(time.sleep, [0, 50, 50], jobs=3, seconds=60)
    assert next(results) == (0, None)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_suite_in_processes_has_the_same_results_as_in_one(clean):
    warm_up(["attacks.preload"])
    attacks = [registry.get(n) for n in ("lora_span_tokens", "dp_audit", "sign_counts")]
    apart = suite(clean, *attacks, jobs=2)
    together = suite(clean, *attacks)
    assert without_seconds(apart) == without_seconds(together)


class Names(Toy):
    """An attack whose estimates name the process that made them."""

    def score(self, guess, answer):
        return (replace(*super().score(guess, answer), how=str(os.getpid())),)


class DiesApart(Names):
    """Ends its process, unless that is the first one."""

    def guess(self, view, question, budget, rng):
        if parent_process() is not None:
            os._exit(9)
        return super().guess(view, question, budget, rng)


@pytest.fixture
def registered(monkeypatch):
    """Return a function that registers attacks, which forked processes then know too."""
    monkeypatch.setattr("fedproxy_secure.runtime.workers.get_context", lambda _: get_context("fork"))

    def register(*attacks):
        for one in attacks:
            alike = type(
                "Alike", (type(one),), {"info": one.info, "guesses": 0, "__init__": lambda _: None}
            )
            monkeypatch.setitem(registry._REGISTERED, one.info.name, alike)
        return attacks

    registry.every()
    return register


def processes(findings):
    """The process of each attack and view."""
    return {(f.attack, f.view): f.estimates[0].how for f in findings if f.estimates}


def test_attacks_that_share_something_run_in_one_process_others_in_their_own(clean, registered):
    attacks = registered(Names("one", shares="it"), Names("two", shares="it"), Names("other"))
    found = processes(suite(clean, *attacks, threat_models=[SERVER, CLIENT], jobs=2))
    assert len(found) == 6
    together = {process for (attack, _), process in found.items() if attack != "other"}
    assert len(together) == 1
    assert len(set(found.values())) == 3


def test_a_suite_goes_over_to_processes_once_it_may_run_more_at_once(clean, registered):
    attacks = registered(Names("one", long=2), Names("two", long=1), Names("three"))
    answers = iter([1, 2])
    found = processes(suite(clean, *attacks, jobs=lambda: next(answers)))
    own = str(os.getpid())
    assert [found[name, "server"] == own for name in ("one", "two", "three")] == [True, False, False]


def test_what_shares_a_process_with_an_attack_that_ends_it_runs_again_by_itself(clean, registered):
    attacks = registered(Names("one", shares="it"), DiesApart("dies", shares="it"))
    found = suite(clean, *attacks, jobs=2)
    assert {f.attack: f.outcome for f in found} == {"one": Outcome.SUCCEEDED, "dies": Outcome.ERROR}


# third parties


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A way to install a package that names an entry point; undone afterwards."""

    def install(value):
        place = tmp_path / "somebody-1.0.dist-info"
        place.mkdir()
        (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
        (place / "entry_points.txt").write_text(f"[{registry.GROUP}]\nmine = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry._load.cache_clear()

    registry.every()  # modules register their attacks once a process, when first imported
    registered = dict(registry._REGISTERED)
    yield install
    registry._REGISTERED.clear()
    registry._REGISTERED.update(registered)
    registry._load.cache_clear()


@pytest.fixture
def own(installed, monkeypatch):
    """The example's module: its attack is found by its entry point, its measure is registered."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    sys.modules.pop("own_attack", None)
    installed("own_attack:WorstToken")
    registry.every()
    module = sys.modules["own_attack"]
    with MEASURES.added(module.WORST_TOKEN_AUC.key, module.WORST_TOKEN_AUC):
        yield module


def test_an_attack_of_thirty_lines_is_found_by_its_entry_point_and_runs(own, clean):
    lines = Path(own.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) - lines.index("ABOUT = AttackInfo(") <= 30
    assert len(lines) <= 60  # with its measure, and how a package names both
    names = list(registry.every())
    assert names[-1] == "worst_token"
    (result,) = suite(clean, *registry.find("X1"))
    assert (result.attack, result.id) == ("worst_token", "X1")
    assert result.outcome not in (Outcome.ERROR, Outcome.NOT_APPLICABLE), result.reason
    assert 0 <= result.headline.value <= 1
    assert result.positive is not None
    assert result.negative is not None


def test_the_measure_of_an_attack_of_ones_own_is_a_column_a_chapter_and_a_rule(own, clean, tmp_path):
    suite(clean, *registry.find("X1"))
    answers = {"alpha": "0101", "beta": "0011"}
    result = {
        "fidelity": {"kl_nats": 0.5, "cka": [1.0], "llm_perplexity": 5, "proxy_perplexity": 10},
        **dict.fromkeys(("zero_shot", "proxy", "tuned", "fused"), answers),
    }
    (clean / "seed-0" / "result.json").write_text(json.dumps(result))
    seed = read_seed(clean, 0, root=clean)
    (clean / "seed-0" / "result.json").unlink()
    config = parse_config({"protect": {"scheme": "masking"}})
    configuration = configuration_of([seed], config, name="masking", settings={"protection": "masking"})

    measure = configuration.measure("worst_token_auc")
    (headline,) = (f.headline for f in seed.findings)
    assert (measure.axis, measure.better) == ("privacy", "lower")
    assert (measure.estimate.value, measure.estimate.high) == (headline.value, headline.high)
    assert "the worst of X1 over all views" in measure.estimate.how

    assert "worst token's AUC" in headings([configuration])
    report = Report(
        name="own",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=(0,),
        configurations=(configuration,),
    )
    shown = f"{measure.estimate.value:.2f}"
    assert "worst token's AUC" in markdown_report(report)
    assert f"| {shown} [" in markdown_report(report)
    (table,) = (t for t in first_tables(report) if t.axis == "privacy")
    (column,) = (c for c in table.columns if c.key == "worst_token_auc")
    assert (column.title, column.arrow) == ("worst token's AUC", "↓")
    assert f'<data class="num" value="{measure.estimate.value}"' in page(report)

    # a finding that could not tell proves nothing, so that only one that does meets the rule
    told = replace(seed.findings[0], outcome=Outcome.RESISTED)
    sure = replace(report, configurations=(replace(configuration, findings=(told,)),))
    verdicts = {}
    for bound in (1.0, headline.low - 0.01):
        (tmp_path / "policy.yaml").write_text(
            f"schema_version: 1\nrules:\n- max_worst_token_auc: {bound}\n"
        )
        (row,) = judge_report(sure, load_policy(tmp_path / "policy.yaml")).rows
        verdicts[bound] = row.verdict
        assert row.why.startswith("worst_token_auc: ")
    assert list(verdicts.values()) == [Verdict.PASSED, Verdict.FAILED]


def test_a_measure_that_nobody_has_registered_is_refused_before_anything_runs(clean):
    feeds = Feeds(measure="token_acu", metric="auc")
    attack = Toy(measures=(feeds,))
    with pytest.raises(
        ConfigError, match="attack 'toy': measures=token_acu: is not known; did you mean 't"
    ):
        suite(clean, attack)
    assert attack.guesses == 0


def test_a_number_of_another_unit_than_its_measures_is_an_error_of_the_attack():
    found = one(Toy(measures=(Feeds(measure="canary_exposure_bits", metric="auc"),)))
    assert found.outcome == Outcome.ERROR
    assert "auc: unit=AUC: must be bits, the unit of canary_exposure_bits" in found.reason


def test_a_finding_says_which_numbers_are_of_which_measure():
    feeds = (Feeds(measure="token_auc", metric="auc*"), Feeds(measure="membership_auc", metric="other"))
    attack = Toy(measures=feeds)
    attack.score = lambda guess, answer: (CHANCE, HIGH, estimate(0.6, 0.5, 0.7, metric="auc, again"))
    found = one(attack)
    assert found.measures == {"token_auc": (0, 1, 2), "membership_auc": ()}
    assert [e.value for e in found.numbers("token_auc")] == [0.5, 0.9, 0.6]
    assert found.numbers("gap_closed") == ()
    assert one(Raises(measures=feeds)).measures == {"token_auc": (), "membership_auc": ()}


def test_what_another_version_wrote_is_made_again(clean):
    suite(clean, Toy())
    events = clean / "attacks" / "events.jsonl"
    old = json.loads(events.read_text())
    del old["measures"]
    events.write_text(json.dumps(old) + "\n")
    came = []
    suite(clean, Toy(), resume=True, on_result=came.append)
    assert [r.attack for r in came] == ["toy"]


def test_findings_of_another_version_are_refused_with_the_way_to_new_ones(clean):
    suite(clean, Toy())
    results = clean / "attacks" / "results.json"
    text = results.read_text()
    results.write_text(text.replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(RunFolderError, match=r"schema_version=1: must be 2; run `attack run` again$"):
        read_findings(clean)
    raw = json.loads(text)
    raw["results"][0]["measures"] = {"token_auc": [1]}
    results.write_text(json.dumps(raw))
    with pytest.raises(RunFolderError, match=r"is damaged: toy: measures.token_auc: position 1: must be"):
        read_findings(clean)


def test_every_attack_of_this_project_feeds_registered_measures():
    attacks = registry.every().values()
    registry.check_measures(attacks)
    fed = {feeds.measure for a in attacks for feeds in a.info.measures}
    by_attacks = {key for key, kind in MEASURES.every().items() if kind.by == "attacks"}
    assert fed == by_attacks


def test_an_entry_point_that_cannot_be_loaded_is_named_in_one_line(installed):
    installed("somebody.nowhere:Nothing")
    with pytest.raises(ConfigError, match=r"entry point 'mine' .*somebody.nowhere:Nothing: cannot be"):
        registry.every()


def test_two_attacks_cannot_have_one_name():
    registry.every()
    with pytest.raises(ConfigError, match="attack 'lora_span_tokens': is registered already"):
        registry.attack(replace(INFO, name="lora_span_tokens"))(Toy)


def test_an_attack_is_found_by_name_and_all_of_an_id_by_it():
    assert [a.info.name for a in registry.find("A2")] == ["lora_span_tokens"]
    assert {a.info.id for a in registry.find("A11")} == {"A11"}
    assert len(registry.find("A11")) == 4
    with pytest.raises(ConfigError, match="attack 'lora_span_token': is not known; did you mean 'lora_sp"):
        registry.find("lora_span_token")
    with pytest.raises(ConfigError, match="attack '%': is not known; there are embedding_bow, "):
        registry.get("%")


def test_ids_are_in_order_and_every_attack_says_what_it_is_for():
    infos = [a.info for a in registry.every().values() if a.info.id != "X1"]
    numbers = [int(i.id[1:]) for i in infos]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 17))
    for info in infos:
        assert info.needs
        assert info.title
        assert info.paper
        assert info.mapping
        assert info.margin >= 0


def test_a_view_of_a_recorded_run_offers_what_its_threat_model_says(run):
    (seed,) = seed_folders(run)
    assert view(seed, SERVER).surfaces == {"AGG", "MOD", "MR"}
    assert view(seed, CLIENT).surfaces == {"ACT", "AGG", "API", "MOD", "MR"}
    assert view(seed, threat_model("api_user")).surfaces == {"API"}
