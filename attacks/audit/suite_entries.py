"""A8 and A9: does the run's mechanism, at its own settings, keep the epsilon that it claims?

A8 (`training_audit`) puts record canaries through the clients' own DP-SGD; A9 (`canary_clients`) puts
canary clients into sums that carry the run's noise. Both read the run's settings and its numbers of records
and clients, and nothing of what was trained: a run whose clients trained without noise gets the same
result, and the finding says so. Both give a lower bound on epsilon (`curve_audit`). The
headline is the bound over the claimed epsilon. Above 1 there is less noise than the claim rests on. Below 1
nothing is proven: the claim is "not falsified".

From simulated runs, each audit also estimates the largest share of the claimed noise at which it would have
failed. If that share is less than half, an audit that does not fail is INCONCLUSIVE: it has too few
canaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from attacks.audit.curve_audit import CurveAudit
from attacks.base import (
    KNOWN_BAD,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Feeds,
    Inconclusive,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.registry import attack
from fedproxy_secure.evidence.estimate import Estimate, Nature, counted
from fedproxy_secure.evidence.measures.privacy import AUDIT_SCOPE
from fedproxy_secure.record.view import View

BROKEN = 0.125  # a positive control has this share of the claimed noise
LEAST_FOUND = 0.5  # an audit that would not fail even this share of the noise is inconclusive
WOULD_FAIL = "most of the claimed noise that would have failed"
LEAST_CANARIES, MOST_CANARIES = 1_000, 10_000  # of A8, as the passes of a budget allow
PASSES = {"smoke": 4_000, "standard": 10_000, "full": 40_000}  # of A8, by profile
CLIENTS = {"smoke": 2_000, "standard": 4_000, "full": 10_000}  # canaries of A9, by profile
MOST = 500.0  # a larger epsilon is reported as this one; it means no privacy either way
AUDIT = (("NIST AI RMF", "1.0", "MEASURE 2.10"), ("EU AI Act", "2024/1689", "Art. 15(5)"))


@dataclass(frozen=True, kw_only=True)
class Audited:
    """The result of an audit."""

    result: CurveAudit

    def estimates(self, metric: str) -> tuple[Estimate, ...]:
        """Return the audit's estimates: its headline, the bounds on epsilon, and the guesses behind."""
        result = self.result

        def estimate(
            name: str, value: float, unit: str, how: str, nature: Nature = "lower bound"
        ) -> Estimate:
            capped = min(value, MOST)
            return Estimate(
                metric=name,
                value=capped,
                low=capped,
                high=capped,
                n=result.canaries,
                unit=unit,
                seeds=(0,),
                how=how,
                nature=nature,
            )

        how = f"one-run audit by the mechanism's own trade-off curve: a lower bound at 95 %, {AUDIT_SCOPE}"
        any_how = f"one-run audit by epsilon and delta alone: a lower bound at 95 %, {AUDIT_SCOPE}"
        right = replace(
            counted(
                result.correct, metric="right guesses", unit="count", seeds=(0,), n=result.guesses.count
            ),
            how=f"right guesses of n, {'in and out' if result.guesses.both else 'in alone'}, about "
            f"{result.canaries} canaries",
        )
        would_fail = () if result.fails_at is None else (_would_fail(result.fails_at, result.canaries),)
        return (
            estimate(metric, result.lower_bound / result.claimed_epsilon, "ratio", how),
            estimate("audited epsilon", result.lower_bound, "epsilon", how),
            estimate("most that these canaries could show", result.ceiling, "epsilon", how, "counted"),
            estimate("audited epsilon, whatever the mechanism", result.without_curve, "epsilon", any_how),
            right,
            *would_fail,
        )


def _would_fail(share: float, canaries: int) -> Estimate:
    estimate = counted(share, metric=WOULD_FAIL, unit="share", seeds=(0,), n=canaries)
    return replace(estimate, how="largest share, in tenths, that failed in each of six imitated runs")


def more_canaries(now: int, *, most: int, room: int | None = None) -> str:
    """Return how to get more canaries, by the limit on their number.

    Args:
        now: the current number of canaries.
        most: the number in the largest profile.
        room: the numbers of the adapter, if each canary needs one of its own.
    """
    if room is not None and now >= room:
        return f"an adapter of {room} numbers has no room for more canaries; train a larger one"
    if now < most:
        return "run a larger profile, which has more canaries"
    return "no profile has more canaries"


def _weakest(faults: Sequence[CurveAudit], *, remedy: str) -> Audited:
    """Return the positive control's audit that shows least, as each fault must be found.

    Raises `Inconclusive`, with `remedy`, if there are too few canaries to detect that half of the noise is
    missing.
    """
    weakest = min(faults, key=lambda audit: audit.lower_bound)
    if weakest.fails_at is not None and weakest.fails_at < LEAST_FOUND:
        raise Inconclusive(
            f"would have failed only with {weakest.fails_at:g} of the claimed noise or less; must be "
            f"{LEAST_FOUND:g} or more: {remedy}"
        )
    return Audited(result=weakest)


class _Audit(Attack):
    """The base class of attacks A8 and A9: their controls, and a score that reports the guess."""

    def score(self, guess: Audited, answer: object) -> tuple[Estimate, ...]:
        """Return the audited epsilon over the claimed one, then the audit's own numbers."""
        return guess.estimates(self.info.headline)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """Return the same mechanism with known faults, which the audit must find; the weakest counts.

        One fault is an eighth of the claimed noise; for A8 another is a clip ten times the correct length.
        """
        return replace_view(view, threat_model=KNOWN_BAD), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Return no control: the audit's confidence level limits false accusations (tested over seeds)."""
        return view, exam


