"""What attacks measured: for each measure, the worst number of any attack from any view.

The findings name the measures that an attack feeds, by key, so that this module depends on no attack.

A measure of lower bounds, such as an audited epsilon, is the smallest bound of any seed and view: each is a
bound at 95 %, and so is the smallest of them, but not their mean or their largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from fedproxy_secure.evidence.estimate import CONFIDENCE, Estimate, at_least_as_wide, mean_interval
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.measure import MeasureKind, in_order, measure_kind
from fedproxy_secure.report.measured.seed import SeedRun
from fedproxy_secure.report.trilemma import Measure
from fedproxy_secure.runtime.files.names import FINDINGS

WITHOUT_NUMBERS = (Outcome.NOT_APPLICABLE, Outcome.ERROR)
WIDENED = "; better end for the worst of "


def measured_by_attacks(seeds: Sequence[SeedRun]) -> list[Measure]:
    """Return every measure for which findings have a number on every seed, in registry order.

    Inconclusive attacks with a number count, too: the number is a lower bound on what leaks.

    Raises `ConfigError` for a measure that no installed package has.
    """
    where = f"{seeds[0].place}/{FINDINGS}: measures"
    keys = in_order(key for s in seeds for f in s.findings for key in f.measures)
    return [
        measure for key in keys if (measure := _worst(seeds, measure_kind(key, place=where))) is not None
    ]


def counts(finding: Finding, key: str) -> bool:
    """Return whether a finding has a number of the measure `key` that counts for it."""
    return finding.outcome not in WITHOUT_NUMBERS and bool(finding.numbers(key))


def _worst(seeds: Sequence[SeedRun], kind: MeasureKind) -> Measure | None:
    """Return the worst number of each seed, joined over seeds; None if some seed has no number."""
    worst: dict[int, tuple[Estimate, Finding]] = {}
    places, most_numbers = {s.seed: s.place for s in seeds}, 0
    for s in seeds:
        pairs = [
            (estimate, finding)
            for finding in s.findings
            if counts(finding, kind.key)
            for estimate in finding.numbers(kind.key)
        ]
        if not pairs:
            return None
        worst[s.seed], most_numbers = _worst_pair(pairs, kind), max(most_numbers, len(pairs))
    # the seed whose finding is named as the source
    source_seed = min(worst, key=lambda seed: worst[seed][0].value) if kind.lower_bound else seeds[0].seed
    first, finding = worst[source_seed]
    if kind.lower_bound:
        estimate = replace(
            first,
            metric=kind.estimate_name,
            seeds=tuple(worst),
            how=first.how if len(seeds) == 1 else f"{first.how}; the smallest of {len(seeds)} seeds'",
        )
    elif len(seeds) == 1:
        estimate = replace(first, metric=kind.estimate_name, seeds=(seeds[0].seed,))
    else:
        by_seed = {seed: estimate.value for seed, (estimate, _) in worst.items()}
        joined = mean_interval(by_seed, metric=kind.estimate_name, unit=first.unit, within=kind.within)
        estimate = at_least_as_wide(joined, [estimate for estimate, _ in worst.values()])
        if estimate is not joined and most_numbers > 1:  # then it is as wide as the seeds' own intervals
            estimate = replace(estimate, how=f"{estimate.how}{WIDENED}{most_numbers}")
    ids = sorted({f.id for s in seeds for f in s.findings if kind.key in f.measures})
    extreme = "smallest" if kind.lower_bound else "worst"
    how = f"{estimate.how}; the {extreme} of {', '.join(ids)} over all views"
    source = f"{places[source_seed]}/{FINDINGS}#{finding.attack} from {finding.view}"
    return Measure.of_kind(kind, replace(estimate, how=how), source)


def _worst_pair(pairs: Sequence[tuple[Estimate, Finding]], kind: MeasureKind) -> tuple[Estimate, Finding]:
    """Return the worst number and its finding; of several lower bounds, the smallest.

    On the unfavourable side, its interval ends where the least favourable of all the intervals ends. The
    favourable side is widened by Bonferroni's correction, because the worst of many numbers is extreme
    partly by chance; each interval is taken as about normal, and `how` names the correction.
    """
    estimates = [estimate for estimate, _ in pairs]
    if kind.lower_bound:
        return min(pairs, key=lambda pair: pair[0].value)
    widened = f"{WIDENED}{len(pairs)}" if len(pairs) > 1 else ""
    if kind.better == "higher":
        worst, finding = min(pairs, key=lambda pair: pair[0].value)
        if worst.interval is not None:
            low = min(e.interval[0] for e in estimates if e.interval is not None)
            worst = replace(worst, low=low, nature=worst.nature if low == worst.low else "sampled")
        if worst.interval is not None and worst.high is not None:
            reach = _luck(len(pairs)) * (worst.high - worst.value)
            high = min(kind.within[1], worst.value + reach)
            worst = replace(worst, high=high, how=worst.how + widened)
    else:
        worst, finding = max(pairs, key=lambda pair: pair[0].value)
        if worst.interval is not None:  # another view's interval may reach further
            high = max(e.interval[1] for e in estimates if e.interval is not None)
            worst = replace(worst, high=high, nature=worst.nature if high == worst.high else "sampled")
        if worst.interval is not None and worst.low is not None:
            reach = _luck(len(pairs)) * (worst.value - worst.low)
            low = max(kind.within[0], worst.value - reach)
            worst = replace(worst, low=low, how=worst.how + widened)
    return worst, finding


def _luck(numbers: int) -> float:
    """Return the factor by which half an interval grows for the most extreme of `numbers` numbers."""
    tail, normal = (1 - CONFIDENCE) / 2, NormalDist()
    return normal.inv_cdf(1 - tail / numbers) / normal.inv_cdf(1 - tail)
