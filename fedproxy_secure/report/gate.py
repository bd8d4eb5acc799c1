"""A gate: does every configuration of a report keep every rule of a policy?

    exit code   0 all rules kept   1 a rule was broken   3 evidence is missing or inconclusive

Each measure is judged by the end of its interval that speaks against it. Where the interval reaches over
the bound, or there is none, nothing is shown either way: that is inconclusive, and so is a measure whose
attack was. What was not measured does not pass, nor does a rule that no configuration answers to, nor a
signature by somebody whom neither policy nor caller named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.evidence import UNDECIDED, shown, weakness
from fedproxy_secure.report.finding import Outcome
from fedproxy_secure.report.policy import LIMITS, WHOLE, Policy, Rule, Side
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.spending import SPENT
from fedproxy_secure.report.trilemma import Configuration, Measure

CLAIMS = ("epsilon_claimed", "delta")  # without differential privacy they are infinite, not missing
AUDITS = frozenset({"A8", "A9"})
WHOLE_REPORT = "report"  # in the place of a configuration


class Verdict(StrEnum):
    """How one rule ended for one configuration, the worst first."""

    FAILED = "FAILED"
    MISSING = "MISSING"
    INCONCLUSIVE = "INCONCLUSIVE"
    PASSED = "PASSED"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One line of the gate's table.

    `excess`: how far the interval's unfavourable end lies beyond the bound, in the measure's unit; negative
    where there is room left, None where nothing was compared. `source`: where the number can be looked up.
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
    """What `audit verify` found of the report's folder; `signer`: the public key that signed, hex."""

    problems: tuple[str, ...]
    unsettled: tuple[str, ...]
    signer: str | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All lines, in the policy's order."""

    policy: Policy
    rows: tuple[Judged, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all lines."""
        return _worst(row.verdict for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a rule was broken, 3 evidence is missing or inconclusive."""
        return {Verdict.PASSED: 0, Verdict.FAILED: 1}.get(self.verdict, 3)


def judge(report: Report, policy: Policy, *, signed: Signed | None = None) -> Judgement:
    """Every rule for every configuration that it applies to.

    Args:
        signed: what is known of the report's signature; None: nothing.
    """
    rows: list[Judged] = []
    if policy.require_signed_audit:
        rows.append(_audit(report, policy, signed))
    judged: dict[str, Configuration] = {}
    for rule in policy.rules:
        if rule.name in WHOLE:
            rows.append(_total(report, rule))
            continue
        fits = [c for c in report.configurations if _applies(rule, c)]
        judged |= {c.name: c for c in fits}
        if not fits:
            wanted = "; ".join(f"{k}: {' or '.join(v)}" for k, v in rule.applies_to.items())
            why = f"no configuration has {wanted}" if wanted else "the report has no configuration"
            rows.append(
                Judged(rule=rule.text, configuration=WHOLE_REPORT, verdict=Verdict.MISSING, why=why)
            )
        for configuration in fits:
            rows += _judge(rule, configuration)
    if not policy.allow_failed_seeds:
        rows += [
            Judged(rule="every seed finishes", configuration=c.name, verdict=Verdict.MISSING, why=line)
            for c in judged.values()
            for line in c.failed
        ]
    return Judgement(policy=policy, rows=tuple(rows))


def compare(estimate: Estimate, side: Side, bound: float) -> tuple[Verdict, float | None]:
    """An estimate against a bound: verdict, and the unfavourable end's excess over it.

    >>> from fedproxy_secure.report.estimate import counted
    >>> compare(counted(3, metric="m", unit="clients", seeds=[0]), "min", 2)
    (<Verdict.PASSED: 'PASSED'>, -1)
    """
    if estimate.low is None or estimate.high is None:
        return Verdict.INCONCLUSIVE, None
    worse, better = (
        (estimate.high - bound, estimate.low - bound)
        if side == "max"
        else (bound - estimate.low, bound - estimate.high)
    )
    if worse <= 0:
        return Verdict.PASSED, worse
    return (Verdict.FAILED if better > 0 else Verdict.INCONCLUSIVE), worse


def _judge(rule: Rule, configuration: Configuration) -> Iterator[Judged]:
    if rule.name in LIMITS:
        yield from _limit(rule, configuration)
    elif rule.name == "resist":
        yield from _resist(rule, configuration)
    elif rule.name == "require_audit_within_claim":
        yield _audit_within_claim(rule, configuration)
    elif rule.name == "forbid_unsafe":
        stamps = configuration.unsafe
        yield _said(rule, configuration, not stamps, stamps[0] if stamps else "no stamp")
    elif rule.name == "require_unit":
        unit = configuration.privacy_unit
        yield _said(rule, configuration, unit == rule.bound, f"the unit is {unit}")
    else:
        count = len(configuration.seeds)
        verdict = Verdict.PASSED if count >= rule.bound else Verdict.MISSING
        yield _row(rule, configuration, verdict, f"{count} seeds finished")


def _limit(rule: Rule, configuration: Configuration) -> Iterator[Judged]:
    limit = LIMITS[rule.name]
    for key in limit.keys:
        measures = [m for m in configuration.measures if m.key == key]
        if not measures:
            if key in CLAIMS and configuration.privacy_unit == "none":
                yield _row(
                    rule, configuration, Verdict.FAILED, f"no differential privacy: {key} is infinite"
                )
            elif not (key == SPENT and configuration.privacy_unit == "none"):
                yield _row(rule, configuration, *_without(rule, configuration, limit.attacks, key))
        for measure in measures:
            yield _compared(rule, configuration, measure)


def _compared(rule: Rule, configuration: Configuration, measure: Measure) -> Judged:
    limit = LIMITS[rule.name]
    verdict, excess = compare(measure.estimate, limit.side, rule.bound)
    why = _by_how_much(rule, verdict, excess)
    if verdict != Verdict.FAILED and limit.attacks:
        weak = weakness(configuration, limit.attacks)
        if weak is not None:
            outcome, why = weak
            verdict = Verdict.MISSING if outcome is None else Verdict.INCONCLUSIVE
    return Judged(
        rule=rule.text,
        configuration=configuration.name,
        verdict=verdict,
        why=f"{_named(measure, configuration)}: {why}",
        measured=measure.estimate,
        excess=excess,
        source=measure.source,
    )


def _by_how_much(rule: Rule, verdict: Verdict, excess: float | None) -> str:
    if excess is None:
        return "has no interval: one seed, or too few"
    if excess > 0:
        crosses = ", but not all of its interval" if verdict == Verdict.INCONCLUSIVE else ""
        return f"{'over' if LIMITS[rule.name].side == 'max' else 'short'} by {excess:.3g}{crosses}"
    return f"{abs(excess):.3g} to spare"


def _named(measure: Measure, configuration: Configuration) -> str:
    seeds = len(configuration.seeds)
    return f"{measure.key}, {seeds} seeds together" if measure.key == SPENT and seeds > 1 else measure.key


def _without(
    rule: Rule, configuration: Configuration, attacks: frozenset[str], what: str
) -> tuple[Verdict, str]:
    """Verdict and reason where there is no number."""
    evidence, reason = shown(configuration, attacks)
    if evidence == Outcome.NOT_APPLICABLE and rule.not_applicable:
        return Verdict.PASSED, f"not applicable: {reason}"
    undecided = evidence in UNDECIDED
    said = f": {reason}" if attacks else ""
    return (Verdict.INCONCLUSIVE if undecided else Verdict.MISSING), f"{what} was not measured{said}"


def _resist(rule: Rule, configuration: Configuration) -> Iterator[Judged]:
    for attack in rule.bound:
        for view in rule.views or (None,):
            evidence, reason = shown(configuration, {attack}, view)
            verdict = {
                Outcome.SUCCEEDED: Verdict.FAILED,
                Outcome.RESISTED: Verdict.PASSED,
                Outcome.INCONCLUSIVE: Verdict.INCONCLUSIVE,
                Outcome.ERROR: Verdict.INCONCLUSIVE,
                Outcome.NOT_APPLICABLE: Verdict.PASSED if rule.not_applicable else Verdict.MISSING,
                None: Verdict.MISSING,
            }[evidence]
            yield _row(rule, configuration, verdict, reason)


def _audit_within_claim(rule: Rule, configuration: Configuration) -> Judged:
    audited, claimed = configuration.measure("epsilon_audited"), configuration.measure("epsilon_claimed")
    if audited is not None and claimed is not None:
        excess = audited.estimate.value - claimed.estimate.value
        if excess > 0:
            return Judged(
                rule=rule.text,
                configuration=configuration.name,
                verdict=Verdict.FAILED,
                why=f"epsilon is at least {audited.estimate.value:.3g}; over the claim by {excess:.3g}",
                measured=audited.estimate,
                excess=excess,
                source=audited.source,
            )
    evidence, reason = shown(configuration, AUDITS)
    if evidence == Outcome.SUCCEEDED:
        return _row(rule, configuration, Verdict.FAILED, reason)
    if evidence == Outcome.RESISTED:
        return _row(rule, configuration, Verdict.PASSED, reason)
    return _row(rule, configuration, *_without(rule, configuration, AUDITS, "audited epsilon"))


def _total(report: Report, rule: Rule) -> Judged:
    """Epsilon of all configurations together: their records' owner spent all of it."""
    total = report.total_epsilon
    if total is not None:
        verdict, excess = compare(total, LIMITS[rule.name].side, rule.bound)
        how_much = _by_how_much(rule, verdict, excess)
        return Judged(
            rule=rule.text,
            configuration=WHOLE_REPORT,
            verdict=verdict,
            why=f"{len(report.configurations)} configurations together: {how_much}",
            measured=total,
            excess=excess,
            source="report.json#total_epsilon",
        )
    bare = next((c.name for c in report.configurations if c.privacy_unit == "none"), None)
    if bare is not None:
        verdict, why = Verdict.FAILED, f"no differential privacy in {bare}: epsilon_total is infinite"
    else:
        verdict, why = Verdict.MISSING, "epsilon_total is not known"
    return Judged(rule=rule.text, configuration=WHOLE_REPORT, verdict=verdict, why=why)


def _audit(report: Report, policy: Policy, signed: Signed | None) -> Judged:
    verdict, why = Verdict.MISSING, "no audit log, or no signature over it"
    if signed is not None and report.audit_head is not None:
        if signed.problems:
            verdict, why = Verdict.FAILED, signed.problems[0]
        elif policy.signer is not None and signed.signer != policy.signer:
            verdict, why = Verdict.FAILED, f"is signed by {signed.signer}, not by {policy.signer}"
        elif signed.unsettled:
            why = signed.unsettled[0]
        elif policy.signer is None:
            why = f"is signed by {signed.signer}, whom nobody pinned; name the signer with --key PUB"
        else:
            verdict, why = Verdict.PASSED, f"signed by {signed.signer}"
    return Judged(rule="require_signed_audit: true", configuration=WHOLE_REPORT, verdict=verdict, why=why)


def _applies(rule: Rule, configuration: Configuration) -> bool:
    return all(configuration.settings.get(key) in values for key, values in rule.applies_to.items())


def _said(rule: Rule, configuration: Configuration, kept: bool, why: str) -> Judged:
    return _row(rule, configuration, Verdict.PASSED if kept else Verdict.FAILED, why)


def _row(rule: Rule, configuration: Configuration, verdict: Verdict, why: str) -> Judged:
    return Judged(rule=rule.text, configuration=configuration.name, verdict=verdict, why=why)


def _worst(verdicts: Iterator[Verdict] | Sequence[Verdict]) -> Verdict:
    found = set(verdicts)
    return next((v for v in Verdict if v in found), Verdict.MISSING)
