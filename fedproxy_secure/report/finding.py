"""What one attack found from one view: its numbers, its controls, its outcome.

Attacks write findings (`attacks/results.json` below a run); reports and gates read them. This module knows
the form alone, so that the core needs no attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fedproxy_secure.artifacts import RunFolder
from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.untrusted import read_json

SCHEMA_VERSION = 1
FOLDER, RESULTS = "attacks", "results.json"  # below a run's folder
Profile = Literal["smoke", "standard", "full"]


class Outcome(StrEnum):
    """How an attack ended. There is no "failed": a resisted attack is not a proof of safety."""

    SUCCEEDED = "SUCCEEDED"  # its interval lies above chance by more than the margin
    RESISTED = "RESISTED"  # it did not, and the same attack succeeds where protection is off
    NOT_APPLICABLE = "NOT_APPLICABLE"  # the view lacks what it needs, or the run has nothing to attack
    INCONCLUSIVE = "INCONCLUSIVE"  # a control failed, the interval is too wide, or time ran out
    ERROR = "ERROR"  # it raised


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack from one view. `estimates`: the headline first; `positive`, `negative`: the controls'.

    `mapping`: (framework, version, id) triples. `surfaces`: what the view had (see `attacks.base`).
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
    positive: Estimate | None
    negative: Estimate | None
    seconds: float
    seed: int
    mapping: tuple[tuple[str, str, str], ...]

    @property
    def headline(self) -> Estimate | None:
        """The estimate that decided."""
        return self.estimates[0] if self.estimates else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Finding:
        """What `to_json` made. Raises `ValueError` if it is something else."""
        made: Finding = _adapter().validate_python(raw)
        return made


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Finding)


def write_findings(run: Path, findings: Sequence[Finding]) -> Path:
    """`attacks/results.json` below a run's folder, atomically."""
    made = {"schema_version": SCHEMA_VERSION, "results": [f.to_json() for f in findings]}
    return RunFolder(path=run / FOLDER).write_json(RESULTS, made)


def read_findings(run: Path) -> list[Finding]:
    """The findings of a run's last suite. Raises `RunFolderError` if they are missing or damaged."""
    path = run / FOLDER / RESULTS
    try:
        raw = read_json(path)
        if raw["schema_version"] != SCHEMA_VERSION:
            raise RunFolderError(
                f"{path}: schema_version={raw['schema_version']}: must be {SCHEMA_VERSION}"
            )
        return [Finding.from_json(r) for r in raw["results"]]
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}; run `attack run` first") from error
    except RunFolderError:
        raise
    except (ValueError, KeyError, TypeError, FedProxyError) as error:
        raise RunFolderError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error
