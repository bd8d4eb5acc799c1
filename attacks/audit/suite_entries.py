"""A8 and A9 as attacks of the suite: does the run's own mechanism, at its own settings, keep its epsilon?

The headline is the epsilon shown, the low end of what was measured, over the claimed one: above 1 the claim
is false. Below 1 nothing is proven: the claim is "not falsified". With 1000 canaries no epsilon above about
4 can be shown, and a claim above it stays inconclusive.
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
    NotApplicable,
    Truth,
    attack,
    replace_view,
)
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate

BROKEN = 0.125  # of the claimed noise, in the positive control
MOST = 500.0  # an epsilon above this is as good as endless
AUDIT = (("NIST AI RMF", "1.0", "MEASURE 2.10"), ("EU AI Act", "2024/1689", "Art. 15(5)"))


@dataclass(frozen=True, kw_only=True)
class Audited:
    """Epsilon as measured, with its interval, beside the claim; `highest`: the most that could be shown."""

    epsilon: float
    low: float
    high: float
    claimed: float
    highest: float
    canaries: int
    how: str

    def estimates(self, metric: str) -> tuple[Estimate, ...]:
        """The headline, then epsilon itself and the most that could be shown."""

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

        shown = self.low / self.claimed
        found, low, high, most = (min(v, MOST) for v in (self.epsilon, self.low, self.high, self.highest))
        return (
            made(metric, shown, shown, shown, "ratio"),
            made("audited epsilon", found, low, high, "epsilon"),
            made("most that these canaries could show", most, most, most, "epsilon"),
        )


def _noise_share(view: View) -> float:
    return BROKEN if view.threat_model == KNOWN_BAD else 1.0


class _Audit(Attack):
    """What both have in common: controls, and a score that only states."""

    def score(self, guess: Audited, answer: object) -> tuple[Estimate, ...]:
        """The audited epsilon over the claimed one first."""
        return guess.estimates(self.info.headline)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """The same mechanism with an eighth of its noise: the audit must find it out."""
        return replace_view(view, threat_model=KNOWN_BAD), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """None: that a right mechanism is not accused is the audit's own confidence, tested over seeds."""
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
        mapping=AUDIT,
    )
)
class DpAudit(_Audit):
    """Canaries whose gradients are unit vectors, through the clients' own DP-SGD."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """The smallest client's number of records: it samples most often."""
        if view.settings is None or view.settings.privacy.unit != "record":
            raise NotApplicable("the run claims no record-level differential privacy")
        return Exam(question=min(len(s.train) for s in truth.clients.values()))

    def guess(self, view: View, question: int, budget: Budget, rng: np.random.Generator) -> Audited:
        """Train once, bound epsilon from below."""
        from attacks.audit.training_audit import audit_private_steps
        from fedproxy_secure.federate.client import record_noise

        settings = view.settings
        assert settings is not None
        rounds = settings.federate.rounds
        noise = record_noise(settings.privacy, settings.local, rounds=rounds, records=question)
        canaries = budget.pick(smoke=1000, standard=2000, full=4000)
        found = audit_private_steps(
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
            epsilon=found.lower_bound,
            low=found.lower_bound,
            high=found.lower_bound,
            claimed=found.claimed_epsilon,
            highest=found.ceiling,
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
        mapping=AUDIT,
    )
)
class CanaryClients(_Audit):
    """Random directions at the clip norm join sums that carry the run's noise."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """How many clients a round has."""
        if view.settings is None or view.settings.privacy.unit != "client":
            raise NotApplicable("the run claims no client-level differential privacy")
        return Exam(question=len(view.settings.clients))

    def guess(self, view: View, question: int, budget: Budget, rng: np.random.Generator) -> Audited:
        """Every canary is in one client's place in every round; the final movement is the sum of rounds."""
        from fedproxy_secure.dp import discrete
        from fedproxy_secure.dp.noise import Noise
        from fedproxy_secure.federate.job import FederationJob
        from fedproxy_secure.flower.client_privacy import RESOLUTION, noise_of, planned_threshold

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
        # canaries are nearly orthogonal, so all can be there at once, as Andrew et al. have it
        movement = settings.federate.rounds * RESOLUTION * directions.sum(axis=0, dtype=np.float64)
        for _ in range(settings.federate.rounds):
            budget.check()
            for _ in range(noisy.summands):
                key = rng.bytes(32)
                movement += discrete.draw(noisy.mechanism, variance / noisy.summands, Noise(key), d)
        found = canary_clients.estimate(directions, movement, delta=settings.privacy.target_delta)
        return Audited(
            epsilon=found.epsilon,
            low=found.low,
            high=found.high,
            claimed=settings.privacy.limit,
            highest=found.high,
            canaries=count,
            how="canary clients' cosines taken as normal: an estimate",
        )
