"""Epsilon in a report, for one configuration and for all together, in numbers and in sentences.

The main number is `epsilon_spent`: it covers all trainings of a configuration together, including those of
seeds that did not finish. `epsilon_spent_one_seed` and `epsilon_claimed` cover only one training, and their
titles say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedproxy_secure.config import Config
from fedproxy_secure.dp.guarantees import guarantees, rounded_up
from fedproxy_secure.dp.ledger import all_events
from fedproxy_secure.errors import DataError, RunFolderError
from fedproxy_secure.evidence.estimate import Estimate, counted
from fedproxy_secure.evidence.measure import MeasureKind
from fedproxy_secure.evidence.measures import privacy as kinds
from fedproxy_secure.report.composition import (
    Cost,
    Training,
    added_up,
    composed,
    one_alone,
    sentence,
)
from fedproxy_secure.report.trilemma import Configuration, Measure
from fedproxy_secure.runtime.files.names import FEDERATION, PRIVACY, RESULT, SETTINGS_FILE, seed_folder

SEEDS_COMPOSE = (
    "Epsilon spent counts all seeds of a configuration together, because they train on the same records. "
    "It is the cost of that configuration alone; other configurations add to it."
)

CEILING_NOT_COUNTED = (
    "Not counted: the centralised LLM behind `gap closed`, which trains on the same records without "
    "differential privacy. The report states its accuracy; its weights are not kept."
)


@dataclass(frozen=True, kw_only=True)
class SpentTotal:
    """The privacy cost of all configurations of a report together.

    Args:
        epsilon: the number; None if no finite number is known.
        says: sentences about what composes with what, and why there is no number.
    """

    epsilon: Estimate | None = None
    says: tuple[str, ...] = ()


def unfinished_training(run: Path, seed: int, config: Config) -> list[Training]:
    """Return the training of a seed that did not finish, because it used the same records, too.

    The result is empty if the seed did not begin to train: its folder of rounds is missing or empty, or its
    ledgers have no event. The cost of a training is unknown without differential privacy, without ledgers,
    as in a deployment, and if a ledger cannot be read.

    What a deployment asks its clients is in the folder before it asks them. Clients on one machine have the
    folder of their ledgers before they exist; without differential privacy a first round that was stopped
    leaves nothing, on disk or elsewhere.
    """
    rounds, unknown = run / seed_folder(seed) / FEDERATION, Training(delta=config.privacy.target_delta)
    try:
        if not rounds.is_dir() or not any(rounds.iterdir()):
            return []
    except OSError:
        return [unknown]
    if config.privacy.unit == "none" or not (rounds / PRIVACY).is_dir():
        return [unknown]
    try:
        events = {name: spent for name, spent in all_events(rounds / PRIVACY).items() if spent}
    except (DataError, RunFolderError):
        return [unknown]
    return [replace(unknown, events=events)] if events else []


def epsilons(
    config: Config, trainings: Sequence[Training], *, seeds: Sequence[int], place: str
) -> list[Measure]:
    """Return the claimed epsilon, and those spent by all trainings together and by one alone.

    Args:
        config: the settings.
        trainings: all trainings on the records.
        seeds: the seeds that finished, at least one.
        place: the first run's folder, relative to the report.
    """
    settings = f"{place}/{SETTINGS_FILE}#privacy"
    result = f"{place}/{seed_folder(seeds[0])}/{RESULT}#events"
    cost, alone = composed(trainings), one_alone(trainings)
    delta = config.privacy.target_delta if cost is None else cost.delta
    promised = [
        _measure(
            kinds.EPSILON_CLAIMED, config.privacy.limit, "epsilon claimed, one seed alone", settings, seeds
        ),
        _measure(kinds.DELTA, delta, "delta", settings, seeds),
    ]
    if cost is None or alone is None or not cost.finite:  # such as if the ledgers are with the clients
        return promised
    spent = _measure(kinds.EPSILON_SPENT, cost.epsilon, f"epsilon spent, {_together(cost)}", result, seeds)
    how = f"{spent.estimate.how}: the client that spent most, {cost.how}"
    return [
        *promised,
        replace(spent, estimate=replace(spent.estimate, how=how)),
        _measure(kinds.EPSILON_SPENT_ONE_SEED, alone, "epsilon spent, one seed alone", result, seeds),
    ]


def guarantees_of(config: Config, trainings: Sequence[Training]) -> tuple[str, ...]:
    """Return the guarantees of one configuration, in sentences that cover all its trainings together."""
    privacy, count = config.privacy, len(trainings)
    cost, alone = composed(trainings), one_alone(trainings)
    if cost is None or alone is None:
        epsilon, delta = count * privacy.limit, count * privacy.target_delta
        each = f"({rounded_up(privacy.limit)}, {rounded_up(privacy.target_delta)})-DP"
        composes = (
            f"Seeds compose: this covers {count} trainings on the same records, each at most {each}. Their "
            "epsilons and deltas are added up, because the ledgers, which would allow a tighter bound, "
            "stay with the clients."
        )
    else:
        epsilon, delta, composes = cost.epsilon, cost.delta, sentence(cost, alone=alone)
    first, *others = guarantees(
        privacy.unit,
        epsilon=epsilon,
        delta=delta,
        clip_norm=privacy.clip_norm,
        mechanism=privacy.mechanism,
        simulated=privacy.randomness == "unsafe_simulated",
    )
    return (first, *((composes,) if count > 1 and privacy.unit != "none" else ()), *others)


def total(configurations: Sequence[Configuration], *, same_records: bool) -> SpentTotal:
    """Return the cost of all configurations of a report together, as they train on the same records.

    A configuration counts as soon as it began to train, with or without a finished seed.

    Args:
        configurations: the report's configurations.
        same_records: whether the records are known to be the same; if not, this is assumed, and epsilons
            are added up.
    """
    ran = [c for c in configurations if c.trained]
    private = [c for c in ran if c.privacy_unit != "none"]
    if not private:
        return SpentTotal()
    open_ones = [c.name for c in ran if c.privacy_unit == "none"]
    cost, why = _of_all(private, same_records=same_records)
    says = [SEEDS_COMPOSE]
    if len(ran) > 1:
        whose = "All private configurations" if open_ones else "All configurations"
        unsure = (
            ""
            if same_records
            else " It is not known whether they train on the same records; this assumes that they do."
        )
        epsilon, delta = ("", "") if cost is None else (rounded_up(cost.epsilon), rounded_up(cost.delta))
        together = why if cost is None else f"({epsilon}, {delta})-DP, {cost.how}"
        says.append(f"{whose} together: {together}.{unsure}")
    if open_ones:
        verb = "trains" if len(open_ones) == 1 else "train"
        says.append(
            f"All configurations together: no finite epsilon, because {'; '.join(open_ones)} {verb} on the "
            "same records without differential privacy."
        )
    if idle := [c.name for c in configurations if not c.trained]:
        says.append(f"Not counted, because they did not begin to train: {'; '.join(idle)}.")
    if cost is None or open_ones or not cost.finite:
        return SpentTotal(says=tuple(says))
    seeds = sorted({s for c in private for s in c.seeds}) or [0]
    exact = counted(cost.epsilon, metric="epsilon spent, all configurations", unit="epsilon", seeds=seeds)
    how = f"{exact.how}: the client that spent most, {cost.how}, at delta {cost.delta:g}"
    return SpentTotal(epsilon=replace(exact, how=how), says=tuple(says))


def _of_all(private: Sequence[Configuration], *, same_records: bool) -> tuple[Cost | None, str]:
    """Return the composed cost of the events, or the reason why it is unknown."""
    units = sorted({c.privacy_unit for c in private})
    if len(units) > 1:
        return None, f"not known, because their units differ ({', '.join(units)})"
    deltas = []
    for c in private:
        epsilon, delta = c.measure(kinds.EPSILON_SPENT.key), c.measure(kinds.DELTA.key)
        if epsilon is None or delta is None or not c.spends:
            return None, f"not known, because {c.name} does not say what it spent"
        deltas.append(delta.estimate.value)
    least = min(deltas)
    if same_records:
        return composed([Training(delta=least, events=c.spends) for c in private]), ""
    share = least / len(private)  # so that together they hold at this delta
    alone = [composed([Training(delta=share, events=c.spends)]) for c in private]
    return added_up([c for c in alone if c is not None]), ""


def _together(cost: Cost) -> str:
    return "one training" if cost.trainings == 1 else f"{cost.trainings} trainings together"


def _measure(kind: MeasureKind, value: float, metric: str, source: str, seeds: Sequence[int]) -> Measure:
    estimate = counted(value, metric=metric, unit=kind.unit, seeds=seeds)
    return Measure.of_kind(kind, estimate, source)
