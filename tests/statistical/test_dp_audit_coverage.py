"""The audits are right about our own mechanisms: too little noise fails, the claimed noise seldom does."""

from bisect import bisect_left

import numpy as np
import pytest
from scipy.stats import binom

from attacks.audit.curve_audit import audit, planned
from attacks.audit.dp_audit import p_value
from attacks.audit.one_run import Guesses, refutes
from attacks.audit.training_audit import (
    audit_private_steps,
    dp_sgd_family,
    imitated_scores,
    planned_guesses,
)
from fedproxy_secure.dp.accounting import noise_multiplier_for, spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.profile import dp_sgd
from tests.support.profiles import approximate

DELTA, ALPHA = 1e-5, 0.05

# what `noise_multiplier_for` returns for (epsilon, rate, steps): with sampling, that takes it seconds
SAMPLED = {(1.0, 0.1, 8): 1.6604, (4.0, 0.1, 8): 0.8257, (8.0, 0.1, 8): 0.5934, (4.0, 0.2, 5): 0.9853}


def claim(epsilon, *, rate=1.0, steps=1):
    """Steps that cost `epsilon`, and no more."""
    noise = SAMPLED.get((epsilon, rate, steps)) or noise_multiplier_for(
        target_epsilon=epsilon, delta=DELTA, sampling_rate=rate, steps=steps
    )
    made = SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)
    assert 0.99 * epsilon < spent([made], delta=DELTA).epsilon <= epsilon
    return made


def least_refuting(profile, guesses, *, canaries):
    """The least number of right guesses that refutes the profile; one more than there are, if none does."""
    asked = {"canaries": canaries, "guesses": guesses, "alpha": ALPHA}
    every = range(guesses.count + 1)
    return bisect_left(every, True, key=lambda v: refutes(profile, correct=v, **asked))


def is_as_rare_as_alpha(count, runs):
    return count <= binom.ppf(0.999, runs, ALPHA)


def test_over_200_runs_in_which_nothing_leaks_a_positive_bound_is_as_rare_as_alpha():
    rng, curve, free = np.random.default_rng(0), 0, 0
    guesses = Guesses(count=200, both=True)
    least = least_refuting(approximate(0.0, DELTA), guesses, canaries=1000)
    for _ in range(200):
        right = guesses.correct(rng.standard_normal(1000), rng.random(1000) < 0.5)
        curve += right >= least
        free += p_value(0.0, canaries=1000, guesses=200, correct=right, delta=DELTA) < ALPHA
    assert is_as_rare_as_alpha(curve, 200)
    assert is_as_rare_as_alpha(free, 200)


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.1, 8)])
def test_over_500_runs_of_a_true_claim_a_refutation_is_as_rare_as_alpha(epsilon, rate, steps):
    made, rng, refuted = claim(epsilon, rate=rate, steps=steps), np.random.default_rng(1), 0
    guesses, _ = planned_guesses(made, epsilon, DELTA, 2000, ALPHA)
    least = least_refuting(dp_sgd(made, both=guesses.both), guesses, canaries=2000)
    for _ in range(500):
        run = imitated_scores(made, noise_share=1.0, canaries=2000, rng=rng)
        refuted += guesses.correct(*run) >= least
    assert is_as_rare_as_alpha(refuted, 500)


def seldom_tells_all(profile_share, rng):
    """With this probability all guesses are right at once, else none is better than a coin."""
    return 100 if rng.random() < profile_share else int(rng.binomial(100, 0.5))


def test_canaries_that_leak_together_are_accused_no_more_often_than_alpha():
    """All guesses are right in `share` of the runs: the claim (0, share) is true, also above alpha."""
    rng, guesses = np.random.default_rng(2), Guesses(count=100, both=True)
    for share in (0.04, 0.06):
        least = least_refuting(approximate(0.0, share), guesses, canaries=1000)
        accused = sum(seldom_tells_all(share, rng) >= least for _ in range(500))
        assert is_as_rare_as_alpha(accused, 500)


def verdicts(epsilon, noise_share, runs):
    return [
        audit_private_steps(
            claim(epsilon),
            claimed_epsilon=epsilon,
            delta=DELTA,
            seed=seed,
            noise_share=noise_share,
            canaries=4000,
        ).verdict
        for seed in range(runs)
    ]


def test_training_with_the_claimed_noise_is_not_falsified_and_with_half_of_it_fails():
    pytest.importorskip("opacus")
    assert verdicts(4.0, 1.0, 5) == ["NOT_FALSIFIED"] * 5
    assert verdicts(4.0, 0.5, 5) == ["FAIL"] * 5


def test_training_and_its_imitation_show_alike():
    """The guesses are planned from imitated runs: they must be like real ones."""
    pytest.importorskip("opacus")
    made = claim(4.0, rate=0.2, steps=5)
    family = dp_sgd_family(made, delta=DELTA, canaries=3000)
    guesses = planned(family, claimed_epsilon=4.0)
    imitated = [
        audit(
            family,
            *imitated_scores(made, noise_share=1.0, canaries=3000, rng=np.random.default_rng(s)),
            guesses=guesses,
            claimed_epsilon=4.0,
        ).correct
        for s in range(20)
    ]
    real = audit_private_steps(made, claimed_epsilon=4.0, delta=DELTA, seed=5, canaries=3000)
    assert real.guesses == guesses
    assert abs(real.correct - np.mean(imitated)) < 4 * np.std(imitated, ddof=1)
