"""The trilemma: performance, privacy and IP of one configuration, measured together, and what it costs.

A **measure** is an estimate on one axis, under a key that policies name, with the record it came from. A
**configuration** is one way to run the pipeline (protection, remove ratio, fusion, adapter); its measures
join the seeds. There is no single score: nothing hides an axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedproxy_secure.dp.events import Event
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.finding import FOLDER, RESULTS, Finding

Axis = Literal["performance", "privacy", "ip", "cost"]
AXES: tuple[Axis, ...] = ("performance", "privacy", "ip", "cost")
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of an axis. `key`: for programs, such as `gap_closed`, the same in every configuration.

    `source`: where it can be looked up, a path relative to the report's folder and, after `#`, what in it.
    """

    axis: Axis
    key: str
    better: Better
    estimate: Estimate
    source: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number round by round. `points`: (round from 0, estimate over seeds)."""

    key: str
    title: str
    points: tuple[tuple[int, Estimate], ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """Who saw what: one kind of message to one party, as it flowed, all rounds and seeds together."""

    message: str
    party: str
    reveals: str
    count: int
    payload_bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to run the pipeline, over seeds. Two have the same `name` only if they are the same.

    `settings`: what was swept, such as `{"protection": "masking", "remove_ratio": "0.5"}`. `unsafe`:
    stamps, sentences that stand on every report. `failed`: seeds that did not finish, and why. `folders`:
    the run folder of each seed, relative to the report's, by the name of the seed's own, such as `seed-0`.
    `spends`: by client, the privacy events of all trainings, alike ones as one; {} if not all are known.
    """

    name: str
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    measures: tuple[Measure, ...] = ()
    curves: tuple[Curve, ...] = ()
    findings: tuple[Finding, ...] = ()
    ledger: tuple[LedgerRow, ...] = ()
    guarantees: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    commands: tuple[str, ...] = field(default=())  # that run this configuration alone
    folders: Mapping[str, str] = field(default_factory=dict)
    privacy_unit: str = "none"  # what differential privacy hides: `record`, `client`
    spends: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)

    def measure(self, key: str) -> Measure | None:
        """The measure under `key`, or None where it was not measured."""
        return next((m for m in self.measures if m.key == key), None)

    def file_of(self, finding: Finding, name: str) -> str:
        """A file of the run that a finding is of, relative to the report's folder."""
        folder = self.folders.get(finding.seed_folder, ".")
        return name if folder in ("", ".") else f"{folder}/{name}"

    def source_of(self, finding: Finding) -> str:
        """Where a finding can be looked up."""
        record = self.file_of(finding, f"{FOLDER}/{RESULTS}")
        return f"{record}#{finding.attack} from {finding.view}, {finding.seed_folder}"
