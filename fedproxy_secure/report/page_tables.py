"""The tables of the page: measures by axis, findings by attack, who saw what, what is guaranteed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedproxy_secure.report.estimate import Estimate, counted
from fedproxy_secure.report.finding import Finding, Outcome
from fedproxy_secure.report.measure_words import words_of
from fedproxy_secure.report.number import Number
from fedproxy_secure.report.page_words import attacks_in_order
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import AXIS_NAMES, Labelled, keys_of, labelled, shown
from fedproxy_secure.report.trilemma import Axis, Configuration, LedgerRow

# Of an axis that has many measures, those that people compare first.
FIRST: dict[Axis, tuple[str, ...]] = {
    "performance": ("accuracy_fused", "gap_closed"),
    "privacy": (
        "epsilon_claimed",
        "epsilon_spent",
        "token_auc",
        "exact_sequence_recall",
        "tpr_at_1pct_fpr",
    ),
    "ip": ("verbatim_share", "owners_edge", "extraction_R"),
}
EDGE = "owner's edge"
_POINTERS = {
    "tuned proxy": "tuned_proxy",
    "fused LLM": "average",
    "gap closed": "gap_closed",
    EDGE: "owners_edge",
}
_AT_MOST = 3  # columns of an axis none of whose measures is in `FIRST`
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
GRAVEST = (
    Outcome.SUCCEEDED,
    Outcome.ERROR,
    Outcome.INCONCLUSIVE,
    Outcome.RESISTED,
    Outcome.NOT_APPLICABLE,
)
SURFACES = {
    "IND": "single updates",
    "AGG": "sums",
    "MR": "many rounds",
    "MOD": "models of the rounds",
    "API": "queries to the fused LLM",
    "ACT": "power to deviate",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A measure as a column."""

    key: str
    title: str
    unit: str  # of all its numbers; empty if they differ or have none
    arrow: str  # which way is better
    meaning: str

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, kw_only=True)
class AxisTable:
    """Configurations x measures of an axis."""

    axis: Axis
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, kw_only=True)
class FindingRow:
    """A finding of a configuration, its numbers with their source."""

    item: Labelled
    finding: Finding
    headline: Number | None
    others: tuple[Number, ...]
    positive: Number | None
    negative: Number | None
    seconds: Number
    surfaces: str


@dataclass(frozen=True, kw_only=True)
class AttackGroup:
    """All findings of one attack; `outcomes`: the gravest of each configuration, None without a finding."""

    id: str
    name: str
    title: str
    mapping: tuple[str, ...]
    rows: tuple[FindingRow, ...]
    outcomes: tuple[Outcome | None, ...]
    counts: tuple[tuple[Outcome, int], ...]


@dataclass(frozen=True, kw_only=True)
class LedgerCell:
    """One kind of message to one party: what it tells, and how much flowed, where that differs by name."""

    reveals: str
    flows: tuple[tuple[str, Number, Number], ...]  # (names, empty if it is all; messages; bytes)


@dataclass(frozen=True, kw_only=True)
class LedgerTable:
    """Party x surface, for configurations in which the same messages flowed."""

    items: tuple[Labelled, ...]
    parties: tuple[str, ...]
    rows: tuple[tuple[str, tuple[LedgerCell | None, ...]], ...]  # (message, a cell a party)


def first_tables(report: Report) -> list[AxisTable]:
    """The trilemma: of each axis the measures that people compare first."""
    made = []
    for axis, wanted in FIRST.items():
        there = keys_of(report.configurations, axis)
        keys = [k for k in wanted if k in there] or there[:_AT_MOST]
        if keys:
            made.append(_table(report, axis, keys))
    return made


def full_tables(report: Report) -> list[AxisTable]:
    """Every measure of every axis."""
    axes: tuple[Axis, ...] = ("performance", "privacy", "ip", "cost")
    tables = [_table(report, axis, keys_of(report.configurations, axis)) for axis in axes]
    return [table for table in tables if table.columns]


