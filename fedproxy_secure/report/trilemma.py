"""The trilemma of one configuration: performance, privacy and IP, measured together, and the cost.

A **measure** is an estimate on one axis, under a key that policies name, with its source. A
**configuration** is one way to run the pipeline (protection, remove ratio, fusion, adapter); its measures
are joined over seeds. There is no single score, which would hide an axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedproxy_secure.config import Answers
from fedproxy_secure.dp.events import Event
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.measure import MEASURES, Axis, Better, MeasureKind, measure_kind
from fedproxy_secure.runtime.files.names import FINDINGS


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of an axis.

    Args:
        axis, better: those of its kind. They are in the report so that a program without the kind can still
            show the number.
        key: name for programs, such as `gap_closed`, the same in every configuration.
        estimate: the number.
        source: where it comes from: a path relative to the report's folder and, after `#`, the place in
            that file.
    """

    axis: Axis
    key: str
    better: Better
    estimate: Estimate
    source: str

    @classmethod
    def of_kind(cls, kind: MeasureKind, estimate: Estimate, source: str) -> Measure:
        """Return a number of a kind."""
        return cls(axis=kind.axis, key=kind.key, better=kind.better, estimate=estimate, source=source)

    @property
    def kind(self) -> MeasureKind:
        """The registered kind; a kind made from the number itself if no installed package has one."""
        if self.key in MEASURES.names():
            return measure_kind(self.key)
        return MeasureKind(
            key="unregistered",  # the report's own key may be any text
            title=self.estimate.metric or "unnamed",
            axis=self.axis,
            better=self.better,
            unit=self.estimate.unit or "count",
            by="run",
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number round by round; `points` are (round from 0, estimate over seeds)."""

    key: str
    title: str
    points: tuple[tuple[int, Estimate], ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One kind of message to one party, all rounds and seeds together."""

    message: str
    party: str
    reveals: str
    count: int
    payload_bytes: int
    source: str


@dataclass(frozen=True, kw_only=True)
class AttackDifference:
    """One attack from one view under a protection, compared with the same attack without protection.

    Args:
        attack, id, view: the attack and its view.
        surface: the surface of privacy that it read without protection (`evidence.surfaces`); empty if
            there is none.
        surface_here: the same under the protection, which may leave it less to read.
        measure: key of the headline's measure of privacy; empty if there is none.
        configuration: name of the protected configuration.
        against: name of the otherwise equal configuration without protection.
        chance, bar: the headline's value if there is nothing to find, and the value that its interval must
            lie above.
        base: the headline without protection, over the seeds that both have.
        shows: whether that is above the bar, so that there is something to protect.
        could_show: the smallest value that the unprotected run would have shown; None if that is not known.
        value: the headline under the protection; None if the attack has no number there.
        difference: `value - base`, paired by seed and, if `paired`, by target; None without a value.
        paired: whether the targets were the same on every seed.
        outcome: the attack's outcome under the protection: SUCCEEDED if it succeeded on some seed, RESISTED
            if it was resisted on every seed, else INCONCLUSIVE; without a value, that of the first seed.
        why: why there is no value, or why the outcome is undecided; empty otherwise.
    """

    attack: str
    id: str
    view: str
    surface: str
    surface_here: str
    measure: str
    configuration: str
    against: str
    chance: float
    bar: float
    base: Estimate
    shows: bool
    could_show: float | None
    value: Estimate | None
    difference: Estimate | None
    paired: bool
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to run the pipeline, over seeds; two with the same name are the same.

    Args:
        name: the name.
        scheme: name of the protection.
        settings: what was swept, such as `{"protection": "masking", "remove_ratio": "0.5"}`.
        seeds: the seeds that finished.
        recipe: a swept protection's options and own settings, in words; empty if it has none.
        measures: its numbers.
        curves: its numbers round by round.
        findings: the findings of attacks.
        ledger: which party saw which messages.
        guarantees: what holds and what does not, in sentences.
        unsafe: stamps: warnings that every report shows.
        failed: seeds that did not finish, and why.
        commands: commands that run this configuration alone.
        folders: for each seed's folder name, such as `seed-0`, its run's folder relative to the report's.
        privacy_unit: what differential privacy hides: `record`, `client` or `none`.
        simulated_noise: whether the noise of differential privacy follows from the seed, so that nothing
            is private.
        api_answers: what an API of the fused LLM is assumed to return; None if that is not known.
        spends: privacy events of all trainings by client, equal ones joined into one; {} if not all are
            known.
        trained: whether training on the records began, on any seed, finished or not.
    """

    name: str
    scheme: str
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    recipe: str = ""
    measures: tuple[Measure, ...] = ()
    curves: tuple[Curve, ...] = ()
    findings: tuple[Finding, ...] = ()
    ledger: tuple[LedgerRow, ...] = ()
    guarantees: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    commands: tuple[str, ...] = field(default=())
    folders: Mapping[str, str] = field(default_factory=dict)
    privacy_unit: str = "none"
    simulated_noise: bool = False
    api_answers: Answers | None = None
    spends: Mapping[str, tuple[Event, ...]] = field(default_factory=dict)
    trained: bool = True

    def measure(self, key: str) -> Measure | None:
        """Return the measure with this key, or None if it was not measured."""
        return next((m for m in self.measures if m.key == key), None)

    def file_of(self, finding: Finding, name: str) -> str:
        """Return the path of a file of a finding's run, relative to the report's folder."""
        folder = self.folders.get(finding.seed_folder, ".")
        return name if folder in ("", ".") else f"{folder}/{name}"

    def source_of(self, finding: Finding) -> str:
        """Return the source of a finding."""
        record = self.file_of(finding, FINDINGS)
        return f"{record}#{finding.attack} from {finding.view}, {finding.seed_folder}"
