"""The results of a benchmark, and `benchmark.json`, which stores them.

The JSON follows `benchmark.schema.json`, which ships beside this module and is generated from these classes
by `python -m attacks.benchmark.schema`. `schema_version` grows when a reader of the old version would
misread the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from attacks.benchmark.identity import Identity
from attacks.benchmark.providers import AttackEntry
from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.evidence.finding import Finding
from fedproxy_secure.runtime.artifacts import RunFolder, json_bytes, write_bytes
from fedproxy_secure.runtime.untrusted import read_json

SCHEMA_VERSION = 3
JSON_NAME, TEXT_NAME = "benchmark.json", "benchmark.txt"
CELLS = "cells"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What the attacks found on one cell.

    Args:
        benchmark_id: id of the benchmark.
        name: name of the cell.
        world, adapter, optimizer, steps, batch, clients, protection, epsilon: its place on each axis, see
            `attacks.benchmark.grid.GridCell`.
        views: names of the threat models whose views were attacked.
        attacks: the attacks that ran, with their providers and the digests of their code.
        seconds: wall-clock time of the last call that worked on the cell.
        failed: why the cell has no results, in one line; None if it has.
        findings: what each attack found from each view.
    """

    benchmark_id: str
    name: str
    world: str
    adapter: str
    optimizer: str
    steps: int
    batch: int
    clients: int
    protection: str
    epsilon: float | None
    views: tuple[str, ...]
    attacks: tuple[AttackEntry, ...]
    seconds: float
    failed: str | None
    findings: tuple[Finding, ...]

    def has(self, attacks: tuple[AttackEntry, ...]) -> bool:
        """Return whether it has the findings of these attacks, from their current code."""
        known = {(a.name, a.code_sha256, a.provider_version) for a in self.attacks}
        required = {(a.name, a.code_sha256, a.provider_version) for a in attacks}
        return self.failed is None and required <= known

    def write(self, out: Path) -> None:
        """Write the result below a benchmark's folder. Raises `RunFolderError` if that fails."""
        RunFolder(path=out).write_json(f"{CELLS}/{self.name}.json", asdict(self))

    @classmethod
    def read(cls, out: Path, name: str) -> CellResult | None:
        """Return a cell's result from a benchmark's folder; None if there is none, or it is damaged."""
        try:
            result: CellResult = _cells().validate_python(read_json(out / CELLS / f"{name}.json"))
            return result
        except (OSError, ValueError, FedProxyError):
            return None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The results of a benchmark, whole or in part.

    Args:
        benchmark_id: the id; only results of the same id are comparable.
        identity: the parts of the id.
        model: name of the LLM, without its folder.
        command: the command that made the results.
        environment: versions of packages and the machine.
        attacks: the attacks that were asked for, with their providers.
        cells: the cells that were asked for, in the grid's order.
        attacks_left_out: names of registered attacks that were not asked for.
        cells_left_out: names of the grid's cells that were not asked for.
        subset: whether cells or attacks were left out.
        schema_version: version of the form.
    """

    benchmark_id: str
    identity: Identity
    model: str
    command: str
    environment: Mapping[str, Any]
    attacks: tuple[AttackEntry, ...]
    cells: tuple[CellResult, ...]
    attacks_left_out: tuple[str, ...]
    cells_left_out: tuple[str, ...]
    subset: bool
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain values; all numbers in them are finite."""
        return asdict(self)

    def write(self, out: Path) -> Path:
        """Write `benchmark.json` and return its path. Raises `RunFolderError` if that fails."""
        write_bytes(out / JSON_NAME, json_bytes(self.to_json()))
        return out / JSON_NAME

    @classmethod
    def read(cls, path: Path) -> Benchmark:
        """Read a `benchmark.json`.

        Raises `RunFolderError` if it cannot be read, is damaged, of another schema version, or if its id is
        not that of the parts it names.
        """
        try:
            raw = read_json(path)
            if raw["schema_version"] != SCHEMA_VERSION:
                raise RunFolderError(
                    f"{path}: schema_version={raw['schema_version']}: must be {SCHEMA_VERSION}; run the "
                    "benchmark again"
                )
            result: Benchmark = _benchmarks().validate_python(raw)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
        except RunFolderError:
            raise
        except (ValueError, KeyError, TypeError, FedProxyError) as error:
            raise RunFolderError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error
        if result.benchmark_id != result.identity.id:
            raise RunFolderError(
                f"{path}: benchmark_id={result.benchmark_id}: must be {result.identity.id}"
            )
        return result


def schema_of_results() -> dict[str, Any]:
    """Return Pydantic's schema of `benchmark.json`; `attacks.benchmark.schema` refines it."""
    schema: dict[str, Any] = _benchmarks().json_schema(mode="serialization")
    return schema


@cache
def _cells() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(CellResult)


@cache
def _benchmarks() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Benchmark)
