"""Each attack under each protection, compared with the same attack on the unprotected configuration.

Two configurations are compared if they differ only in the protection and its recipe. Seeds are paired: the
difference is taken seed by seed. Within a seed, targets are also paired if both findings are from the same
exam, that is, the same records or canaries; each finding has its exam's fingerprint. The attack's name, the
seed, the truth and the view determine an exam. Exams differ, for example, because differential privacy
draws other records, or because a server that sees only sums is asked about all of their clients. The
interval is then that of two independent samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedproxy_secure.evidence.estimate import Estimate, at_least_as_wide, mean_interval
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.roc import roc_of
from fedproxy_secure.evidence.surfaces import privacy_measures, surface_of
from fedproxy_secure.evidence.targets import difference
from fedproxy_secure.report.measured.attacks import WITHOUT_NUMBERS
from fedproxy_secure.report.sweep import Labelled, labelled
from fedproxy_secure.report.trilemma import AttackDifference, Configuration
from fedproxy_secure.runtime.files.names import seed_of

Key = tuple[str, str, str]  # id, attack, view
WITHIN_ONE = ("AUC", "share")  # units of numbers from 0 to 1
Pair = tuple[Finding, Finding]  # under the protection, without it


def side_by_side(
    configurations: Iterable[Configuration], known: Iterable[AttackDifference] = ()
) -> tuple[tuple[Configuration, ...], tuple[AttackDifference, ...]]:
    """Return the configurations as reports hold them, and every attack's differences between them.

    Args:
        configurations: the configurations, with the findings' targets if they are known.
        known: differences of an earlier report, whose targets are no longer known; they replace those that
            would be computed without targets.

    Returns:
        The configurations with ROC curves in the place of targets, and the differences in the order of
        configurations, attacks and views.
    """
    originals = tuple(configurations)
    earlier = {_identity(d): d for d in known}
    items = labelled(originals)
    bases = {item.rest: item for item in items if item.is_baseline}
    differences = [
        earlier.get(_identity(d), d)
        for item in items
        if not item.is_baseline and item.rest in bases
        for d in _differences(item, bases[item.rest])
    ]
    return tuple(_with_curves(c) for c in originals), tuple(differences)


def over_seeds(by_seed: Mapping[int, Estimate], *, metric: str) -> Estimate:
    """Return the only seed's number, or the mean over seeds, no narrower than the seeds' intervals."""
    first, *rest = by_seed.values()
    if not rest:
        return replace(first, metric=metric, seeds=tuple(by_seed))
    joined = mean_interval({s: e.value for s, e in by_seed.items()}, metric=metric, unit=first.unit)
    how = f"{joined.how}; a seed's: {first.how}"
    return at_least_as_wide(replace(joined, how=how), list(by_seed.values()))


def _identity(d: AttackDifference) -> tuple[str, ...]:
    return d.configuration, d.against, d.id, d.attack, d.view


def _with_curves(configuration: Configuration) -> Configuration:
    """Return the configuration with an ROC curve in the place of each finding's targets."""
    findings = [replace(f, targets=None, roc=roc_of(f.targets) or f.roc) for f in configuration.findings]
    return replace(configuration, findings=tuple(findings))


def _differences(item: Labelled, base: Labelled) -> list[AttackDifference]:
    """Return a configuration's differences, for every attack with a number without protection."""
    by_attack, base_by_attack = (_by_attack(i.configuration.findings) for i in (item, base))
    result = []
    for key, unprotected in base_by_attack.items():
        protected = by_attack.get(key, {})
        numbered = {seed: f for seed, f in unprotected.items() if _has_number(f)}
        if not numbered or not protected:
            continue
        pairs = {
            seed: (protected[seed], f)
            for seed, f in numbered.items()
            if seed in protected and _has_number(protected[seed])
        }
        result.append(_difference(item.name, base.name, pairs, numbered, protected))
    return result


def _by_attack(findings: Sequence[Finding]) -> dict[Key, dict[str, Finding]]:
    """Return the findings of each attack and view by the name of the seed's folder."""
    result: dict[Key, dict[str, Finding]] = {}
    for f in findings:
        result.setdefault((f.id, f.attack, f.view), {})[f.seed_folder] = f
    return result


