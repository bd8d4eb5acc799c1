"""Judge whether every configuration of a report keeps every rule of a policy.

    exit code   0 all rules kept   1 a rule was broken   3 evidence is missing or inconclusive

Each measure is judged by the unfavourable end of its interval. The verdict is INCONCLUSIVE if the interval
includes the bound or there is no interval, if the attack behind the measure was inconclusive or had too few
targets to decide the bound, and if an attack was resisted but could not have detected a leak as large as
that of its positive control (`resolution`). Epsilon is infinite without differential privacy, and also if
the noise follows from the run's seed. These do not pass: a measure that was not measured, a rule that
applies to no configuration, and a report signed by a key that neither the policy nor the caller named.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial

from fedproxy_secure.config import ANSWERS
from fedproxy_secure.crypto.primitives import key_id
from fedproxy_secure.dp.guarantees import rounded_down
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.measures.privacy import (
    AUDIT_SCOPE,
    AUDITED_OVER_CLAIMED,
    DELTA,
    EPSILON_AUDITED,
    EPSILON_CLAIMED,
    EPSILON_SPENT,
    EPSILON_SPENT_ONE_SEED,
)
from fedproxy_secure.gate.policy import Policy, Rule
from fedproxy_secure.gate.resolution import numbers_of, remedy, resisted, unresolved
from fedproxy_secure.gate.rules import TOTAL_EPSILON, Limit
from fedproxy_secure.gate.verdict import Judged, Judgement, Signed, Verdict, by_how_much, compare
from fedproxy_secure.report.report import Report, pointer
from fedproxy_secure.report.sources import UNDECIDED, Attempts
from fedproxy_secure.report.trilemma import Configuration, Measure

__all__ = ["WHOLE_REPORT", "Judged", "Judgement", "Signed", "Verdict", "compare", "judge"]

SPENT = EPSILON_SPENT.key
# without differential privacy these are infinite, not missing
INFINITE = (EPSILON_CLAIMED.key, SPENT, EPSILON_SPENT_ONE_SEED.key, DELTA.key)
SIMULATED = "the noise follows from the seed"
WHOLE_REPORT = "report"  # stands in the place of a configuration's name


def judge(report: Report, policy: Policy, *, signed: Signed | None = None) -> Judgement:
    """Return the judgement of every rule for every configuration that it applies to.

    Args:
        report: the report.
        policy: the policy.
        signed: the result of `audit verify` on the report's signature; None if it did not run.
    """
    rows: list[Judged] = []
    if policy.require_signed_audit:
        rows.append(_audit(report, policy, signed))
    judged: dict[str, Configuration] = {}
    for rule in policy.rules:
        if rule.name == TOTAL_EPSILON:
            rows.append(_total(report, rule))
            continue
        fits = [c for c in report.configurations if _applies(rule, c)]
        judged |= {c.name: c for c in fits}
        if not fits:
            settings = "; ".join(f"{k}: {' or '.join(v)}" for k, v in rule.applies_to.items())
            why = f"no configuration has {settings}" if settings else "the report has no configuration"
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


def _judge(rule: Rule, configuration: Configuration) -> Iterator[Judged]:
    if rule.limit is not None:
        yield from _limit(rule, rule.limit, configuration)
    elif rule.name == "resist":
        yield from _resist(rule, configuration)
    elif rule.name == "require_audit_within_claim":
        yield _audit_within_claim(rule, configuration)
    elif rule.name == "forbid_unsafe":
        stamps = configuration.unsafe
        yield _kept(rule, configuration, kept=not stamps, why=stamps[0] if stamps else "no unsafe setting")
    elif rule.name == "require_unit":
        unit = configuration.privacy_unit
        yield _kept(rule, configuration, kept=unit == rule.bound, why=f"the unit is {unit}")
    elif rule.name == "require_api":
        yield _api(rule, configuration)
    else:
        count = len(configuration.seeds)
        verdict = Verdict.PASSED if count >= rule.bound else Verdict.MISSING
        yield _row(rule, configuration, verdict, f"{count} seeds finished")


def _limit(rule: Rule, limit: Limit, configuration: Configuration) -> Iterator[Judged]:
    if configuration.simulated_noise and set(limit.keys) <= set(INFINITE):
        yield _row(rule, configuration, Verdict.FAILED, f"{SIMULATED}: {limit.keys[0]} is infinite")
        return
    for key in limit.keys:
        measures = [m for m in configuration.measures if m.key == key]
        if not measures:
            if key in INFINITE and configuration.privacy_unit == "none":
                if key == limit.keys[0]:  # one row is enough for all keys
                    why = f"no differential privacy: {key} is infinite"
                    yield _row(rule, configuration, Verdict.FAILED, why)
            else:
                attempts = Attempts.on_measure(configuration, key) if limit.by_attacks else None
                yield _row(rule, configuration, *_without(rule, attempts, key))
        for measure in measures:
            yield _compared(rule, limit, configuration, measure)


def _compared(rule: Rule, limit: Limit, configuration: Configuration, measure: Measure) -> Judged:
    verdict, excess = compare(measure.estimate, limit.side, rule.bound)
    why = by_how_much(measure.estimate, limit.side, verdict, excess)
    if verdict == Verdict.PASSED and limit.lower_bound:
        verdict, why = Verdict.INCONCLUSIVE, f"{why}; but a lower bound never shows that a limit is kept"
    if verdict != Verdict.FAILED and limit.by_attacks:
        weak = Attempts.on_measure(configuration, measure.key).weakness()
        if weak is not None:
            outcome, why = weak
            verdict = Verdict.MISSING if outcome is None else Verdict.INCONCLUSIVE
        elif limit.side == "max":
            verdict, why = _resolved(rule, configuration, measure.key, verdict, why)
    return Judged(
        rule=rule.text,
        configuration=configuration.name,
        verdict=verdict,
        why=f"{_named(measure, configuration)}: {why}",
        measured=measure.estimate,
        excess=excess,
        source=measure.source,
    )


def _resolved(
    rule: Rule, configuration: Configuration, key: str, verdict: Verdict, why: str
) -> tuple[Verdict, str]:
    """Return the verdict on a number of attacks, with the remedy if their targets were too few."""
    blind = unresolved(configuration, key, rule.bound)
    if blind is None and verdict != Verdict.INCONCLUSIVE:
        return verdict, why
    needed = remedy(key, rule.bound, numbers_of(configuration, key))
    return Verdict.INCONCLUSIVE, f"{blind or why}; {needed}"


def _named(measure: Measure, configuration: Configuration) -> str:
    seeds = len(configuration.seeds)
    return f"{measure.key}, {seeds} seeds together" if measure.key == SPENT and seeds > 1 else measure.key


def _without(rule: Rule, attempts: Attempts | None, what: str) -> tuple[Verdict, str]:
    """Return the verdict and the reason for a missing number.

    `attempts` is None for a number that the run itself measures.
    """
    if attempts is None:
        return Verdict.MISSING, f"{what} was not measured"
    outcome, reason = attempts.shown()
    if outcome == Outcome.NOT_APPLICABLE and rule.not_applicable:
        return Verdict.PASSED, f"not applicable: {reason}"
    verdict = Verdict.INCONCLUSIVE if outcome in UNDECIDED else Verdict.MISSING
    return verdict, f"{what} was not measured: {reason}"


def _resist(rule: Rule, configuration: Configuration) -> Iterator[Judged]:
    for attack in rule.bound:
        for view in rule.views or (None,):
            attempts = Attempts.by_attack(configuration, attack, view)
            outcome, reason = attempts.shown()
            able, clause = resisted(attempts.findings)
            if outcome == Outcome.RESISTED and clause:
                reason = f"{reason}; {clause}"
            verdict = {
                Outcome.SUCCEEDED: Verdict.FAILED,
                Outcome.RESISTED: Verdict.PASSED if able else Verdict.INCONCLUSIVE,
                Outcome.INCONCLUSIVE: Verdict.INCONCLUSIVE,
                Outcome.ERROR: Verdict.INCONCLUSIVE,
                Outcome.NOT_APPLICABLE: Verdict.PASSED if rule.not_applicable else Verdict.MISSING,
                None: Verdict.MISSING,
            }[outcome]
            yield _row(rule, configuration, verdict, reason)


def _audit_within_claim(rule: Rule, configuration: Configuration) -> Judged:
    audited = configuration.measure(EPSILON_AUDITED.key)
    claimed = configuration.measure(EPSILON_CLAIMED.key)
    if audited is not None and claimed is not None:
        excess = audited.estimate.value - claimed.estimate.value
        if excess > 0:
            return Judged(
                rule=rule.text,
                configuration=configuration.name,
                verdict=Verdict.FAILED,
                why=f"epsilon is at least {rounded_down(audited.estimate.value)}: exceeds the claim by "
                f"{excess:.3g}",
                measured=audited.estimate,
                excess=excess,
                source=audited.source,
            )
    audits = Attempts.on_measure(configuration, AUDITED_OVER_CLAIMED.key)
    outcome, reason = audits.shown()
    if outcome == Outcome.SUCCEEDED:
        return _row(rule, configuration, Verdict.FAILED, reason)
    if outcome == Outcome.RESISTED:
        return _row(rule, configuration, Verdict.PASSED, f"{reason}; {AUDIT_SCOPE}")
    return _row(rule, configuration, *_without(rule, audits, "audited epsilon"))


def _api(rule: Rule, configuration: Configuration) -> Judged:
    answers = configuration.api_answers
    if answers is None:
        return _row(rule, configuration, Verdict.MISSING, "the report does not say what the API tells")
    allowed = ANSWERS.index(answers) <= ANSWERS.index(rule.bound)
    return _kept(rule, configuration, kept=allowed, why=f"the API is assumed to tell {answers}")


def _total(report: Report, rule: Rule) -> Judged:
    """Return the judgement of the total epsilon of all configurations on the same records."""
    row = partial(Judged, rule=rule.text, configuration=WHOLE_REPORT)
    total, trained = report.total_epsilon, [c for c in report.configurations if c.trained]
    simulated = next((c.name for c in trained if c.simulated_noise), None)
    bare = next((c.name for c in trained if c.privacy_unit == "none"), None)
    if simulated is not None:
        return row(verdict=Verdict.FAILED, why=f"{SIMULATED} in {simulated}: epsilon_total is infinite")
    if total is not None and rule.limit is not None:
        verdict, excess = compare(total, rule.limit.side, rule.bound)
        counted = f"{len(trained)} of {len(report.configurations)} configurations began to train"
        why = f"{counted}; together: {by_how_much(total, rule.limit.side, verdict, excess)}"
        source = pointer("total_epsilon")
        return row(verdict=verdict, why=why, measured=total, excess=excess, source=source)
    if bare is not None:
        why = f"no differential privacy in {bare}: epsilon_total is infinite"
        return row(verdict=Verdict.FAILED, why=why)
    return row(verdict=Verdict.MISSING, why="epsilon_total is not known")


def _audit(report: Report, policy: Policy, signed: Signed | None) -> Judged:
    verdict, why = Verdict.MISSING, "no audit log, or no signature over it"
    if signed is not None and report.audit_head is not None:
        if signed.problems:
            verdict, why = Verdict.FAILED, signed.problems[0]
        elif policy.signer is not None and signed.signer != policy.signer:
            expected = key_id(bytes.fromhex(policy.signer))[:16]  # a wrong key in its place may be private
            verdict = Verdict.FAILED
            why = f"signed by {signed.signer}, not by the expected key, whose id begins with {expected}"
        elif signed.unsettled:
            why = signed.unsettled[0]
        elif policy.signer is None:
            why = f"signed by {signed.signer}; no signer was expected: name the expected key with --key PUB"
        else:
            verdict, why = Verdict.PASSED, f"signed by {signed.signer}"
    return Judged(rule="require_signed_audit: true", configuration=WHOLE_REPORT, verdict=verdict, why=why)


def _applies(rule: Rule, configuration: Configuration) -> bool:
    """Return whether each setting that the rule names exists and matches one of the rule's patterns."""
    settings = configuration.settings
    return all(
        key in settings and any(fnmatchcase(settings[key], pattern) for pattern in patterns)
        for key, patterns in rule.applies_to.items()
    )


def _kept(rule: Rule, configuration: Configuration, *, kept: bool, why: str) -> Judged:
    return _row(rule, configuration, Verdict.PASSED if kept else Verdict.FAILED, why)


def _row(rule: Rule, configuration: Configuration, verdict: Verdict, why: str) -> Judged:
    return Judged(rule=rule.text, configuration=configuration.name, verdict=verdict, why=why)
