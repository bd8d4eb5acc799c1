"""The verdict on a rule for a configuration, and the comparison of a number with a bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.gate.policy import Policy
from fedproxy_secure.gate.rules import Side


class Verdict(StrEnum):
    """The verdict on one rule for one configuration, the worst first."""

    FAILED = "FAILED"
    MISSING = "MISSING"
    INCONCLUSIVE = "INCONCLUSIVE"
    PASSED = "PASSED"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One line of the gate's table.

    Args:
        rule: the rule as written in the policy.
        configuration: name of the configuration.
        verdict: the verdict.
        why: one sentence that says why.
        measured: the number that was compared; None if there was none.
        excess: how far the interval's unfavourable end lies beyond the bound, in the measure's unit. It is
            negative within the bound, None if nothing was compared.
        source: where the number can be looked up.
    """

    rule: str
    configuration: str
    verdict: Verdict
    why: str
    measured: Estimate | None = None
    excess: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Signed:
    """The result of `audit verify` on the report's folder.

    Args:
        problems: what is wrong, in sentences.
        unsettled: what could not be decided, in sentences.
        signer: the public key that signed, hex; None without a signature.
    """

    problems: tuple[str, ...]
    unsettled: tuple[str, ...]
    signer: str | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All lines of the gate's table, in the policy's order."""

    policy: Policy
    rows: tuple[Judged, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all lines."""
        return worst_of(row.verdict for row in self.rows)

    @property
    def exit_code(self) -> int:
        """The exit code: 0 passed, 1 a rule was broken, 3 evidence is missing or inconclusive."""
        return {Verdict.PASSED: 0, Verdict.FAILED: 1}.get(self.verdict, 3)


def compare(estimate: Estimate, side: Side, bound: float) -> tuple[Verdict, float | None]:
    """Return the verdict on an estimate and a bound, and how far the unfavourable end exceeds the bound.

    >>> from fedproxy_secure.evidence.estimate import counted
    >>> compare(counted(3, metric="m", unit="clients", seeds=[0]), "min", 2)
    (<Verdict.PASSED: 'PASSED'>, -1)
    """
    if estimate.interval is None:
        return Verdict.INCONCLUSIVE, None
    low, high = estimate.interval
    worst_excess, least_excess = (
        (high - bound, low - bound) if side == "max" else (bound - low, bound - high)
    )
    if worst_excess <= 0:
        return Verdict.PASSED, worst_excess
    return (Verdict.FAILED if least_excess > 0 else Verdict.INCONCLUSIVE), worst_excess


def by_how_much(estimate: Estimate, side: Side, verdict: Verdict, excess: float | None) -> str:
    """Return in words how far an estimate is from a bound, with the verdict and the excess of `compare`."""
    if excess is None:
        return "has no interval: there is only one seed, or too little data"
    if excess <= 0:
        return f"within the bound by {abs(excess):.3g}"
    beyond = f"{'exceeds' if side == 'max' else 'falls short of'} the bound by {excess:.3g}"
    if verdict == Verdict.INCONCLUSIVE:
        return f"the interval includes the bound; its unfavourable end {beyond}"
    if estimate.nature != "sampled":
        return beyond
    return f"the whole interval lies beyond the bound; its unfavourable end {beyond}"


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of some verdicts; without any, evidence is missing."""
    present = set(verdicts)
    return next((v for v in Verdict if v in present), Verdict.MISSING)
