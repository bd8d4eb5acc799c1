"""Everything known about one configuration: measures, curves, findings, ledger, guarantees, stamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedproxy_secure.config import Config
from fedproxy_secure.dp.guarantees import SCORED
from fedproxy_secure.evidence.estimate import counted
from fedproxy_secure.evidence.measure import AXES, Axis
from fedproxy_secure.evidence.measures.privacy import EFFECTIVE_COHORT
from fedproxy_secure.report.composition import Training, joined
from fedproxy_secure.report.measured.attacks import measured_by_attacks
from fedproxy_secure.report.measured.cost import cost, ledger_rows
from fedproxy_secure.report.measured.ip import ip
from fedproxy_secure.report.measured.performance import curves, performance
from fedproxy_secure.report.measured.seed import SeedRun
from fedproxy_secure.report.spending import epsilons
from fedproxy_secure.report.stamps import effective_cohort, simulated_noise, unsafe_stamps
from fedproxy_secure.report.trilemma import Configuration, Measure
from fedproxy_secure.runtime.files.names import FEDERATION, ROUNDS, seed_folder


def configuration_of(
    seeds: Sequence[SeedRun],
    config: Config,
    *,
    name: str,
    settings: Mapping[str, str],
    recipe: str = "",
    guarantees: Sequence[str] = (),
    failed: Sequence[str] = (),
    commands: Sequence[str] = (),
    besides: Sequence[Training] = (),
) -> Configuration:
    """Return one configuration with all measurements of its finished seeds.

    Args:
        seeds: the seeds that finished.
        config: the settings.
        name: name of the configuration.
        settings: what was swept.
        recipe: a swept protection's options and own settings, in words.
        guarantees: what holds and what does not, in sentences; for a private run with findings a sentence
            is added that their scores are outside its epsilon.
        failed: seeds that did not finish, and why.
        commands: commands that run this configuration alone.
        besides: other trainings on the same records, such as those of seeds that did not finish.
    """
    private = config.privacy.unit != "none"
    trainings = [*(s.training(config) for s in seeds), *besides] if private else []
    configuration = Configuration(
        name=name,
        scheme=config.protect.scheme,
        recipe=recipe,
        settings=settings,
        seeds=tuple(s.seed for s in seeds),
        unsafe=unsafe_stamps(config),
        privacy_unit=config.privacy.unit,
        simulated_noise=simulated_noise(config),
        api_answers=config.api.answers,
        failed=tuple(failed),
        commands=tuple(commands),
        spends=joined(trainings),
        trained=bool(seeds or besides),
    )
    if not seeds:
        return configuration
    findings = tuple(f for s in seeds for f in s.findings)
    return replace(
        configuration,
        measures=_measures(seeds, config, trainings),
        curves=curves(seeds),
        findings=findings,
        ledger=ledger_rows(seeds),
        guarantees=(*guarantees, *((SCORED,) if private and findings else ())),
        folders={seed_folder(s.seed): s.place for s in seeds},
    )


def _measures(
    seeds: Sequence[SeedRun], config: Config, trainings: Sequence[Training]
) -> tuple[Measure, ...]:
    """Return the measures axis by axis, first those of the run itself, then those of attacks."""
    by_run: dict[Axis, list[Measure]] = {
        "performance": performance(seeds),
        "privacy": _privacy(seeds, config, trainings),
        "ip": ip(seeds),
        "cost": cost(seeds),
    }
    by_attacks = measured_by_attacks(seeds)
    return tuple(m for axis in AXES for m in (*by_run[axis], *(f for f in by_attacks if f.axis == axis)))


def _privacy(seeds: Sequence[SeedRun], config: Config, trainings: Sequence[Training]) -> list[Measure]:
    """Return epsilon and delta if the run is private, and the cohort that a sum hides an update in."""
    numbers = [s.seed for s in seeds]
    fewest = min(len(r["participants"]) for s in seeds for r in s.rounds)
    cohort = counted(
        effective_cohort(config, fewest=fewest),
        metric=EFFECTIVE_COHORT.estimate_name,
        unit=EFFECTIVE_COHORT.unit,
        seeds=numbers,
    )
    return [
        *(epsilons(config, trainings, seeds=numbers, place=seeds[0].place) if trainings else []),
        Measure.of_kind(
            EFFECTIVE_COHORT, cohort, seeds[0].source(f"{FEDERATION}/{ROUNDS}", "participants")
        ),
    ]
