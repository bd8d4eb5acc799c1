"""The joint outcome of attacks on one configuration, on which a gate may rely.

Resistance counts only if there is a resisted attempt on every seed. An attack that was inconclusive or
raised an error makes the evidence inconclusive, unless an attack succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.files.names import seed_folder

UNDECIDED = (Outcome.ERROR, Outcome.INCONCLUSIVE)
SHOWN = (Outcome.SUCCEEDED, Outcome.RESISTED)


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The findings of one configuration that are evidence about one question.

    Args:
        who: the attacks, in words.
        findings: their findings.
        seeds: the seeds of the configuration that finished.
    """

    who: str
    findings: tuple[Finding, ...]
    seeds: tuple[int, ...]

    @classmethod
    def by_attack(cls, configuration: Configuration, name: str, view: str | None = None) -> Attempts:
        """Return all attempts of an attack, by its name or id, from one view or from all views."""
        findings = [
            f
            for f in configuration.findings
            if name in (f.id, f.attack) and (view is None or f.view == view)
        ]
        who = name if view is None else f"{name} from {view}"
        return cls(who=who, findings=tuple(findings), seeds=configuration.seeds)

    @classmethod
    def on_measure(cls, configuration: Configuration, key: str) -> Attempts:
        """Return all attempts of the attacks that feed a measure, by its key."""
        findings = tuple(f for f in configuration.findings if key in f.measures)
        ids = sorted({f.id for f in findings})
        who = ", ".join(ids) or f"attacks on {key}"
        return cls(who=who, findings=findings, seeds=configuration.seeds)

    def shown(self) -> tuple[Outcome | None, str]:
        """Return the outcome of all attempts together, and the sentence that decides it.

        One success makes it a success; otherwise one undecided attempt makes it undecided. RESISTED: on
        every seed some attempt was resisted. NOT_APPLICABLE: on every seed there was an attempt that had
        nothing to attack. None: otherwise.
        """
        for outcome in (Outcome.SUCCEEDED, *UNDECIDED):
            if first := self._first(outcome):
                return outcome, sentence(first)
        for outcome in (Outcome.RESISTED, Outcome.NOT_APPLICABLE):
            first = self._first(outcome)
            if first and self._on_every_seed((outcome,)):
                return outcome, sentence(first)
        return None, self._untried

    def weakness(self) -> tuple[Outcome | None, str] | None:
        """Return why a number from these attempts proves nothing; None if it is reliable.

        The outcome is that of an undecided attempt; it is None if some seed has no decided attempt.
        """
        for outcome in UNDECIDED:
            if first := self._first(outcome):
                return outcome, sentence(first)
        return None if self._on_every_seed(SHOWN) else (None, self._untried)

    @property
    def _untried(self) -> str:
        return f"{self.who}: {'not shown on every seed' if self.findings else 'not tried'}"

    def _first(self, outcome: Outcome) -> Finding | None:
        return next((f for f in self.findings if f.outcome == outcome), None)

    def _on_every_seed(self, outcomes: Sequence[Outcome]) -> bool:
        having = {f.seed_folder for f in self.findings if f.outcome in outcomes}
        return bool(self.seeds) and having >= {seed_folder(s) for s in self.seeds}


def sentence(finding: Finding) -> str:
    """Return a finding as one sentence."""
    return f"{finding.id} {finding.attack} from {finding.view}: {finding.outcome}: {finding.reason}"
