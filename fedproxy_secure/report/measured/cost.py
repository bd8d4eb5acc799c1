"""Cost: bytes, seconds and memory, absolute and relative to an unprotected run; and the leakage ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedproxy_secure.evidence.measure import MeasureKind
from fedproxy_secure.evidence.measures import cost as kinds
from fedproxy_secure.report.measured.joining import values
from fedproxy_secure.report.measured.seed import SeedRun
from fedproxy_secure.report.trilemma import LedgerRow, Measure
from fedproxy_secure.runtime.files.names import FEDERATION, LEAKAGE

Row = Mapping[str, Any]  # one line of a leakage ledger


def cost(seeds: Sequence[SeedRun]) -> list[Measure]:
    """Return the measures of cost of the run itself; bytes are per client and round."""
    measures: list[Measure] = []
    parts: tuple[tuple[MeasureKind, Callable[[Row], bool]], ...] = (
        (kinds.UPLOAD_BYTES, _is_upload),
        (kinds.DOWNLOAD_BYTES, lambda row: row["to"] == "clients" and row["message"] != "Proxy"),
        (kinds.PROTOCOL_BYTES, lambda row: not row.get("vector") and not _is_sum(row)),
    )
    for kind, is_counted in parts:
        by_seed = {}
        for s in seeds:
            messages = sum(len(r["participants"]) for r in s.rounds)
            by_seed[s.seed] = sum(row["bytes"] for row in s.ledger_of_rounds if is_counted(row)) / max(
                messages, 1
            )
        measures += values(seeds, kind, by_seed, source=seeds[0].source(f"{FEDERATION}/{LEAKAGE}", "bytes"))
    total = {s.seed: sum(s.result["seconds"].values()) for s in seeds}
    peak = {s.seed: float(s.result["peak_memory_bytes"]) for s in seeds}
    return [
        *measures,
        *values(seeds, kinds.SECONDS_FEDERATE, {s.seed: _federated_s(s) for s in seeds}),
        *values(seeds, kinds.SECONDS_TOTAL, total),
        *values(seeds, kinds.PEAK_MEMORY_BYTES, peak),
    ]


def cost_against(seeds: Sequence[SeedRun], base: Sequence[SeedRun]) -> tuple[Measure, ...]:
    """Return bytes and seconds divided by those of the unprotected runs `base`, seed by seed.

    The result is empty without a common seed.
    """
    by_seed = {s.seed: s for s in base}
    pairs = [(s, by_seed[s.seed]) for s in seeds if s.seed in by_seed]
    if not pairs:
        return ()
    measures: list[Measure] = []
    for kind, amount in (
        (kinds.UPLOAD_OVER_UNPROTECTED, _uploaded_bytes),
        (kinds.SECONDS_OVER_UNPROTECTED, _federated_s),
    ):
        ratios = {s.seed: amount(s) / amount(b) for s, b in pairs if amount(b) > 0}
        measures += values([s for s, _ in pairs], kind, ratios)
    return tuple(measures)


def ledger_rows(seeds: Sequence[SeedRun]) -> tuple[LedgerRow, ...]:
    """Return the leakage ledger of all rounds and seeds together, one row for each message and party."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for s in seeds:
        for line in s.ledger:
            row = rows.setdefault(
                (line["message"], line["to"]), {"reveals": line["reveals"], "count": 0, "bytes": 0}
            )
            row["count"] += line["count"]
            row["bytes"] += line["bytes"]
    return tuple(
        LedgerRow(
            message=message,
            party=party,
            reveals=row["reveals"],
            count=row["count"],
            payload_bytes=row["bytes"],
            source=seeds[0].source(f"{FEDERATION}/{LEAKAGE}", message),
        )
        for (message, party), row in rows.items()
    )


def _is_sum(row: Row) -> bool:
    """Return whether the row is a sum that the server computed, which no message contained."""
    return bool(row.get("computed"))


def _is_upload(row: Row) -> bool:
    return row["to"] == "server" and not _is_sum(row)


def _uploaded_bytes(s: SeedRun) -> float:
    return float(sum(row["bytes"] for row in s.ledger_of_rounds if _is_upload(row)))


def _federated_s(s: SeedRun) -> float:
    return sum(float(r["seconds"]) for r in s.rounds)
