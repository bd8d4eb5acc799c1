"""The audit by a mechanism's curve: what bound, ceiling and verdict follow from which guesses."""

import math

import numpy as np
import pytest

from attacks.audit.curve_audit import audit, found_share, planned, shown
from attacks.audit.one_run import Guesses
from attacks.audit.training_audit import audit_private_steps, dp_sgd_family, imitated_scores
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.profile import gaussian
from fedproxy_secure.errors import DataError

DELTA, MU = 1e-5, 0.925  # MU is what epsilon 4 is at that delta
CLAIM = SampledGaussian(noise_multiplier=1 / MU, sampling_rate=1.0, steps=1)
SOME = Guesses(count=200, both=True)


def family(canaries=2000):
    return dp_sgd_family(CLAIM, delta=DELTA, canaries=canaries)


def audited(part, *, seed=0, guesses=SOME, claimed=4.01):
    run = imitated_scores(CLAIM, noise_share=part, canaries=2000, rng=np.random.default_rng(seed))
    return audit(family(), *run, guesses=guesses, claimed_epsilon=claimed)


def test_the_claimed_noise_is_bounded_from_below_and_half_of_it_fails():
    right, half = audited(1.0), audited(0.5)
    assert 1.5 < right.lower_bound < 4
    assert right.without_curve < right.lower_bound < right.ceiling
    assert right.verdict == "NOT_FALSIFIED"
    assert "does not refute the claim of 4.01" in right.summary()
    assert half.lower_bound > 4.01
    assert half.verdict == "FAIL"
    assert "REFUTES the claim of 4.01" in half.summary()


def test_the_ceiling_is_of_the_guesses_that_were_made_also_where_nothing_is_shown():
    scores, coins = np.arange(2000.0), np.arange(2000) % 2 == 0
    ceilings = []
    for count in (20, 200):
        found = audit(family(), scores, coins, guesses=Guesses(count=count, both=True), claimed_epsilon=4.0)
        assert found.lower_bound == 0
        ceilings.append(found.ceiling)
    perfect = audit(family(), coins.astype(float), coins, guesses=SOME, claimed_epsilon=4.0)
    assert perfect.lower_bound == perfect.ceiling == ceilings[1] > ceilings[0] > 0


def test_the_bound_is_the_epsilon_of_the_least_noise_that_is_refuted():
    bounds = [
        shown(family(), guesses=SOME, canaries=2000, correct=v, alpha=0.05) for v in range(100, 201, 10)
    ]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0
    grid = [gaussian(MU * 2 ** (k / 32)).epsilon(DELTA) for k in range(-224, 225)]
    assert all(any(math.isclose(b, e) for e in grid) for b in bounds if b)


def test_guesses_are_planned_from_the_claim_alone_and_find_half_of_its_noise():
    guesses = planned(family(), claimed_epsilon=4.01)
    assert guesses == planned(family(), claimed_epsilon=4.01)
    verdicts = [audited(0.5, seed=s, guesses=guesses).verdict for s in range(10, 15)]
    assert verdicts == ["FAIL"] * 5


def test_an_audit_says_with_how_much_of_the_noise_it_would_have_failed():
    guesses = planned(family(), claimed_epsilon=4.01)
    share = found_share(family(), guesses, claimed_epsilon=4.01)
    assert 0.5 <= share < 1
    verdicts = [audited(share - 0.1, seed=s, guesses=guesses).verdict for s in range(10, 15)]
    assert verdicts == ["FAIL"] * 5
    few = family(canaries=20)
    assert found_share(few, Guesses(count=10, both=True), claimed_epsilon=4.01) == 0


def test_a_clip_that_is_longer_than_the_noise_is_for_fails_like_too_little_noise():
    def tried(clip):
        return audit_private_steps(
            CLAIM, claimed_epsilon=4.01, delta=DELTA, seed=1, clip=clip, canaries=2000
        )

    assert tried(1.0).verdict == "NOT_FALSIFIED"
    assert tried(3.0).verdict == "FAIL"


def test_records_that_are_drawn_twice_as_often_as_claimed_fail():
    claim = SampledGaussian(noise_multiplier=1.313, sampling_rate=0.5, steps=3)  # epsilon 3.96

    def tried(drawn):
        return audit_private_steps(
            claim, claimed_epsilon=3.97, delta=DELTA, seed=1, drawn=drawn, canaries=2000
        )

    assert tried(1.0).verdict == "NOT_FALSIFIED"
    assert tried(2.0).verdict == "FAIL"


def test_where_records_are_seldom_sampled_only_those_that_seem_in_are_guessed():
    """One that is in is often never drawn, and then looks like one that is out."""
    rare = SampledGaussian(noise_multiplier=0.8, sampling_rate=0.01, steps=20)
    assert not planned(dp_sgd_family(rare, delta=DELTA, canaries=4000), claimed_epsilon=2.0).both


def test_a_claim_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="claimed_epsilon=nan: must be >= 0"):
        audited(1.0, claimed=math.nan)