def attack_groups(report: Report) -> list[AttackGroup]:
    """Findings by attack."""
    items = labelled(report.configurations)
    every = [(i, f) for i in items for f in i.configuration.findings]
    made = []
    for id, name in attacks_in_order([f for _, f in every]):
        mine = [(i, f) for i, f in every if (f.id, f.attack) == (id, name)]
        ordered = sorted(mine, key=lambda p: GRAVEST.index(p[1].outcome))
        counts = [(o, sum(f.outcome == o for _, f in mine)) for o in GRAVEST]
        made.append(
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
    return made


def ledger_tables(report: Report) -> list[LedgerTable]:
    """Who saw what; configurations in which it was the same share a table."""
    groups: dict[tuple[tuple[str, str, str], ...], list[Labelled]] = {}
    for item in labelled(report.configurations):
        told = tuple((r.message, r.party, r.reveals) for r in item.configuration.ledger)
        if told:
            groups.setdefault(told, []).append(item)
    made = []
    for told, items in groups.items():
        parties = tuple(dict.fromkeys(party for _, party, _ in told))
        messages = dict.fromkeys(message for message, _, _ in told)
        made.append(
            LedgerTable(
                items=tuple(items),
                parties=parties,
                rows=tuple((m, tuple(_ledger_cell(items, m, p) for p in parties)) for m in messages),
            )
        )
    return made


def guarantee_groups(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """(whose, sentences): first the report's, then configurations', alike ones together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    if report.guarantees:
        groups[report.guarantees] = ["all configurations" if report.configurations else ""]
    for c in report.configurations:
        if c.guarantees:
            groups.setdefault(c.guarantees, []).append(c.name)
    return [("; ".join(names), lines) for lines, names in groups.items()]


def stamps(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """(stamp, names of the configurations that bear it)."""
    return _whose((stamp, c.name) for c in report.configurations for stamp in c.unsafe)


def failures(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    """(seed and why it failed, names of the configurations where it did)."""
    return _whose((line, c.name) for c in report.configurations for line in c.failed)


def method_columns(report: Report) -> list[tuple[str, str]]:
    """(name, name with unit) of the columns of a comparison that have a number."""
    there = dict.fromkeys(name for *_, numbers in method_rows(report) for name in numbers)
    ordered = [name for name in _POINTERS if name in there] + [n for n in there if n not in _POINTERS]
    return [(name, f"{name} ({'points' if name == EDGE else '%'})") for name in ordered]


def method_rows(report: Report) -> list[tuple[str, str, dict[str, Number]]]:
    """(method, removed, numbers by column) of a comparison."""
    made = []
    for i, row in enumerate(report.rows):
        found: dict[str, Estimate | None] = {
            **{name: getattr(row, key) for name, key in _POINTERS.items()},
            **row.tasks,
        }
        numbers = {
            name: Number(
                e,
                f"report.json#/rows/{i}/{_POINTERS.get(name, f'tasks/{name}')}",
                points=name == EDGE,
            )
            for name, e in found.items()
            if e is not None
        }
        removed = "" if row.remove_ratio is None else f"{row.remove_ratio:.0%} removed".replace("%", " %")
        made.append((row.method.replace("_", " "), removed, numbers))
    return made


def _whose(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Each line once, with all names."""
    found: dict[str, list[str]] = {}
    for line, name in pairs:
        found.setdefault(line, []).append(name)
    return [(line, tuple(names)) for line, names in found.items()]


def _table(report: Report, axis: Axis, keys: Sequence[str]) -> AxisTable:
    columns = []
    for key in keys:
        found = [m for c in report.configurations if (m := c.measure(key)) is not None]
        words = words_of(found[0])
        units = {shown(m).unit for m in found}
        columns.append(
            Column(
                key=key,
                title=words.title,
                unit=units.pop() if len(units) == 1 else "",
                arrow=_ARROWS[found[0].better],
                meaning=words.meaning,
            )
        )
    return AxisTable(axis=axis, name=AXIS_NAMES[axis], columns=tuple(columns))


def _gravest(findings: Sequence[Finding]) -> Outcome | None:
    return min((f.outcome for f in findings), key=GRAVEST.index, default=None)


def _finding_row(item: Labelled, finding: Finding) -> FindingRow:
    source = item.configuration.source_of(finding)

    def number(estimate: Estimate | None) -> Number | None:
        return None if estimate is None else Number(estimate, source)

    took = counted(finding.seconds, metric="seconds of the attack", unit="s", seeds=(finding.seed,))
    return FindingRow(
        item=item,
        finding=finding,
        headline=number(finding.headline),
        others=tuple(Number(e, source) for e in finding.estimates[1:]),
        positive=number(finding.positive),
        negative=number(finding.negative),
        seconds=Number(took, source),
        surfaces=", ".join(SURFACES.get(s, s) for s in finding.surfaces),
    )


def _ledger_cell(items: Sequence[Labelled], message: str, party: str) -> LedgerCell | None:
    alike: dict[tuple[int, int], list[tuple[Labelled, LedgerRow]]] = {}
    for item in items:
        for row in item.configuration.ledger:
            if (row.message, row.party) == (message, party):
                alike.setdefault((row.count, row.payload_bytes), []).append((item, row))
    if not alike:
        return None
    flows = []
    for pairs in alike.values():
        names = "; ".join(f"{i.kind} {i.rest}".strip() for i, _ in pairs) if len(alike) > 1 else ""
        item, row = pairs[0]
        flows.append((names, *_flow(item.configuration, row)))
    return LedgerCell(reveals=next(iter(alike.values()))[0][1].reveals, flows=tuple(flows))


def _flow(configuration: Configuration, row: LedgerRow) -> tuple[Number, Number]:
    seeds, n = configuration.seeds, max(1, len(configuration.seeds))

    def exact(value: int, unit: str) -> Number:
        metric = f"{unit} of {row.message} to {row.party}, all rounds and seeds"
        return Number(counted(value, metric=metric, unit=unit, seeds=seeds, n=n), row.source)

    return exact(row.count, "messages"), exact(row.payload_bytes, "bytes")
