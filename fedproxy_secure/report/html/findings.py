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
    """One number of a finding, and what it could have shown.

    Args:
        number: the number.
        could_show: the smallest true value that would have been seen; None where it is not known.
        never: whether it is known that no value would have been seen.
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
        headline: the number that decides.
        others: its other numbers.
        positive, negative: the controls' headlines.
        seconds: what it took.
        surfaces: what the view had, in words.
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
        mapping: what it maps to in frameworks.
        rows: its findings, the gravest first.
        outcomes: the gravest outcome of each configuration; None without a finding.
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
        mine = [(i, f) for i, f in every if (f.id, f.attack) == (id, name)]
        ordered = sorted(mine, key=lambda p: GRAVEST.index(p[1].outcome))
        counts = [(o, sum(f.outcome == o for _, f in mine)) for o in GRAVEST]
        groups.append(
            AttackGroup(
                id=id,
                name=name,
                title=mine[0][1].title,
                mapping=tuple(" ".join(triple) for triple in mine[0][1].mapping),
                rows=tuple(_finding_row(i, f) for i, f in ordered),
                outcomes=tuple(_gravest([f for i, f in mine if i is item]) for item in items),
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

    def told(estimate: Estimate) -> ShownNumber:
        seen, made = finding.could_show(estimate), None
        if seen is not None and seen.smallest is not None:
            made = smallest(estimate, seen.smallest, how=seen.how)
        never = seen is not None and seen.smallest is None
        return ShownNumber(number=Number(estimate, source), could_show=number(made), never=never)

    took = counted(finding.seconds, metric="seconds of the attack", unit="s", seeds=(finding.seed,))
    return FindingRow(
        item=item,
        finding=finding,
        headline=None if finding.headline is None else told(finding.headline),
        others=tuple(map(told, finding.estimates[1:])),
        positive=number(finding.positive),
        negative=number(finding.negative),
        seconds=Number(took, source),
        surfaces=in_words(finding.surfaces),
    )
