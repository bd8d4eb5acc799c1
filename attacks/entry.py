"""What the core calls, by the entry point group `fedproxy_secure.suites`: measure one run.

The core does not know who attacks it; it asks whatever is registered there for findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedproxy_secure.progress import Progress
from fedproxy_secure.report.finding import Finding, Profile


def measure(
    run: Path,
    *,
    views: Sequence[str],
    profile: Profile,
    seconds: float,
    seed: int,
    resume: bool,
    llm: str | None,
    progress: Progress | None = None,
) -> list[Finding]:
    """The suite of a profile from each view on a recorded run; results are written below its folder.

    Args:
        run: folder of a run that was recorded.
        views: names of threat models.
        seconds: the most that one attack may take from one view.
        llm: the owner's model, for views of the server.

    Raises `ConfigError` for an unknown view, `RunFolderError` for a run without a transcript.
    """
    from attacks.base import suite
    from attacks.suite import run_suite
    from threat_models import get

    return run_suite(
        run,
        attacks=suite(profile),
        threat_models=[get(v) for v in views],
        profile=profile,
        seconds=seconds,
        seed=seed,
        resume=resume,
        llm=llm,
        progress=progress,
    )
