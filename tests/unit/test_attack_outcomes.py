"""One attack: its outcome follows from its headline and both controls, whatever it raises."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attacks.base import (
    Exam,
    Feeds,
    Inconclusive,
    NotApplicable,
    OutOfTime,
)
from attacks.judging.outcome import judge
from attacks.judging.power import AucPower
from attacks.statistics import auc_estimate, over_targets, tpr_estimates
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.targets import paired_by_target
from fedproxy_secure.record.view import Sums, View
from tests.support.toys import (
    CHANCE,
    HIGH,
    INFO,
    POOR,
    DrawsAtRandom,
    Raises,
    Toy,
    estimate,
    one,
)


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
            "negative control at 0.9: the attack succeeds where nothing is to be found",
        ),
        (CHANCE, HIGH, HIGH, Outcome.INCONCLUSIVE, "succeeds where nothing is to be found"),
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
        (
            CHANCE,
            estimate(0.9, None, None),
            CHANCE,
            Outcome.INCONCLUSIVE,
            "positive control 0.9: there is no interval",
        ),
        (estimate(0.7, 0.5, 0.85), HIGH, CHANCE, Outcome.INCONCLUSIVE, "begins below"),
        (estimate(0.5, 0.1, 0.9), HIGH, CHANCE, Outcome.INCONCLUSIVE, "reaches the positive control's"),
        (estimate(0.5, None, None), HIGH, CHANCE, Outcome.INCONCLUSIVE, "auc 0.5: there is no interval"),
        (estimate(0.9, None, None), HIGH, CHANCE, Outcome.INCONCLUSIVE, "auc 0.9: there is no interval"),
        (estimate(0.5, 0.5, 0.5), HIGH, CHANCE, Outcome.INCONCLUSIVE, "auc 0.5: there is no interval"),
        (estimate(0.9, 0.9, 0.9), HIGH, CHANCE, Outcome.INCONCLUSIVE, "auc 0.9: there is no interval"),
        (
            CHANCE,
            estimate(0.9, 0.9, 0.9),
            CHANCE,
            Outcome.INCONCLUSIVE,
            "positive control 0.9: there is no interval",
        ),
        (estimate(0.56, 0.549, 0.57), HIGH, CHANCE, Outcome.INCONCLUSIVE, "above 0.55"),
        (
            estimate(0.4, 0.3, 0.449),
            HIGH,
            CHANCE,
            Outcome.INCONCLUSIVE,
            "ends below 0.45: its scores are informative",
        ),
        (estimate(0.4, 0.3, 0.451), HIGH, CHANCE, Outcome.RESISTED, "positive control 0.9"),
        (estimate(0.48, 0.465, 0.495), HIGH, CHANCE, Outcome.RESISTED, "positive control 0.9"),
        (estimate(0.52, 0.505, 0.535), HIGH, CHANCE, Outcome.RESISTED, "positive control 0.9"),
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


@pytest.mark.parametrize(
    ("smallest", "said"),
    [
        (None, "auc 0.5: no auc would have been seen with probability 0.8 (4 there, 4 not)"),
        (
            0.95,
            "auc 0.5: only an AUC of 0.95 would have been seen with probability 0.8 (4 there, 4 not), "
            "above the positive control, 0.9",
        ),
    ],
)
def test_an_attack_that_could_not_have_seen_what_its_control_shows_is_not_resisted(smallest, said):
    could = Detectable(metric="auc", unit="AUC", bar=0.55, smallest=smallest, how="4 there, 4 not")
    assert judge(INFO, CHANCE, HIGH, CHANCE, (could,)) == (Outcome.INCONCLUSIVE, said)
    other = replace(could, metric="TPR at 1.0% FPR")
    assert judge(INFO, CHANCE, HIGH, CHANCE, (other,))[0] == Outcome.RESISTED
    assert judge(INFO, HIGH, HIGH, CHANCE, (could,))[0] == Outcome.SUCCEEDED


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
            auc_estimate(guess, answer, metric="auc"),
            *tpr_estimates(guess, answer, rates=(0.01,)),
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
    attack.score = lambda guess, answer: (over_targets([0.1, 0.5], metric="auc", unit="AUC"),)
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
    assert found.out_of_time == isinstance(error, OutOfTime)
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
    assert made.out_of_time == (isinstance(error, OutOfTime) and found is CHANCE)
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
