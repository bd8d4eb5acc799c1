"""What the attacks on one configuration have shown together: what a gate may rest on.

A resisted attempt counts only where it was made on every seed. An attack that could not tell, or raised, is
no evidence, whatever others have shown beside it.
"""

from __future__ import annotations

from collections.abc import Set

from fedproxy_secure.report.finding import Finding, Outcome
from fedproxy_secure.report.trilemma import Configuration

UNDECIDED = (Outcome.ERROR, Outcome.INCONCLUSIVE)
SHOWN = (Outcome.SUCCEEDED, Outcome.RESISTED)


def findings_of(configuration: Configuration, attacks: Set[str], view: str | None = None) -> list[Finding]:
    """The findings of these attacks, by id or name, from one view or from any."""
    return [
        f for f in configuration.findings if attacks & {f.id, f.attack} and (view is None or f.view == view)
    ]


def shown(
    configuration: Configuration, attacks: Set[str], view: str | None = None
) -> tuple[Outcome | None, str]:
    """The outcome of all these attacks together, and the sentence that decides; None: it was not tried.

    One success is a success, else one undecided attempt leaves all undecided. RESISTED: on every seed, some
    attempt was. NOT_APPLICABLE: tried on every seed, and none had anything to attack.
    """
    found = findings_of(configuration, attacks, view)
    for outcome in (Outcome.SUCCEEDED, *UNDECIDED):
        if first := _first(found, outcome):
            return outcome, told(first)
    for outcome in (Outcome.RESISTED, Outcome.NOT_APPLICABLE):
        if _on_every_seed(configuration, found, (outcome,)):
            return outcome, told(next(f for f in found if f.outcome == outcome))
    return None, _untried(found, attacks, view)


def weakness(configuration: Configuration, attacks: Set[str]) -> tuple[Outcome | None, str] | None:
    """Why a number that these attacks measured proves nothing; None: it may be relied on.

    The outcome is that of an attempt that could not tell; None where some seed has no attempt that could.
    """
    found = findings_of(configuration, attacks)
    for outcome in UNDECIDED:
        if first := _first(found, outcome):
            return outcome, told(first)
    if not _on_every_seed(configuration, found, SHOWN):
        return None, _untried(found, attacks)
    return None


def told(finding: Finding) -> str:
    """One sentence."""
    return f"{finding.id} {finding.attack} from {finding.view}: {finding.outcome}: {finding.reason}"


def _untried(found: list[Finding], attacks: Set[str], view: str | None = None) -> str:
    where = "" if view is None else f" from {view}"
    return f"{', '.join(sorted(attacks))}{where}: {'not shown on every seed' if found else 'not tried'}"


def _first(found: list[Finding], outcome: Outcome) -> Finding | None:
    return next((f for f in found if f.outcome == outcome), None)


def _on_every_seed(
    configuration: Configuration, found: list[Finding], outcomes: tuple[Outcome, ...]
) -> bool:
    having = {f.seed_folder for f in found if f.outcome in outcomes}
    return bool(configuration.seeds) and having >= {f"seed-{s}" for s in configuration.seeds}
