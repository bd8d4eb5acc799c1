"""One method with one remove ratio and one seed: run it, write its record, read it again.

cells/NAME.json   answers as strings of 0 and 1, losses, bytes, seconds, and the cell's origin

A record names the settings, records, LLM and public text of its cell. So it can be copied to the folder of
another machine, which refuses cells of another origin.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedproxy_secure.config import Config
from fedproxy_secure.data.records import Task, records_sha256
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.answers import Bits
from fedproxy_secure.evidence.losses import Losses
from fedproxy_secure.experiments.method import method_of
from fedproxy_secure.experiments.results import (
    MethodResult,
    accuracies_of,
    from_texts,
    losses_of,
    to_texts,
)
from fedproxy_secure.runtime.artifacts import json_bytes, write_bytes
from fedproxy_secure.runtime.files.names import CELLS
from fedproxy_secure.runtime.progress import WORK, NoProgress, Progress
from fedproxy_secure.runtime.untrusted import read_json

if TYPE_CHECKING:
    from fedproxy_secure.compress.proxy import Proxy
    from fedproxy_secure.experiments.stages import Materials


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
class Origin:
    """The inputs of a cell; all cells of one table share the hashes of records, LLM and public text.

    Args:
        settings: SHA-256 of the settings that can change a cell, hex (`Config.cell_sha256`).
        records: SHA-256 of all clients' records, hex, including those set aside for an evaluation.
        llm: SHA-256 of the LLM's files, hex (`llm_sha256`).
        public_text: SHA-256 of the public text, hex (`public_text_sha256`).
        device: its name in torch.
        truncated: how many prompts were cut to `data.max_tokens`; 0 under differential privacy.
    """

    settings: str
    records: str
    llm: str
    public_text: str
    device: str
    truncated: int

    @classmethod
    def here(cls, config: Config, tasks: Sequence[Task]) -> Origin:
        """Return the origin of a cell that has a proxy and is run now.

        `tasks`: the tasks of all clients, including records set aside for an evaluation.

        Raises `DataError` or `ModelError` for public text or a model that cannot be read.
        """
        from fedproxy_secure.data.sources import public_text_sha256
        from fedproxy_secure.data.tasks import truncated_prompts
        from fedproxy_secure.models.llm import llm_sha256, pick_device

        return cls(
            settings=config.cell_sha256(),
            records=records_sha256(tasks),
            llm=llm_sha256(config.model.path),
            public_text=public_text_sha256(config.data.public_text, root=config.data.root),
            device=str(pick_device(config.model.device)),
            truncated=truncated_prompts(config, tasks),
        )


def settings_sha256(config: Config, cell: Cell) -> str:
    """Return the SHA-256 of the settings that can change `cell`, as hex."""
    return config.cell_sha256(has_proxy=method_of(cell.method).needs_ratio)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The result of a finished cell; `origin` is None if no comparison made the cell."""

    cell: Cell
    outcome: MethodResult
    seconds: float
    origin: Origin | None = None

    @property
    def fused(self) -> Bits:
        """The test records that the owner's model answered right, by task."""
        return {task: a.correct for task, a in accuracies_of(self.outcome.fused).items()}

    @property
    def fused_norm(self) -> Bits:
        """The test records that the owner's model answered right by `acc_norm`, by task."""
        return {task: a.correct_norm for task, a in accuracies_of(self.outcome.fused).items()}

    @property
    def fused_loss(self) -> Losses:
        """What the owner's model loses on free text, by task."""
        return losses_of(self.outcome.fused)

    @property
    def tuned(self) -> Bits | None:
        """The test records that the clients' model answered right; None without such a model."""
        tuned = self.outcome.tuned
        return None if tuned is None else {task: a.correct for task, a in accuracies_of(tuned).items()}

    @property
    def tuned_loss(self) -> Losses | None:
        """What the clients' model loses on free text, by task; None without such a model."""
        return None if self.outcome.tuned is None else losses_of(self.outcome.tuned)

    @property
    def tuned_norm(self) -> Bits | None:
        """`tuned` by `acc_norm`."""
        tuned = self.outcome.tuned
        return None if tuned is None else {task: a.correct_norm for task, a in accuracies_of(tuned).items()}


