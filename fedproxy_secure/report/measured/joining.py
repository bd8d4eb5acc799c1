"""Join a number of each seed into one measure over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedproxy_secure.evidence.answers import over_seeds_or_records
from fedproxy_secure.evidence.estimate import Estimate, counted, mean_interval
from fedproxy_secure.evidence.losses import loss_over_seeds_or_records, measured
from fedproxy_secure.evidence.measure import MeasureKind
from fedproxy_secure.report.measured.seed import SeedRun
from fedproxy_secure.report.trilemma import Measure
from fedproxy_secure.runtime.files.names import RESULT


def answers(
    seeds: Sequence[SeedRun], kind: MeasureKind, statistic: Callable[..., float], models: Sequence[str]
) -> list[Measure]:
    """Return a statistic of models' shares of correct answers; an empty list if all tasks are free text.

    Args:
        seeds: the seeds.
        kind: the measure.
        statistic: maps the shares of `models`, in their order, to the number.
        models: names of the models.
    """
    by_seed = {s.seed: [s.answers(model) for model in models] for s in seeds}
    if not all(bits for per_model in by_seed.values() for bits in per_model):
        return []
    estimate = over_seeds_or_records(by_seed, statistic, kind.estimate_name)
    return [Measure.of_kind(kind, estimate, seeds[0].source(RESULT, models[0]))]


def losses(
    seeds: Sequence[SeedRun], kind: MeasureKind, statistic: Callable[..., float], models: Sequence[str]
) -> list[Measure]:
    """Return a statistic of models' losses on free text; an empty list unless every seed has finite ones.

    The arguments are those of `answers`.
    """
    by_seed = {s.seed: [s.losses(model) for model in models] for s in seeds}
    if not all(measured(lost) for per_model in by_seed.values() for lost in per_model):
        return []
    estimate = loss_over_seeds_or_records(by_seed, statistic, kind.estimate_name, unit=kind.unit)
    return [Measure.of_kind(kind, estimate, seeds[0].source(RESULT, f"{models[0]}_loss"))]


def values(
    seeds: Sequence[SeedRun], kind: MeasureKind, by_seed: Mapping[int, float], *, source: str = ""
) -> list[Measure]:
    """Return the measure of a number of every seed; an empty list unless every seed has one.

    Args:
        seeds: the seeds.
        kind: the measure.
        by_seed: the number of each seed.
        source: where the number can be looked up; by default its key in the first seed's result.
    """
    if len(by_seed) < len(seeds):
        return []
    place = source or seeds[0].source(RESULT, kind.key)
    return [Measure.of_kind(kind, exact_or_mean(by_seed, kind), place)]


def exact_or_mean(by_seed: Mapping[int, float], kind: MeasureKind) -> Estimate:
    """Return the mean over seeds, which is exact if it is counted and the same for every seed."""
    if kind.counted and len(set(by_seed.values())) == 1:
        value = next(iter(by_seed.values()))
        return counted(value, metric=kind.estimate_name, unit=kind.unit, seeds=by_seed, n=len(by_seed))
    return mean_interval(by_seed, metric=kind.estimate_name, unit=kind.unit, within=kind.within)
