"""The function that measures one run; the core finds it by the entry point group `fedproxy_secure.suites`.

The core does not import attacks. It asks every function that is registered in that group for findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedproxy_secure.evidence.finding import Finding, Profile
from fedproxy_secure.runtime.progress import Progress

WORKERS_NEED = ("attacks.preload",)  # modules that processes which run attacks load first


def measure(
    run: Path,
    *,
    views: Sequence[str],
    profile: Profile,
    seconds: float,
    seed: int,
    jobs: int | Callable[[], int],
    resume: bool,
    llm: str | None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Run a profile's suite on a recorded run from each view, and write the results below the run's folder.

    Args:
        run: folder of a recorded run.
        views: names of threat models.
        profile: how much the suite spends: `smoke`, `standard` or `full`.
        seconds: the most that one attack may take from one view.
        seed: seed of the attacks' own randomness.
        jobs: how many attacks run at once, in processes of their own if more than one; a function is called
            before each attack, until it returns more than one.
        resume: whether to keep what an earlier call finished.
        llm: path of the owner's model, for views of the server.
        progress: where the suite reports its progress; by default nowhere.

    Raises `ConfigError` for an unknown view, `RunFolderError` for a run without a transcript.
    """
    from attacks.registry import suite
    from attacks.suite import run_suite
    from fedproxy_secure.runtime.preload import warm_up
    from threat_models import get

    def warmed_jobs() -> int:
        at_once = jobs() if callable(jobs) else jobs
        if at_once > 1:
            warm_up(WORKERS_NEED)
        return at_once

    return run_suite(
        run,
        attacks=suite(profile),
        threat_models=[get(v) for v in views],
        profile=profile,
        seconds=seconds,
        seed=seed,
        resume=resume,
        llm=llm,
        jobs=warmed_jobs if callable(jobs) else warmed_jobs(),
        progress=progress,
    )