def _has_number(finding: Finding) -> bool:
    return finding.headline is not None and finding.outcome not in WITHOUT_NUMBERS


def _difference(
    name: str,
    against: str,
    pairs: Mapping[str, Pair],
    unprotected: Mapping[str, Finding],
    protected: Mapping[str, Finding],
) -> AttackDifference:
    """Return one attack's difference; `pairs`: the findings of the seeds on which both have a number."""
    bases = [b for _, b in pairs.values()] or list(unprotected.values())
    first, example = bases[0], next(iter(protected.values()))
    base = _headline(bases)
    smallest = [d.smallest for f in bases if f.headline and (d := f.could_show(f.headline)) is not None]
    values = [s for s in smallest if s is not None]
    value = change = None
    paired, outcome, why = False, example.outcome, example.reason
    if pairs:
        findings = [f for f, _ in pairs.values()]
        example, value = findings[0], _headline(findings)
        change, paired = _change(pairs.values())
        outcome, why = _joined_outcome(findings)
    return AttackDifference(
        attack=first.attack,
        id=first.id,
        view=first.view,
        surface=surface_of(first),
        surface_here=surface_of(example),
        measure=_measure(first),
        configuration=name,
        against=against,
        chance=first.chance,
        bar=first.bar,
        base=base,
        shows=_shows(base, bases),
        could_show=max(values) if values and len(values) == len(smallest) else None,
        value=value,
        difference=change,
        paired=paired,
        outcome=outcome,
        why=why,
    )


def _joined_outcome(findings: Sequence[Finding]) -> tuple[Outcome, str]:
    """Return an attack's outcome over seeds, and the reason if it is undecided."""
    if any(f.outcome == Outcome.SUCCEEDED for f in findings):
        return Outcome.SUCCEEDED, ""
    undecided = next((f for f in findings if f.outcome != Outcome.RESISTED), None)
    return (Outcome.RESISTED, "") if undecided is None else (Outcome.INCONCLUSIVE, undecided.reason)


def _headline(findings: Sequence[Finding]) -> Estimate:
    """Return the headline over the seeds of these findings, which all have one."""
    by_seed = {_seed(f): f.headline for f in findings if f.headline is not None}
    joined = over_seeds(by_seed, metric=next(iter(by_seed.values())).metric)
    if joined.unit not in WITHIN_ONE or joined.low is None or joined.high is None:
        return joined
    if joined.nature != "sampled":  # its ends are the number itself
        return joined
    return replace(joined, low=max(0.0, joined.low), high=min(1.0, joined.high))


def _change(pairs: Iterable[Pair]) -> tuple[Estimate, bool]:
    """Return the difference over seeds, and whether targets are paired on every seed."""
    by_seed: dict[int, Estimate] = {}
    paired = True
    for finding, base in pairs:
        assert finding.headline is not None
        assert base.headline is not None
        metric = f"{base.headline.metric}, difference to no protection"
        change, same = difference(
            finding.headline, base.headline, (finding.targets, base.targets), metric=metric
        )
        by_seed[_seed(base)] = change
        paired = paired and same
    return over_seeds(by_seed, metric=next(iter(by_seed.values())).metric), paired


def _shows(base: Estimate, findings: Sequence[Finding]) -> bool:
    """Return whether the attack succeeds without protection, on every seed or in the mean over seeds.

    Student's interval over two or three seeds is so wide that it may reach below the bar although every
    seed's own interval lies above it. No negative control may be above the bar.
    """
    bar = findings[0].bar
    succeeded = all(f.outcome == Outcome.SUCCEEDED for f in findings)
    false_alarm = any(f.negative is not None and f.negative.above(bar) for f in findings)
    return (succeeded or base.above(bar)) and not false_alarm


def _measure(finding: Finding) -> str:
    """Return the key of the headline's measure of privacy; empty if there is none."""
    return next((key for key in privacy_measures(finding) if 0 in finding.measures[key]), "")


def _seed(finding: Finding) -> int:
    """Return the seed of a finding's run, from the name of its folder."""
    seed = seed_of(finding.seed_folder)
    return finding.seed if seed is None else seed
