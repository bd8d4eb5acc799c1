"""The report of a run: `report.json` for programs, `report.md` for people, the same content.

The JSON follows `report.schema.json`, which ships beside this module and is written from these classes by
`python -m fedproxy_secure.report.schema`. `schema_version` grows when a reader of the old one would be
wrong about the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fedproxy_secure import artifacts
from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.report.estimate import Estimate
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.untrusted import read_json

SCHEMA_VERSION = 3
JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method at one remove ratio. None: does not apply or was not measured.

    Accuracies, `gap_closed` and `owners_edge` have the unit `share` (1 = everything).
    """

    method: str
    remove_ratio: float | None = None  # None: the method has no proxy
    tasks: Mapping[str, Estimate] = field(default_factory=dict)  # fused LLM, by task
    average: Estimate | None = None  # fused LLM, mean over tasks
    gap_closed: Estimate | None = None  # from zero-shot (0) to the centralised LLM (1)
    tuned_proxy: Estimate | None = None  # the tuned proxy alone, mean over tasks
    owners_edge: Estimate | None = None  # fused LLM minus tuned proxy


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a run found, and what it takes to find it again.

    `rows` compare methods; `configurations` have the trilemma. `estimates` are numbers outside both, such
    as a proxy's fidelity. `notes` are what a reader must know before believing a number: truncated prompts,
    settings that are not safe. `not_measured` says what nobody looked at, and why. `audit_head`: hash of
    the audit log's last line, hex, over which the report is signed; None without a log.
    `total_epsilon`: of all configurations together, which train on the same records; None where that is
    not finite or not known. `composition` says so, and which costs of privacy add up to which.
    """

    name: str
    command: str
    config_sha256: str
    environment: Mapping[str, Any]
    seeds: tuple[int, ...]
    estimates: tuple[Estimate, ...] = ()
    rows: tuple[MethodRow, ...] = ()
    notes: tuple[str, ...] = ()
    guarantees: tuple[str, ...] = ()  # what holds and what does not, in sentences
    configurations: tuple[Configuration, ...] = ()
    not_measured: tuple[str, ...] = ()
    audit_head: str | None = None
    total_epsilon: Estimate | None = None
    composition: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The report as indented JSON; numbers that are not finite cannot occur."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write both files atomically and return the path of the JSON one.

        Raises `RunFolderError` if the folder cannot be written; a file already there then stays.
        """
        from fedproxy_secure.report.table import markdown_report

        artifacts.write_bytes(folder / MARKDOWN_NAME, markdown_report(self).encode())
        artifacts.write_bytes(folder / JSON_NAME, self.to_json().encode())
        return folder / JSON_NAME

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Read the report in `folder`. Raises what `read` raises."""
        return cls.read(folder / JSON_NAME)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report's JSON.

        Raises `RunFolderError` if there is none, or it is damaged or of another schema version.
        """
        try:
            raw = read_json(path)
            version = raw["schema_version"]
            if version != SCHEMA_VERSION:
                old = isinstance(version, int) and version < SCHEMA_VERSION
                again = "; `run --resume` or `matrix --resume` writes it again" if old else ""
                raise RunFolderError(f"{path}: schema_version={version}: must be {SCHEMA_VERSION}{again}")
            made: Report = adapter().validate_python(raw)
            return made
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
        except RunFolderError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, FedProxyError) as error:
            raise RunFolderError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error


@cache
def adapter() -> Any:
    """pydantic's `TypeAdapter` of `Report`: reads plain values, knows the JSON schema."""
    from pydantic import TypeAdapter

    return TypeAdapter(Report)
