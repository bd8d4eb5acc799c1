"""Attack a finished run and write its report again, with the attacks' findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedproxy_secure.audit.vouched import check_finished_seeds
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import Config
from fedproxy_secure.errors import ConfigError, RunFolderError
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACK_FILES, FEDERATION, SEED_PREFIX, TRANSCRIPT
from fedproxy_secure.runtime.nearest import nearest
from fedproxy_secure.runtime.only_one import only_run_in
from fedproxy_secure.runtime.progress import Progress
from fedproxy_secure.runtime.registry import answers_of, plugged_in

# entry points, because the core does not depend on the attacks or on their threat models
SUITES, THREAT_MODELS = "fedproxy_secure.suites", "fedproxy_secure.described_threat_models"


def attack_run(
    config: Config,
    folder: Path,
    *,
    seed: int,
    jobs: int | Callable[[], int] = 1,
    progress: Progress | None = None,
) -> None:
    """Run every registered suite on a recorded run, as the section `attacks` says, and write the results.

    Results lie below the run's folder. `jobs` attacks run at once; a function is called before each attack
    begins, until it returns more than 1.

    Raises `AuditError` if the run was altered since it finished, `ConfigError` if no suite is registered,
    `RunFolderError` if the run was not recorded, or another process works in its folder.
    """
    suites = _suites(config)
    if not folder.is_dir():  # `only_run_in` would create it
        raise RunFolderError(f"{folder}: is no folder; must be that of a recorded run")
    with only_run_in(folder):
        check_finished_seeds(folder)
        for suite in suites:
            suite(
                folder,
                views=config.attacks.views,
                profile=config.attacks.suite,
                seconds=config.attacks.seconds,
                seed=seed,
                jobs=jobs,
                resume=True,
                llm=config.model.path,
                progress=progress,
            )


def check_attacks(config: Config) -> None:
    """Raise `ConfigError` unless the suite and the views that `attacks` names are installed.

    Call it before training, because the settings of a run that has begun can no longer be changed. If no
    threat model is installed, the suite checks the views itself.
    """
    if config.attacks.suite == "none":
        return
    _suites(config)
    known = [name for names in answers_of(THREAT_MODELS) for name in names]
    for view in config.attacks.views:
        if known and view not in known:
            raise ConfigError(f"attacks.views={view}: is not a known threat model; {nearest(view, known)}")


def check_transcript(config: Config) -> None:
    """Raise `ConfigError` if a run would record to where no suite of attacks reads."""
    if config.audit.folder is not None:
        raise ConfigError(
            f"audit.folder={config.audit.folder}: attacks read only the transcript in the run's own "
            "folder; leave it out, or leave --suite out"
        )


def _suites(config: Config) -> list[Callable[..., Any]]:
    suites = plugged_in(SUITES)
    if not suites:
        raise ConfigError(f"attacks.suite={config.attacks.suite}: no suite is installed; set it to none")
    return suites


def attacked_report(config: Config, folder: Path, *, progress: Progress | None, command: str) -> Report:
    """Attack a finished run and return its report, which changes only by the findings.

    Raises `RunFolderError` for a run without transcripts, which stays signed.
    """
    from fedproxy_secure.experiments.run import run

    with only_run_in(folder):
        if not any(folder.glob(f"{SEED_PREFIX}*/{FEDERATION}/{TRANSCRIPT}")):
            raise RunFolderError(
                f"{folder}: has no transcript to attack, or its transcripts were erased; leave --suite out"
            )
        place = RunFolder.resume(folder, config.with_signing_key(None))
        Witness.open(place, config, command=command).reopen(*ATTACK_FILES)
    attack_run(config, folder, seed=config.seeds[0], progress=progress)
    return run(config, folder, resume=True, command=command)