@attack(
    AttackInfo(
        id="A8",
        name="dp_audit",
        title="audit of record-level differential privacy at the run's settings, not of the run's training",
        paper="Mahloujifar, Melis & Chaudhuri 2025, arXiv 2410.22235",
        needs=(frozenset({"MOD"}),),
        headline="epsilon shown over the claim",
        chance=1.0,
        margin=0.0,
        measures=(
            Feeds(measure="epsilon_audited", metric="audited epsilon"),
            Feeds(measure="audited_over_claimed", metric="epsilon shown over the claim"),
        ),
        mapping=AUDIT,
    )
)
class DpAudit(_Audit):
    """The audit with canaries whose gradients are ten clips long, through the clients' own DP-SGD."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the number of records of the smallest client, which samples most often."""
        if view.settings is None or view.settings.privacy.unit != "record":
            raise NotApplicable("the run claims no record-level differential privacy")
        return Exam(question=min(len(s.train) for s in truth.clients.values()))

    def guess(self, view: View, question: int, budget: Budget, rng: np.random.Generator) -> Audited:
        """Train once and bound epsilon from below.

        Raises `NotApplicable` for noise so small that training refuses the known faults, which have less.
        """
        from attacks.audit.training_audit import LOUD, audit_private_steps
        from fedproxy_secure.dp.events import SampledGaussian
        from fedproxy_secure.dp.record_noise import LEAST_NOISE, record_noise

        settings = view.settings
        assert settings is not None
        rounds = settings.federate.rounds
        noise = record_noise(settings.privacy, settings.local, rounds=rounds, records=question)
        if noise.noise_multiplier < (least := LEAST_NOISE * max(LOUD, 1 / BROKEN)):
            raise NotApplicable(
                f"the claim takes noise of {noise.noise_multiplier:.2g} clips; must be {least:g} or more "
                "for faults to be tried that leave less: audit a smaller privacy.target_epsilon"
            )
        claim = SampledGaussian(
            noise_multiplier=noise.noise_multiplier,
            sampling_rate=noise.sampling_rate,
            steps=rounds * settings.local.steps,
        )

        def canaries(passes: int) -> int:
            wanted = int(2 * passes / (claim.sampling_rate * claim.steps))  # half of the canaries are in
            return min(max(wanted, LEAST_CANARIES), MOST_CANARIES)

        count = canaries(budget.pick(**PASSES))
        seed = int(rng.integers(2**31))

        def audited(*, noise_share: float = 1.0, clip: float = 1.0) -> CurveAudit:
            return audit_private_steps(
                claim,
                noise_share=noise_share,
                clip=clip,
                claimed_epsilon=settings.privacy.target_epsilon,
                delta=settings.privacy.target_delta,
                seed=seed,
                canaries=count,
            )

        if view.threat_model == KNOWN_BAD:
            remedy = more_canaries(count, most=canaries(max(PASSES.values())))
            return _weakest([audited(noise_share=BROKEN), audited(clip=LOUD)], remedy=remedy)
        return Audited(result=audited())


@attack(
    AttackInfo(
        id="A9",
        name="canary_clients",
        title="how much of one client is left in sums with noise by the run's settings, by canary clients",
        paper="Andrew et al. 2023, arXiv 2302.03098",
        needs=(frozenset({"MOD"}),),
        headline="epsilon shown over the claim",
        chance=1.0,
        margin=0.0,
        measures=(Feeds(measure="audited_over_claimed", metric="epsilon shown over the claim"),),
        mapping=AUDIT,
    )
)
class CanaryClientAudit(_Audit):
    """The audit in which made-up clients at the clip norm join sums that carry the run's noise."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the number of clients of a round, for which the run plans its noise."""
        if view.settings is None or view.settings.privacy.unit != "client":
            raise NotApplicable("the run claims no client-level differential privacy")
        asked = view.settings.clients_a_round
        return Exam(question=asked)

    def guess(self, view: View, question: int, budget: Budget, rng: np.random.Generator) -> Audited:
        """Put canary clients into all rounds' sums, or none, by coins, and bound epsilon from below."""
        from attacks.audit.canary_clients import audit_sums
        from attacks.integrity.rehearsal import job_of
        from fedproxy_secure.protect.secure_sum.noise import RESOLUTION, noise_of, planned_threshold

        settings = view.settings
        assert settings is not None
        job = job_of(settings)
        claim = noise_of(job, d=settings.d, clients=question, threshold=planned_threshold(job))
        count = min(budget.pick(**CLIENTS), settings.d)
        remedy = more_canaries(count, most=max(CLIENTS.values()), room=settings.d)
        bad = view.threat_model == KNOWN_BAD
        result = audit_sums(
            replace(claim, rounds=settings.federate.rounds),
            norm=RESOLUTION,
            claimed_epsilon=settings.privacy.target_epsilon,
            delta=settings.privacy.target_delta,
            canaries=count,
            rng=rng,
            noise_share=BROKEN if bad else 1.0,
        )
        return _weakest([result], remedy=remedy) if bad else Audited(result=result)
