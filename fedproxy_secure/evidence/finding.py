"""The finding of one attack from one view: its numbers, its controls, its outcome.

Attacks write findings (`attacks/results.json` below a run); reports and gates read them. This module
defines only their form, so that the core needs no attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fedproxy_secure.errors import DataError, FedProxyError, RunFolderError
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.roc import Roc
from fedproxy_secure.evidence.targets import Targets
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import FINDINGS
from fedproxy_secure.runtime.untrusted import read_json

SCHEMA_VERSION = 4
Profile = Literal["smoke", "standard", "full"]


class Outcome(StrEnum):
    """How an attack ended; no outcome is called "failed", because resistance does not prove safety."""

    SUCCEEDED = "SUCCEEDED"  # its interval lies above chance by more than the margin
    RESISTED = "RESISTED"  # it does not, and the same attack succeeds on its positive control
    NOT_APPLICABLE = "NOT_APPLICABLE"  # the view lacks what it needs, or the run has nothing to attack
    INCONCLUSIVE = "INCONCLUSIVE"  # a control failed, the interval is too wide, or time ran out
    ERROR = "ERROR"  # the attack raised an error


def in_order(id: str) -> tuple[str, int]:
    """Return the sort key of an attack's id, by which A2 comes before A10.

    >>> sorted(["A10", "A2"], key=in_order)
    ['A2', 'A10']
    """
    letters = id.rstrip("0123456789")
    return letters, int(id[len(letters) :] or 0)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The finding of one attack from one view.

    Args:
        attack: name of the attack.
        id: number of the attack, such as `A2`.
        title: what the attack finds.
        view: name of the threat model.
        surfaces: the surfaces that the view had (see `attacks.base`).
        seed_folder: name of the folder of the run's seed.
        profile: the budget of the attack.
        outcome: how it ended.
        reason: one sentence that explains the outcome.
        estimates: its numbers, the headline first.
        measures: the measures that the attack feeds, by key (`fedproxy_secure.evidence.measure`). Each has
            the positions of its numbers in `estimates`, which may be none.
        positive, negative: the headlines of the controls; None without one.
        seconds: wall-clock time of the attack and its controls.
        seed: seed of the attack's randomness.
        mapping: (framework, version, id) triples.
        read: the surfaces that it used, of those in `surfaces`; () if these lack what it needs.
        chance: the headline's value if there is nothing to find.
        margin: how far above chance the headline's interval must begin to count as success.
        detectable: the smallest effects that its numbers could have shown, the headline's first if it is
            known.
        targets: the judgement of each target of the exam, for paired differences; None if not known, and in
            reports, which hold the differences themselves.
        roc: the ROC curve of an AUC's targets; only in reports, which hold it in their place.
        out_of_time: whether it is undecided because time ran out; a resumed suite runs the attack again.
        effort: how much the attack itself did, without its controls, by what it counts, such as documents
            read; only what may depend on the machine's speed and load.

    Raises `DataError` for a position that `estimates` does not have.
    """

    attack: str
    id: str
    title: str
    view: str
    surfaces: tuple[str, ...]
    seed_folder: str
    profile: Profile
    outcome: Outcome
    reason: str
    estimates: tuple[Estimate, ...]
    measures: Mapping[str, tuple[int, ...]]
    positive: Estimate | None
    negative: Estimate | None
    seconds: float
    seed: int
    mapping: tuple[tuple[str, str, str], ...]
    read: tuple[str, ...]
    chance: float
    margin: float
    detectable: tuple[Detectable, ...] = ()
    targets: Targets | None = None
    roc: Roc | None = None
    out_of_time: bool = False
    effort: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, positions in self.measures.items():
            for position in positions:
                if not 0 <= position < len(self.estimates):
                    raise DataError(
                        f"{self.attack}: measures.{key}: position {position}: must be one of the "
                        f"{len(self.estimates)} estimates"
                    )

    @property
    def headline(self) -> Estimate | None:
        """The estimate that decided the outcome."""
        return self.estimates[0] if self.estimates else None

    @property
    def bar(self) -> float:
        """The value that the headline's interval must lie above to count as success."""
        return self.chance + self.margin

    def could_show(self, estimate: Estimate) -> Detectable | None:
        """Return the smallest effect that one of its numbers could have shown; None if it is not known."""
        return next((d for d in self.detectable if d.metric == estimate.metric), None)

    def numbers(self, measure: str) -> tuple[Estimate, ...]:
        """Return the estimates of the measure with this key."""
        return tuple(self.estimates[position] for position in self.measures.get(measure, ()))

    def without_scores(self) -> Finding:
        """Return the finding with the ranks of its targets, but not their scores."""
        if self.targets is None:
            return self
        return replace(self, targets=replace(self.targets, scores=()))

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Finding:
        """Return the finding of plain values from `to_json`.

        Raises `ValueError` or `DataError` for values of another form.
        """
        finding: Finding = _adapter().validate_python(raw)
        return finding


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Finding)


def write_findings(run: Path, findings: Sequence[Finding]) -> Path:
    """Write `attacks/results.json` below a run's folder, atomically, and return its path.

    Only the owner may read it, as it has the scores of targets.
    """
    content = {"schema_version": SCHEMA_VERSION, "results": [f.to_json() for f in findings]}
    return RunFolder(path=run, private=True).write_json(FINDINGS, content)


def read_findings(run: Path) -> list[Finding]:
    """Return the findings of attacks on a run.

    Raises `RunFolderError` if they are missing, damaged or of another schema version.
    """
    return findings_in(run / FINDINGS)


def findings_in(path: Path) -> list[Finding]:
    """Return the findings in a file of `write_findings`; raises as `read_findings` does."""
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or not {"schema_version", "results"} <= set(raw):
            raise RunFolderError(
                f"{path}: is damaged, or no findings: must have schema_version and results; give a run's "
                f"folder or its {FINDINGS}"
            )
        if raw["schema_version"] != SCHEMA_VERSION:
            raise RunFolderError(
                f"{path}: schema_version={raw['schema_version']}: must be {SCHEMA_VERSION}; "
                "run `attack run` again"
            )
        return [Finding.from_json(r) for r in raw["results"]]
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}; run `attack run` first") from error
    except RunFolderError:
        raise
    except (ValueError, KeyError, TypeError, FedProxyError) as error:
        raise RunFolderError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error
