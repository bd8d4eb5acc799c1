"""A8 and A9: does the run's mechanism, at its own settings, keep the epsilon that it claims?

A8 (`dp_audit`) puts record canaries through the clients' own DP-SGD; A9 (`canary_clients`) puts canary
clients into sums that carry the run's noise. The headline is the epsilon that was shown, the low end of
what was measured, over the claimed one. Above 1 the claim is false. Below 1 nothing is proven: the claim is
"not falsified". With 1000 canaries no epsilon above about 4 can be shown, and a claim above it stays
inconclusive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.audit import canary_clients
from attacks.base import (
    KNOWN_BAD,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    Feeds,
    NotApplicable,
    Truth,
    replace_view,
)
from attacks.registry import attack
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.record.view import View

BROKEN = 0.125  # the positive control has this share of the claimed noise
MOST = 500.0  # a larger epsilon is reported as this one; it means no privacy either way
AUDIT = (("NIST AI RMF", "1.0", "MEASURE 2.10"), ("EU AI Act", "2024/1689", "Art. 15(5)"))


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A measured epsilon with its interval, beside the claim; `highest` is the most that could be shown."""

    epsilon: float
    low: float
    high: float
    claimed: float
    highest: float
    canaries: int
    how: str

    def estimates(self, metric: str) -> tuple[Estimate, ...]:
        """Return the headline, then epsilon itself and the highest epsilon that could be shown."""

        def made(name: str, value: float, low: float, high: float, unit: str) -> Estimate:
            return Estimate(
                metric=name,
                value=value,
                low=low,
                high=high,
                n=self.canaries,
                unit=unit,
                seeds=(0,),
                how=self.how,
            )

        ratio = self.low / self.claimed
        epsilon, low, high, most = (min(v, MOST) for v in (self.epsilon, self.low, self.high, self.highest))
        return (
            made(metric, ratio, ratio, ratio, "ratio"),
            made("audited epsilon", epsilon, low, high, "epsilon"),
            made("most that these canaries could show", most, most, most, "epsilon"),
        )


def _noise_share(view: View) -> float:
    return BROKEN if view.threat_model == KNOWN_BAD else 1.0


class _Audit(Attack):
    """The base class of attacks A8 and A9: their controls, and a score that reports the guess."""

    def score(self, guess: Audited, answer: object) -> tuple[Estimate, ...]:
        """Return the audited epsilon over the claimed one, then the audit's own numbers."""
        return guess.estimates(self.info.headline)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """The same mechanism with an eighth of its noise, which the audit must find out."""
        return replace_view(view, threat_model=KNOWN_BAD), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """None: the audit's confidence level limits false accusations, which is tested over seeds."""
        return view, exam


@attack(
    AttackInfo(
        id="A8",
        name="dp_audit",
        title="one-run audit of record-level differential privacy at the run's settings",
        paper="Steinke, Nasr & Jagielski 2023, arXiv 2305.08846",
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
    """The audit with canaries whose gradients are unit vectors, through the clients' own DP-SGD."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the number of records of the smallest client, which samples most often."""
        if view.settings is None or view.settings.privacy.unit != "record":
            raise NotApplicable("the run claims no record-level differential privacy")
        return Exam(question=min(len(s.train) for s in truth.clients.values()))

    def guess(self, view: View, question: int, budget: Budget, rng: np.random.Generator) -> Audited:
        """Train once and bound epsilon from below."""
        from attacks.audit.training_audit import audit_private_steps
        from fedproxy_secure.dp.record_noise import record_noise

        settings = view.settings
        assert settings is not None
        rounds = settings.federate.rounds
        noise = record_noise(settings.privacy, settings.local, rounds=rounds, records=question)
        canaries = budget.pick(smoke=1000, standard=2000, full=4000)
        result = audit_private_steps(
            noise_multiplier=noise.noise_multiplier * _noise_share(view),
            sampling_rate=noise.sampling_rate,
            steps=rounds * settings.local.steps,
            claimed_epsilon=settings.privacy.limit,
            delta=settings.privacy.target_delta,
            seed=int(rng.integers(2**31)),
            canaries=canaries,
            guesses=(canaries // 10, 2 * canaries // 5),
        )
        return Audited(
            epsilon=result.lower_bound,
            low=result.lower_bound,
            high=result.lower_bound,
            claimed=result.claimed_epsilon,
            highest=result.ceiling,
            canaries=canaries,
            how="one-run audit: a lower bound at 95 %",
        )


@attack(
    AttackInfo(
        id="A9",
        name="canary_clients",
        title="how much of one client is left in noisy sums, by canary clients",
        paper="Andrew et al. 2023, arXiv 2302.03098",
        needs=(frozenset({"MOD"}),),
        headline="epsilon shown over the claim",
        chance=1.0,
        margin=0.0,
        measures=(Feeds(measure="audited_over_claimed", metric="epsilon shown over the claim"),),
        mapping=AUDIT,
    )
)
class CanaryClients(_Audit):
    """The audit in which random directions at the clip norm join sums that carry the run's noise."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Return the number of clients in a round."""
        if view.settings is None or view.settings.privacy.unit != "client":
            raise NotApplicable("the run claims no client-level differential privacy")
        return Exam(question=len(view.settings.clients))

    def guess(self, view: View, question: int, budget: Budget, rng: np.random.Generator) -> Audited:
        """Put every canary in one client's place in every round; rounds add up to the final movement."""
        from fedproxy_secure.dp import discrete
        from fedproxy_secure.dp.noise import Noise
        from fedproxy_secure.federate.job import FederationJob
        from fedproxy_secure.protect.secure_sum.noise import RESOLUTION, noise_of, planned_threshold

        settings = view.settings
        assert settings is not None
        from fedproxy_secure.config import AuditConfig, ClientConfig

        job = FederationJob(
            seed=settings.seed,
            clients=tuple(ClientConfig(name=n, task="classification") for n in settings.clients),
            data_root=None,
            max_tokens=settings.max_tokens,
            adapter=settings.adapter,
            local=settings.local,
            fusion=settings.fusion,
            federate=settings.federate,
            protect=settings.protect,
            privacy=settings.privacy,
            audit=AuditConfig(),
        )
        d, clients = settings.d, question
        noisy = noise_of(job, d=d, clients=clients, threshold=planned_threshold(job))
        variance = noisy.variance * _noise_share(view) ** 2
        count = budget.pick(smoke=32, standard=64, full=128)
        directions = canary_clients.canaries(count, d, rng)
        # canaries are nearly orthogonal, so all can take part at once, as in Andrew et al.
        movement = settings.federate.rounds * RESOLUTION * directions.sum(axis=0, dtype=np.float64)
        for _ in range(settings.federate.rounds):
            budget.check()
            for _ in range(noisy.summands):
                key = rng.bytes(32)
                movement += discrete.draw(noisy.mechanism, variance / noisy.summands, Noise(key), d)
        result = canary_clients.estimate(directions, movement, delta=settings.privacy.target_delta)
        return Audited(
            epsilon=result.epsilon,
            low=result.low,
            high=result.high,
            claimed=settings.privacy.limit,
            highest=result.high,
            canaries=count,
            how="canary clients' cosines taken as normal: an estimate",
        )
