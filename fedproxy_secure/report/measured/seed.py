"""One seed of a run, read from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedproxy_secure.config import Config
from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.evidence.answers import Bits, answers_in
from fedproxy_secure.evidence.finding import Finding, read_findings
from fedproxy_secure.evidence.losses import Losses, losses_in
from fedproxy_secure.report.composition import Training
from fedproxy_secure.report.measured.form import (
    HEALING_HAS,
    LEDGER_HAS,
    RESULT_HAS,
    ROUND_HAS,
    Form,
    lacking,
)
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import (
    FEDERATION,
    FINDINGS,
    LEAKAGE,
    RESULT,
    ROUNDS,
    seed_folder,
)
from fedproxy_secure.runtime.untrusted import read_json

ATTACKED = "no suite of attacks ran: measured privacy and extraction are missing; run with --suite smoke"


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of one configuration, as its files describe it.

    Args:
        seed: the seed.
        place: path of the run's folder in sources, relative to the report's.
        result: content of `result.json`.
        rounds: lines of `rounds.jsonl`.
        ledger: lines of the leakage ledger.
        findings: the findings of attacks.
        ceiling: the centralised LLM's answers, same seed and records; None if it was not trained.
        ceiling_losses: its losses on free text; {} if it was not trained, or there is no free text.
    """

    seed: int
    place: str
    result: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    ledger: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    ceiling: Bits | None = None
    ceiling_losses: Losses = field(default_factory=dict)

    def source(self, file: str, what: str) -> str:
        """Return the source of a number of this seed: a file below its folder, and the place in it."""
        return f"{self.place}/{seed_folder(self.seed)}/{file}#{what}"

    def answers(self, model: str) -> Bits:
        """Return which test records a model answered correctly, by task.

        The model `ceiling` is the centralised LLM.

        Raises `RunFolderError` if the result does not hold them as strings of 0 and 1.
        """
        if model == "ceiling":
            assert self.ceiling is not None
            return self.ceiling
        try:
            return answers_in(self.result, model)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RunFolderError(
                f"{self._result_file}: {model}: is damaged: {error}; delete it and resume"
            ) from error

    def losses(self, model: str) -> Losses:
        """Return a model's losses on free text, by task; {} without free text.

        The model `ceiling` is the centralised LLM. Raises `RunFolderError` if the result does not hold
        losses.
        """
        if model == "ceiling":
            return self.ceiling_losses
        try:
            return losses_in(self.result, model)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{self._result_file}: is damaged: {error}; delete it and resume"
            ) from error

    @property
    def ledger_of_rounds(self) -> tuple[Mapping[str, Any], ...]:
        """The ledger's lines without those of aborted attempts."""
        return tuple(row for row in self.ledger if not row.get("aborted"))

    def training(self, config: Config) -> Training:
        """Return the privacy events of the seed's training.

        Raises `RunFolderError` if the result holds something else there than events and numbers.
        """
        try:
            return Training.of_result(self.result, delta=config.privacy.target_delta)
        except DataError as error:
            raise RunFolderError(f"{self._result_file}: {error}") from error

    @property
    def _result_file(self) -> str:
        return f"{self.place}/{seed_folder(self.seed)}/{RESULT}"


def read_result(folder: Path) -> dict[str, Any]:
    """Return the result of a finished seed, from the seed's folder.

    Raises `RunFolderError` if it is missing or damaged.
    """
    path = folder / RESULT
    try:
        result = read_json(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunFolderError(f"{path}: is damaged; delete it and resume") from error
    lacks = lacking(RESULT_HAS, result)
    if lacks is None and "healing" in result:
        lacks = lacking(HEALING_HAS, result["healing"], "healing")
    if lacks is not None:
        raise RunFolderError(f"{path}: is damaged: {lacks}; delete it and resume")
    checked: dict[str, Any] = result
    return checked


def read_seeds(run: Path, seeds: Iterable[int], *, root: Path) -> list[SeedRun]:
    """Read seeds of the run in `run`; sources are relative to `root`, the report's folder.

    Raises `RunFolderError` for a seed that did not finish or is damaged.
    """
    findings = read_findings(run) if attacked(run) else []
    seed_runs = []
    for seed in seeds:
        folder = run / seed_folder(seed)
        files = RunFolder(path=folder / FEDERATION)
        seed_runs.append(
            SeedRun(
                seed=seed,
                place=_relative(run, root),
                result=read_result(folder),
                rounds=_lines(files, ROUNDS, ROUND_HAS),
                ledger=_lines(files, LEAKAGE, LEDGER_HAS),
                findings=tuple(f for f in findings if f.seed_folder == folder.name),
            )
        )
    return seed_runs


def read_seed(
    run: Path,
    seed: int,
    *,
    root: Path,
    ceiling: Bits | None = None,
    ceiling_losses: Losses | None = None,
) -> SeedRun:
    """Read one seed of the run in `run`, as `read_seeds` does, and add the results of its ceiling."""
    (seed_run,) = read_seeds(run, [seed], root=root)
    return replace(seed_run, ceiling=ceiling, ceiling_losses=ceiling_losses or {})


def _lines(folder: RunFolder, name: str, form: Form) -> tuple[Mapping[str, Any], ...]:
    """Read the lines of rounds or of the ledger; raise `RunFolderError` if they are missing or damaged."""
    lines = folder.read_jsonl(name)
    lacks = next(filter(None, (lacking(form, line) for line in lines)), None)
    if not lines or lacks is not None:
        raise RunFolderError(
            f"{folder.path / name}: is damaged: {lacks or 'has no lines'}; put it back, or delete "
            f"{folder.path.parent.name} and resume"
        )
    return tuple(lines)


def attacked(run: Path) -> bool:
    """Return whether a suite of attacks has finished on the run."""
    return (run / FINDINGS).is_file()


def _relative(run: Path, root: Path) -> str:
    try:
        return run.resolve().relative_to(root.resolve()).as_posix() or "."
    except ValueError:
        return run.as_posix()
