"""One method with one remove ratio and one seed: run it, write its record, read it again.

cells/NAME.json   answers as strings of 0 and 1, bytes, seconds
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedproxy_secure.config import Config
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.estimate import Bits
from fedproxy_secure.experiments.method import method_of
from fedproxy_secure.experiments.results import MethodResult, from_texts, to_texts
from fedproxy_secure.runtime.artifacts import json_bytes, write_bytes
from fedproxy_secure.runtime.untrusted import read_json


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of one method: a line of the comparison before seeds are joined."""

    method: str
    remove_ratio: float | None
    seed: int

    @property
    def name(self) -> str:
        """The file name of the cell's record, without suffix."""
        ratio = "" if self.remove_ratio is None else f"-{self.remove_ratio:g}"
        return f"{self.method}{ratio}-seed{self.seed}"

    @property
    def row(self) -> str:
        """The name of the cell's row, the same for all seeds."""
        return self.method if self.remove_ratio is None else f"{self.method} at {self.remove_ratio:g}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What a finished cell left on disk."""

    cell: Cell
    outcome: MethodResult
    seconds: float

    @property
    def fused(self) -> Bits:
        """The test records that the owner's model answered right, by task."""
        return {task: a.correct for task, a in self.outcome.fused.items()}

    @property
    def tuned(self) -> Bits | None:
        """The test records that the clients' model answered right; None without such a model."""
        tuned = self.outcome.tuned
        return None if tuned is None else {task: a.correct for task, a in tuned.items()}


def cells_of(config: Config) -> list[Cell]:
    """All cells of a comparison, longest first where that is known, so that workers end about together.

    Raises `ConfigError` if a method cannot run as the settings ask.
    """
    cells = []
    methods = {name: method_of(name, where="compare.methods") for name in config.compare.methods}
    for name, method in sorted(methods.items(), key=lambda item: not item[1].long):
        method.check_settings(config)
        cells += [
            Cell(method=name, remove_ratio=ratio, seed=seed)
            for ratio in (config.compare.remove_ratios if method.needs_ratio else (None,))
            for seed in config.seeds
        ]
    return cells


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: numbers then do not depend on how many cores there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_cell(config: Config, cell: Cell) -> CellResult:
    """Run one cell in this process, on one thread."""
    from fedproxy_secure.experiments.inputs import Inputs

    began = time.perf_counter()
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        inputs = Inputs.load(config, seed=cell.seed, ratio=cell.remove_ratio, folder=Path(folder))
        outcome = method_of(cell.method).run(inputs)
    return CellResult(cell=cell, outcome=outcome, seconds=time.perf_counter() - began)


def cell_file(out: Path, cell: Cell) -> Path:
    """Return the path of a finished cell's record."""
    return out / "cells" / f"{cell.name}.json"


def write_cell(out: Path, result: CellResult) -> None:
    """Write a finished cell's record, whole or not at all. Raises `RunFolderError` if that fails."""
    outcome = result.outcome
    record = {
        "method": result.cell.method,
        "remove_ratio": result.cell.remove_ratio,
        "seed": result.cell.seed,
        "fused": to_texts(outcome.fused),
        "tuned": None if outcome.tuned is None else to_texts(outcome.tuned),
        "upload_bytes": outcome.upload_bytes,
        "seconds": result.seconds,
    }
    write_bytes(cell_file(out, result.cell), json_bytes(record))


def read_cell(out: Path, cell: Cell) -> CellResult:
    """Read what a finished cell left. Raises `RunFolderError` if it is missing or damaged."""
    path = cell_file(out, cell)
    try:
        raw = read_json(path)
        return CellResult(
            cell=cell,
            outcome=MethodResult(
                fused=from_texts(raw["fused"]),
                tuned=None if raw["tuned"] is None else from_texts(raw["tuned"]),
                upload_bytes=raw["upload_bytes"],
            ),
            seconds=raw["seconds"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path}: is damaged: {error}; delete it and resume") from error
