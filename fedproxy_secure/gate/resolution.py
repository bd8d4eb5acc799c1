"""Check that attacks had enough targets to decide a rule; with too few, a pass does not count.

A rate at a fixed share of false positives, such as the TPR at 1 %, is read at a threshold that needs many
negatives: with fewer than 368 of them no rate can be told from chance. Such a number may lie within a bound
by luck, so it passes only if the attack could have shown some value that the bound still allows
(`fedproxy_secure.evidence.detectable`). Every other number passes by its interval, unless the attack could
not have shown any value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from fedproxy_secure.evidence.detectable import PROBABILITY, Detectable
from fedproxy_secure.evidence.estimate import CONFIDENCE, proportion_interval
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.report.trilemma import Configuration

RATES = {"tpr_at_1pct_fpr": 0.01}  # measures that are rates -> their share of false positives
MOST_DOCUMENTS = 1_000_000
_MORE_RECORDS = "give clients more records, or set more aside (audit.holdout)"
REMEDIES = {
    "membership_auc": _MORE_RECORDS,
    "canary_exposure_bits": "plant more secrets (audit.canaries)",
}


def unresolved(configuration: Configuration, key: str, bound: float) -> str | None:
    """Return why the attacks on a measure could not have decided an upper bound; None if they could.

    Args:
        configuration: the configuration, with its findings.
        key: the measure's key.
        bound: the upper bound.

    A number whose smallest detectable value is not known counts as able to decide.
    """
    for source, could in _could_show(configuration, key):
        if could.smallest is None:
            return f"{source} could not have detected any value ({could.how})"
        if key in RATES and could.smallest > bound:
            return f"{source} could have detected only values of {could.smallest:.3g} or more ({could.how})"
    return None


def resisted(findings: Sequence[Finding]) -> tuple[bool, str]:
    """Return whether resisted attempts could have detected a leak, and a clause for the reason.

    The clause names the attempt that could not, or else gives the highest upper end of all the attempts'
    intervals; it may be empty. A finding whose smallest detectable value is not known counts as able to
    detect a leak.
    """
    ends = []
    for finding in findings:
        headline = finding.headline
        if finding.outcome != Outcome.RESISTED or headline is None:
            continue
        source, could = f"{finding.id} from {finding.view}", finding.could_show(headline)
        if could is not None and could.smallest is None:
            return False, f"but {source} could not have detected any value ({could.how})"
        control = finding.positive
        if could is not None and control is not None and (could.smallest or 0.0) > control.value:
            return False, (
                f"but {source} could have detected only values of {could.smallest:.3g} or more "
                f"({could.how}), which is above its positive control"
            )
        if headline.interval is not None:
            ends.append((headline.interval[1], source))
    if not ends:
        return True, ""
    high, source = max(ends)
    return True, f"the interval of {source} ends at {high:.3g}"


def remedy(key: str, bound: float, numbers: int = 1) -> str:
    """Return the remedy for an upper bound that could not be decided, as a phrase without a full stop.

    `numbers` is how many numbers must stay below the bound, as `numbers_of` counts them.
    """
    if key not in RATES:
        return REMEDIES.get(key, "use more seeds, or more targets for the attacks, to narrow the interval")
    needed = documents_needed(RATES[key], bound, numbers)
    if needed is None:
        return f"raise the bound: chance is {RATES[key]:g}"
    return f"this bound needs about {needed} members and as many non-members: {_MORE_RECORDS}"


@cache
def documents_needed(rate: float, bound: float, numbers: int = 1) -> int | None:
    """Return how many members, and as many non-members, attacks need to show that a bound is kept.

    With that many of each, if members and non-members look alike, the intervals of the TPR at `rate` false
    positives all end at or below the bound with probability .8, even if they are independent. The interval
    is the one that the attacks' `tpr_estimates` computes. The result is rounded up to a multiple of 50.

    Args:
        rate: the share of false positives, in (0, 1).
        bound: the largest TPR that is allowed.
        numbers: how many TPRs are judged.

    Returns None if no number up to a million is enough, as for a bound that is not above the rate.
    """
    if not bound > rate:
        return None
    low, high = 0, 50
    each = PROBABILITY ** (1 / max(1, numbers))
    while not _stays_below(high, rate, bound, each):
        low, high = high, 2 * high
        if high > MOST_DOCUMENTS:
            return None
    while high - low > 50:
        middle = (low + high) // 100 * 50
        low, high = (low, middle) if _stays_below(middle, rate, bound, each) else (middle, high)
    return high


def _stays_below(n: int, rate: float, bound: float, probability: float) -> bool:
    from scipy.stats import betabinom, binom

    # the most of n negatives that pass the laxest threshold; then how many members pass it by chance
    most = int(binom.ppf((1 + CONFIDENCE) / 2, n, rate))
    if most >= n:
        return False
    hits = int(betabinom.ppf(probability, n, most + 1, n - most))
    high = proportion_interval(hits, n, metric="TPR", seeds=(0,)).high
    return high is not None and high <= bound


def numbers_of(configuration: Configuration, key: str) -> int:
    """Return how many numbers of a measure its attacks have on a seed; the most of any seed, at least 1."""
    counts = Counter[str]()
    for finding in configuration.findings:
        if finding.outcome not in (Outcome.NOT_APPLICABLE, Outcome.ERROR):
            counts[finding.seed_folder] += len(finding.numbers(key))
    return max([1, *counts.values()])


def _could_show(configuration: Configuration, key: str) -> Iterator[tuple[str, Detectable]]:
    """Yield the detectable values of each number of a measure, with its attack and view in words."""
    for finding in configuration.findings:
        if finding.outcome in (Outcome.NOT_APPLICABLE, Outcome.ERROR):
            continue
        for estimate in finding.numbers(key):
            could = finding.could_show(estimate)
            if could is not None:
                yield f"{finding.id} from {finding.view}", could
