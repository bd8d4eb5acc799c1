"""The page's leakage ledger: which party saw which messages, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.evidence.number import Number
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sweep import Labelled, labelled
from fedproxy_secure.report.trilemma import Configuration, LedgerRow


@dataclass(frozen=True, kw_only=True)
class LedgerCell:
    """One kind of message to one party: what it reveals, and how much was sent.

    Args:
        reveals: what the message reveals.
        flows: (names, messages, bytes); the names of configurations are empty if all have the same amount.
    """

    reveals: str
    flows: tuple[tuple[str, Number, Number], ...]


@dataclass(frozen=True, kw_only=True)
class LedgerTable:
    """A table of messages by party, for configurations with the same kinds of messages."""

    items: tuple[Labelled, ...]
    parties: tuple[str, ...]
    rows: tuple[tuple[str, tuple[LedgerCell | None, ...]], ...]  # (message, one cell per party)


def ledger_tables(report: Report) -> list[LedgerTable]:
    """Return the tables of messages by party; configurations with equal ledgers share a table."""
    groups: dict[tuple[tuple[str, str, str], ...], list[Labelled]] = {}
    for item in labelled(report.configurations):
        messages_of = tuple((r.message, r.party, r.reveals) for r in item.configuration.ledger)
        if messages_of:
            groups.setdefault(messages_of, []).append(item)
    tables = []
    for messages_of, items in groups.items():
        parties = tuple(dict.fromkeys(party for _, party, _ in messages_of))
        messages = dict.fromkeys(message for message, _, _ in messages_of)
        tables.append(
            LedgerTable(
                items=tuple(items),
                parties=parties,
                rows=tuple((m, tuple(_ledger_cell(items, m, p) for p in parties)) for m in messages),
            )
        )
    return tables


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
