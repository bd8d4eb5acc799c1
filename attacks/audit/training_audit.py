"""A8 on this project's own DP-SGD, from the inside: each canary pulls a weight of its own.

A linear model has one weight per canary. A canary that is in pulls only its own weight, by at most the
clip. No canary is stronger, so the result shows how much noise the code adds, for any model. Gradients have
`LOUD` times the length of the clip: without a clip, or with one too long for the noise, canaries stand out.
The adversary sees the weights after every step, as DP-SGD's guarantee allows, and orders canaries by the
likelihood ratio of the weights.

Guarantees: the verdict and the bound are those of `curve_audit` for the family "DP-SGD with this sampling
rate and number of steps, and any noise". The claim is about `private_steps`, which clients run on their
adapters, not about one client's data. Canaries that are out are absent: neighbours differ by a record that
is present or absent.

The audit detects: too little noise; a clip that is too large for the noise; a clip that is missing together
with the check of squares behind it (if only the scaling is missing, that check counts every canary as zero,
which is private); and records drawn twice as often as claimed over some ten steps. It does not detect: a
noise key that repeats from round to round; a model in which one record changes another's gradient; faults
before or after the private steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from attacks.audit.curve_audit import CurveAudit, Family, audit, found_share, planned
from attacks.audit.dp_audit import ALPHA
from attacks.audit.one_run import Guesses
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.profile import PrivacyProfile, dp_sgd
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.federate.private_training import private_steps

CANARIES = 10_000
LOUD = 10.0  # length of a canary's gradient, in clips


def audit_private_steps(
    claim: SampledGaussian,
    *,
    claimed_epsilon: float,
    delta: float,
    seed: int,
    noise_share: float = 1.0,
    clip: float = 1.0,
    drawn: float = 1.0,
    canaries: int = CANARIES,
) -> CurveAudit:
    """Train once, with each canary in or out by a coin, and bound epsilon from below by guesses.

    The coins and the noise follow from `seed`, so that an audit can be repeated. The number and the kind of
    guesses follow from the claim and the number of canaries.

    Args:
        claim: all steps of a client over all rounds.
        noise_share: the audited training's noise, as a share of the claimed noise.
        clip: the length that it clips to, as a multiple of the correct length.
        drawn: how often it draws records, as a multiple of the claimed rate.
    """
    family = dp_sgd_family(claim, delta=delta, canaries=canaries)
    scores, coins = trained_scores(
        claim, seed=seed, noise_share=noise_share, clip=clip, drawn=drawn, canaries=canaries
    )
    guesses, fails_at = planned_guesses(claim, claimed_epsilon, delta, canaries, ALPHA)
    return audit(
        family,
        scores,
        coins,
        guesses=guesses,
        claimed_epsilon=claimed_epsilon,
        alpha=ALPHA,
        fails_at=fails_at,
    )


def trained_scores(
    claim: SampledGaussian,
    *,
    seed: int,
    noise_share: float,
    canaries: int,
    clip: float = 1.0,
    drawn: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Train on the canaries that are in; return the scores, float64 [m], and the coins, bool [m]."""
    import torch

    coins = np.random.default_rng(seed).random(canaries) < 0.5
    included = np.flatnonzero(coins)
    weight = torch.nn.Parameter(torch.zeros(canaries))
    module = torch.nn.Module()
    module.register_parameter("weight", weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    scores = np.zeros(canaries)

    def look(*_: object) -> None:
        assert weight.grad is not None
        scores[:] += likelihood_ratio(-weight.grad.double().numpy(), claim)

    optimizer.register_step_pre_hook(look)
    private_steps(
        module,
        lambda chosen: -LOUD * weight[int(included[chosen[0]])],
        records=len(included),
        steps=claim.steps,
        optimizer=optimizer,
        private=RecordNoise(
            noise_multiplier=claim.noise_multiplier * noise_share / clip,  # of the clip: as much noise
            clip_norm=clip,
            sampling_rate=claim.sampling_rate * drawn,
        ),
        noise=Noise(seed.to_bytes(32, "big")),
        divisor=1.0,
        subject="audit",
    )
    return scores, coins


def likelihood_ratio(seen: np.ndarray, claim: SampledGaussian) -> np.ndarray:
    """Return the log-likelihood ratio, record present against absent, of one step's noisy numbers."""
    q, variance = claim.sampling_rate, claim.noise_multiplier**2
    loud = (seen - 0.5) / variance
    if q == 1:
        return np.asarray(loud)
    return np.asarray(np.logaddexp(np.log1p(-q), np.log(q) + loud))


def imitated_scores(
    claim: SampledGaussian, *, noise_share: float, canaries: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the result of `trained_scores` from the law of the claim, without training.

    Returns scores, float64 [m], and coins, bool [m].
    """
    coins = rng.random(canaries) < 0.5
    scores = np.zeros(canaries)
    for _ in range(claim.steps):
        drawn = coins & (rng.random(canaries) < claim.sampling_rate)
        noise = rng.standard_normal(canaries) * claim.noise_multiplier * noise_share
        scores += likelihood_ratio(drawn + noise, claim)
    return scores, coins


def dp_sgd_family(claim: SampledGaussian, *, delta: float, canaries: int) -> Family:
    """Return DP-SGD with the claim's sampling rate and steps, and any noise."""

    def event(part: float) -> SampledGaussian:
        return replace(claim, noise_multiplier=claim.noise_multiplier * part)

    def profile(part: float, both: bool) -> PrivacyProfile:
        return dp_sgd(event(part), both=both)

    def scores(part: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return imitated_scores(claim, noise_share=part, canaries=canaries, rng=rng)

    return Family(
        profile=profile,
        delta=delta,
        canaries=canaries,
        scores=scores,
    )


@lru_cache(maxsize=64)
def planned_guesses(
    claim: SampledGaussian, claimed_epsilon: float, delta: float, canaries: int, alpha: float
) -> tuple[Guesses, float]:
    """Return the guesses of an audit of this claim, and their `found_share`; see `curve_audit`."""
    family = dp_sgd_family(claim, delta=delta, canaries=canaries)
    guesses = planned(family, claimed_epsilon=claimed_epsilon, alpha=alpha)
    return guesses, found_share(family, guesses, claimed_epsilon=claimed_epsilon, alpha=alpha)
