"""A10: a server that deviates, against the masking protocol as installed and against known-bad clients.

Key swap, split views of who survived (a client in both sets), a lowered threshold, another adapter for one
client (suppression by model inconsistency), altered, repeated and reordered messages. Against this protocol
each must end in an abort or in the exact sum of the others; against clients with one check taken out the
same attack must read a client's vector, or it proves nothing.

It works on the protocol itself, not on a recorded run: who is in a recording cannot deviate any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.base import (
    KNOWN_BAD,
    NOBODY,
    Attack,
    AttackInfo,
    Budget,
    Exam,
    NotApplicable,
    Truth,
    attack,
    replace_view,
)
from attacks.integrity.passive_sums import SECURE_AGGREGATION
from attacks.statistics import share
from fedproxy_secure.record.view import View
from fedproxy_secure.report.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt and whether it read a client's vector or falsified the sum."""

    name: str
    succeeded: bool
    found: str


@attack(
    AttackInfo(
        id="A10",
        name="secagg_active",
        title="a client's vector from a masking protocol whose server cheats",
        paper="Pasquini et al. 2022, arXiv 2111.07380; Bonawitz et al. 2017",
        needs=(frozenset({"ACT"}),),
        headline="share of attempts that succeed",
        chance=0.0,
        margin=0.01,
        mapping=SECURE_AGGREGATION,
    )
)
class SecaggActive(Attack):
    """Runs the protocol's must-fail attempts."""

    def exam(self, truth: Truth, view: View, rng: np.random.Generator) -> Exam:
        """Which clients are attacked: the installed ones, or known-bad ones in the positive control."""
        return Exam(question=KNOWN_BAD if view.threat_model == KNOWN_BAD else "installed")

    def guess(
        self, view: View, question: str, budget: Budget, rng: np.random.Generator
    ) -> tuple[Attempt, ...]:
        """Every attempt against the clients in question."""
        from fedproxy_secure.secagg.selftest import findings

        if view.settings is None:
            raise NotApplicable("this view has no protocol to deviate from")
        if view.settings.protect.scheme == "unsafe_plaintext":
            raise NotApplicable("unsafe_plaintext: the server has every update; nothing to cheat for")
        if view.settings.protect.scheme == "ckks":
            raise NotApplicable("ckks: any client with the server opens every update, by design")
        made = []
        for finding in findings():
            budget.check()
            bad_client = KNOWN_BAD in finding.attempt
            if finding.adversary == "nobody" or bad_client != (question == KNOWN_BAD):
                continue
            succeeded = finding.ok if bad_client else not finding.ok
            name = f"{finding.adversary}: {finding.attempt}"
            made.append(Attempt(name=name, succeeded=succeeded, found=finding.found))
        if view.threat_model == NOBODY:
            made = [Attempt(name=a.name, succeeded=False, found="not tried") for a in made]
        return tuple(made)

    def score(self, guess: tuple[Attempt, ...], answer: object) -> tuple[Estimate, ...]:
        """Of all attempts."""
        hits = sum(a.succeeded for a in guess)
        return (share(hits, len(guess), metric="share of attempts that succeed", seed=0),)

    def positive(self, view: View, truth: Truth) -> tuple[View, Truth] | None:
        """The same attempts against clients with one check taken out."""
        return replace_view(view, threat_model=KNOWN_BAD), truth

    def negative(self, view: View, exam: Exam, rng: np.random.Generator) -> tuple[View, Exam]:
        """Nobody cheats."""
        return replace_view(view, threat_model=NOBODY), exam
