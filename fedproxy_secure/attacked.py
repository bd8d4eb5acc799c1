"""Attack a finished run and write its report again, with what the attacks found."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from fedproxy_secure.config import Config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.progress import Progress
from fedproxy_secure.report.report import Report

SUITES = "fedproxy_secure.suites"  # entry points: the core does not know who attacks it


def attack_run(
    config: Config, folder: Path, *, seed: int, resume: bool = True, progress: Progress | None = None
) -> None:
    """Every registered suite on a recorded run, by the settings of `matrix`; results lie below its folder.

    Raises `ConfigError` if none is registered, `RunFolderError` if the run was not recorded.
    """
    points = list(entry_points(group=SUITES))
    if not points:
        raise ConfigError(f"matrix.suite={config.matrix.suite}: no suite is installed; set it to none")
    for point in points:
        point.load()(
            folder,
            views=config.matrix.views,
            profile=config.matrix.suite,
            seconds=config.matrix.suite_seconds,
            seed=seed,
            resume=resume,
            llm=config.model.path,
            progress=progress,
        )


def attacked_report(config: Config, folder: Path, *, progress: Progress | None, command: str) -> Report:
    """The report of a finished run after the suite has run on it; the rest of it is as it was."""
    from fedproxy_secure.runs import run

    attack_run(config, folder, seed=config.seeds[0], progress=progress)
    return run(config, folder, resume=True, command=command)
