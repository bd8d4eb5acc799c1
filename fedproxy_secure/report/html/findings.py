"""The page's findings by attack, with the gravest outcome of each configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.evidence.surfaces import in_words
from fedproxy_secure.report.page_words import attacks_in_order
from fedproxy_secure.report.protections.rows import smallest
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import Labelled, labelled

GRAVEST = (
    Outcome.SUCCEEDED,
    Outcome.ERROR,
    Outcome.INCONCLUSIVE,
    Outcome.RESISTED,
    Outcome.NOT_APPLICABLE,
)


@dataclass(frozen=True, kw_only=True)
class ShownNumber:
    """One number of a finding, and the smallest value that it could have detected.

    Args:
        number: the number.
        could_show: the smallest true value that would have been detected; None if it is not known.
        never: whether it is known that no value would have been detected.
    """

    number: Number
    could_show: Number | None
    never: bool


@dataclass(frozen=True, kw_only=True)
class FindingRow:
    """A finding of a configuration, and its numbers with their source.

    Args:
        item: the configuration.
        finding: the finding.
        headline: the number that decides the outcome.
        others: its other numbers.
        positive, negative: the controls' headlines.
        seconds: how long the attack took.
        surfaces: the surfaces that the view had, in words.
    """

    item: Labelled
    finding: Finding
    headline: ShownNumber | None
    others: tuple[ShownNumber, ...]
    positive: Number | None
    negative: Number | None
    seconds: Number
    surfaces: str


@dataclass(frozen=True, kw_only=True)
class AttackGroup:
    """All findings of one attack.

    Args:
        id, name, title: the attack.
        mapping: the items of frameworks that it maps to.
        rows: its findings, the gravest first.
        outcomes: the gravest outcome of each configuration, None for one without a finding.
        counts: how many findings have each outcome.
    """

    id: str
    name: str
    title: str
    mapping: tuple[str, ...]
    rows: tuple[FindingRow, ...]
    outcomes: tuple[Outcome | None, ...]
    counts: tuple[tuple[Outcome, int], ...]


def attack_groups(report: Report) -> list[AttackGroup]:
    """Return the findings grouped by attack."""
    items = labelled(report.configurations)
    every = [(i, f) for i in items for f in i.configuration.findings]
    groups = []
    for id, name in attacks_in_order([f for _, f in every]):
        pairs = [(i, f) for i, f in every if (f.id, f.attack) == (id, name)]
        ordered = sorted(pairs, key=lambda p: GRAVEST.index(p[1].outcome))
        counts = [(o, sum(f.outcome == o for _, f in pairs)) for o in GRAVEST]
        groups.append(
            AttackGroup(
                id=id,
                name=name,
                title=pairs[0][1].title,
                mapping=tuple(" ".join(triple) for triple in pairs[0][1].mapping),
                rows=tuple(_finding_row(i, f) for i, f in ordered),
                outcomes=tuple(_gravest([f for i, f in pairs if i is item]) for item in items),
                counts=tuple((o, n) for o, n in counts if n),
            )
        )
    return groups


def _gravest(findings: Sequence[Finding]) -> Outcome | None:
    return min((f.outcome for f in findings), key=GRAVEST.index, default=None)


def _finding_row(item: Labelled, finding: Finding) -> FindingRow:
    source = item.configuration.source_of(finding)

    def number(estimate: Estimate | None) -> Number | None:
        return None if estimate is None else Number(estimate, source)

    def shown_number(estimate: Estimate) -> ShownNumber:
        detectable, could_show = finding.could_show(estimate), None
        if detectable is not None and detectable.smallest is not None:
            could_show = smallest(estimate, detectable.smallest, how=detectable.how)
        never = detectable is not None and detectable.smallest is None
        return ShownNumber(number=Number(estimate, source), could_show=number(could_show), never=never)

    duration = counted(finding.seconds, metric="seconds of the attack", unit="s", seeds=(finding.seed,))
    return FindingRow(
        item=item,
        finding=finding,
        headline=None if finding.headline is None else shown_number(finding.headline),
        others=tuple(map(shown_number, finding.estimates[1:])),
        positive=number(finding.positive),
        negative=number(finding.negative),
        seconds=Number(duration, source),
        surfaces=in_words(finding.surfaces),
    )