def cells_of(config: Config) -> list[Cell]:
    """Return all cells of a comparison, known long ones first, so that workers end at about the same time.

    Raises `ConfigError` if a method cannot run as the settings ask.
    """
    config.check_epsilon()
    cells = []
    methods = {name: method_of(name, setting="compare.methods") for name in config.compare.methods}
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
    """Let torch use one thread, so that numbers do not depend on how many cores there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_cell(
    config: Config,
    cell: Cell,
    *,
    progress: Progress | None = None,
    healing: Path | None = None,
    on_proxy: Callable[[Materials, Proxy], None] | None = None,
) -> CellResult:
    """Run one cell in this process, on one thread, without a transcript, whatever the settings say.

    Args:
        progress: gets the cell's stages, and as `WORK` how much of it is done.
        healing, on_proxy: as in `Inputs`.
    """
    from fedproxy_secure.experiments.inputs import Inputs

    unrecorded = config.audit.model_copy(update={"record": False, "folder": None})
    config = config.model_copy(update={"audit": unrecorded})
    began, display = time.perf_counter(), progress or NoProgress()
    display.start(WORK, 0)
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        inputs = Inputs.load(
            config,
            seed=cell.seed,
            ratio=cell.remove_ratio,
            folder=Path(folder),
            progress=display,
            healing=healing,
            on_proxy=on_proxy,
        )
        outcome = method_of(cell.method).run(inputs)
    return CellResult(cell=cell, outcome=outcome, seconds=time.perf_counter() - began)


def cell_file(out: Path, cell: Cell) -> Path:
    """Return the path of a finished cell's record."""
    return out / CELLS / f"{cell.name}.json"


def write_cell(out: Path, result: CellResult) -> None:
    """Write a finished cell's record atomically; raises `RunFolderError` if that fails."""
    outcome = result.outcome
    record = {
        "method": result.cell.method,
        "remove_ratio": result.cell.remove_ratio,
        "seed": result.cell.seed,
        "version": method_of(result.cell.method).version,
        **to_texts("fused", outcome.fused),
        **({} if outcome.tuned is None else to_texts("tuned", outcome.tuned)),
        "upload_bytes": outcome.upload_bytes,
        **({} if outcome.scale is None else {"scale": outcome.scale}),
        **({"aligned_windows": outcome.aligned_windows} if outcome.aligned_windows else {}),
        "seconds": result.seconds,
        "made_with": None if result.origin is None else asdict(result.origin),
    }
    write_bytes(cell_file(out, result.cell), json_bytes(record))


def read_cell(out: Path, cell: Cell) -> CellResult:
    """Read the record of a finished cell.

    Raises `RunFolderError` if it is missing, damaged, the record of another cell or of another version of
    its method.
    """
    path = cell_file(out, cell)
    try:
        raw = read_json(path)
        if Cell(method=raw["method"], remove_ratio=raw["remove_ratio"], seed=raw["seed"]) != cell:
            raise RunFolderError(
                f"{path}: is the record of another cell; rename it, or delete it and resume"
            )
        if (stored := raw["version"]) != (current := method_of(cell.method).version):
            age = "an earlier" if stored < current else "a later"
            raise RunFolderError(f"{path}: is of {age} version; delete it and resume")
        return CellResult(
            cell=cell,
            outcome=MethodResult(
                fused=from_texts("fused", raw),
                tuned=from_texts("tuned", raw) if "tuned" in raw else None,
                upload_bytes=raw["upload_bytes"],
                scale=raw.get("scale"),
                aligned_windows=raw.get("aligned_windows", 0),
            ),
            seconds=raw["seconds"],
            origin=None if raw["made_with"] is None else _origin(raw["made_with"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path}: is damaged: {error}; delete it and resume") from error


def _origin(raw: dict[str, Any]) -> Origin:
    """Return the origin in a record; raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    origin = Origin(**raw)
    texts = (origin.settings, origin.records, origin.llm, origin.public_text, origin.device)
    if type(origin.truncated) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("made_with: must be five texts and a whole number")
    return origin
