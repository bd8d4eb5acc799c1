"""The folder of a comparison: which cells it accepts, which it has, which are missing.

A folder can be extended: with `resume`, seeds, methods and remove ratios may differ from before, while all
settings that can change a cell must be the same. Cells of the same settings and records may be copied in
from other machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedproxy_secure.config import Config
from fedproxy_secure.config.sections import NO_EFFECT, OWN, SWEEP
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.number import named_seeds
from fedproxy_secure.experiments.sweeps.method_cells import (
    Cell,
    CellResult,
    Origin,
    cell_file,
    read_cell,
    settings_sha256,
)
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.belonging import check_work
from fedproxy_secure.runtime.files.names import CELLS, MANIFEST


@dataclass(frozen=True, kw_only=True)
class _CellSettings:
    """The settings of a comparison as its folder compares them: those that can change a cell."""

    config: Config

    def sha256(self) -> str:
        return self.config.cell_sha256()

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return self.config.model_dump(mode=mode)

    def counted(self) -> dict[str, Any]:
        return self.config.without(NO_EFFECT, OWN, SWEEP)


def open_folder(config: Config, out: Path, *, resume: bool) -> RunFolder:
    """Create a comparison's folder or, with `resume`, go on in one, which may extend it.

    Raises `RunFolderError` if it cannot be written, is not empty without `resume`, or holds other
    work, or a comparison whose cells other settings made.
    """
    settings = _CellSettings(config=config)
    if not resume:
        return RunFolder.create(out, settings, "comparison")
    folder = RunFolder.resume(out, settings, "comparison")
    folder.write_settings(settings)
    return folder


def read_cells(config: Config, out: Path, cells: Sequence[Cell]) -> list[CellResult]:
    """Read the finished ones of `cells`.

    Raises `RunFolderError` for a record that is damaged, or was made with other settings, records, public
    text or another LLM, and for a folder of a run or matrix.
    """
    if (out / MANIFEST).exists():  # a folder into which cells were copied may have none
        check_work(out, "comparison")
    results = [read_cell(out, cell) for cell in cells if cell_file(out, cell).exists()]
    for result in results:
        expected = settings_sha256(config, result.cell)
        actual = result.origin.settings if result.origin else "none"
        if actual != expected:
            raise RunFolderError(
                f"{cell_file(out, result.cell)}: was made with settings of SHA-256 {actual[:12]}; must be "
                f"{expected[:12]}, those of this comparison; move it out of the folder, or use its settings"
            )
    check_origins(out, results)
    return results


def check_origins(out: Path, results: Sequence[CellResult], origin: Origin | None = None) -> None:
    """Raise `RunFolderError` unless all cells have the records, LLM and public text of `origin`.

    Without `origin`, that of the first cell counts.
    """
    expected = origin or next((r.origin for r in results), None)
    whose = "found now" if origin else f"of {results[0].cell.name}" if results else ""
    for result in results:
        if expected is None or result.origin is None:
            continue
        for differs, phrase, use in (
            (result.origin.records != expected.records, "other records than those", "its records"),
            (result.origin.llm != expected.llm, "another LLM than that", "its LLM"),
            (result.origin.public_text != expected.public_text, "other public text than that", "its text"),
        ):
            if differs:
                raise RunFolderError(
                    f"{cell_file(out, result.cell)}: was made with {phrase} {whose}; "
                    f"move it out of the folder, or use {use}"
                )


def missing_cells(cells: Sequence[Cell], results: Sequence[CellResult]) -> list[str]:
    """Return one sentence that counts and names the cells without a result; [] if there are none."""
    finished = {r.cell for r in results}
    missing = [c for c in cells if c not in finished]
    return [f"{len(missing)} of {len(cells)} cells are missing: {_grouped(missing)}."] if missing else []


def folder_notes(out: Path, cells: Sequence[Cell], results: Sequence[CellResult]) -> list[str]:
    """Return the report's notes on the cells.

    They say which are in the folder but not in the report, and on which devices they were made if there are
    several.
    """
    notes = []
    expected = {f"{c.name}.json" for c in cells}
    extra = sorted(f.name for f in (out / CELLS).glob("*.json") if f.name not in expected)
    if extra:
        listed = ", ".join(name.removesuffix(".json") for name in extra[:4])
        more = f" and {len(extra) - 4} more" if len(extra) > 4 else ""
        notes.append(f"Cells in the folder that these settings do not include, left out: {listed}{more}.")
    devices = devices_of(results)
    if len(devices) > 1:
        notes.append(f"Cells were made on several devices: {', '.join(devices)}.")
    return notes


def devices_of(results: Iterable[CellResult]) -> list[str]:
    """Return the devices that cells were made on, as torch names them, sorted."""
    return sorted({r.origin.device for r in results if r.origin is not None})


def _grouped(cells: Sequence[Cell]) -> str:
    """Return cells by row, with the seeds of each: `fedot at 0.5 (seeds 1, 2)`."""
    rows: dict[str, list[int]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell.seed)
    return "; ".join(f"{row} ({named_seeds(sorted(seeds))})" for row, seeds in rows.items())
