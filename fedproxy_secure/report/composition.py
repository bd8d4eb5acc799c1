"""The privacy cost of several trainings on the same records: composition over seeds and runs.

Every seed is another training on the same records, so the epsilons of seeds compose: three seeds of epsilon
8 each do not have epsilon 8 together. These are composed:

    seeds            of one configuration: their events, client by client, by the accountant
    configurations   of one report, if they train on the same records: in the same way
    runs             that are joined: in the same way if their settings name the same records; otherwise
                     it is unknown whether they share records, and epsilons and deltas are added up

Guarantees: `Cost.epsilon` at `Cost.delta` bounds the cost of everything counted together, for the client
that spent most. Not guaranteed: anything that was not counted, such as runs without a folder in the report,
or one owner's records under the names of two clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from fedproxy_secure.dp.accounting import Spent, spent
from fedproxy_secure.dp.events import DiscreteSum, Event, SampledGaussian, from_fields, to_fields
from fedproxy_secure.dp.guarantees import rounded_up
from fedproxy_secure.errors import DataError

Spends = Mapping[str, tuple[Event, ...]]  # events by client


@dataclass(frozen=True, kw_only=True)
class Training:
    """The privacy events of one training.

    Args:
        delta: the delta that epsilons are stated at.
        events: privacy events of each client; {} if they are not known.
    """

    delta: float
    events: Spends = field(default_factory=dict)

    @classmethod
    def of_result(cls, result: Mapping[str, Any], *, delta: float) -> Training:
        """Return the training that a seed's `result.json` describes.

        Raises `DataError` if something in it is not an event or a number, or if events of a client are
        missing.
        """
        try:
            epsilons = {str(name): float(cost["epsilon"]) for name, cost in result["spent"].items()}
            events = {
                str(name): tuple(from_fields(e) for e in records)
                for name, records in result["events"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"what was spent: {error}") from error
        if events.keys() != epsilons.keys():
            raise DataError("what was spent: epsilons and events are not of the same clients")
        for name, epsilon in epsilons.items():
            if epsilon != 0 and not events[name]:
                raise DataError(f"what was spent: {name} spent epsilon {epsilon:g} in no event")
        return cls(delta=delta, events=events)

    @property
    def alone(self) -> dict[str, float]:
        """Epsilon of each client if nothing else is counted."""
        return {name: cost_of(merged(events), self.delta).epsilon for name, events in self.events.items()}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The (`epsilon`, `delta`)-DP cost of `trainings` together, for the client that spent most.

    Args:
        epsilon, delta: the cost.
        client: the client that spent most.
        trainings: number of trainings.
        how: how it was computed, in words.
        spent: the cost by both accountants; None where epsilons were added up.
    """

    epsilon: float
    delta: float
    client: str
    trainings: int
    how: str
    spent: Spent | None = None

    @property
    def finite(self) -> bool:
        """Whether the epsilon is finite, so that it bounds something."""
        return math.isfinite(self.epsilon)


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the same events, with equal ones merged into one of more steps or rounds.

    The order of events does not matter to composition.
    """
    counts: dict[Event, int] = {}
    for event in events:
        count = event.steps if isinstance(event, SampledGaussian) else event.rounds
        single = replace(event, steps=1) if isinstance(event, SampledGaussian) else replace(event, rounds=1)
        counts[single] = counts.get(single, 0) + count
    return tuple(_times(single, count) for single, count in counts.items())


def to_json(spends: Spends) -> dict[str, list[dict[str, Any]]]:
    """Return the events as plain values, which `Training.of_result` reads."""
    return {name: [to_fields(e) for e in merged(events)] for name, events in spends.items()}


def joined(trainings: Sequence[Training]) -> dict[str, tuple[Event, ...]]:
    """Return all events of every client; {} if the events of some training are not known."""
    by_client: dict[str, tuple[Event, ...]] = {}
    for training in trainings:
        if not training.events:
            return {}
        for name, events in training.events.items():
            by_client[name] = merged((*by_client.get(name, ()), *events))
    return by_client


def composed(trainings: Sequence[Training]) -> Cost | None:
    """Return the cost of trainings on the same records together; None if that of one is not known."""
    events = joined(trainings)
    if not events:
        return None
    delta, count = min(t.delta for t in trainings), len(trainings)
    name, worst = _worst({name: cost_of(client_events, delta) for name, client_events in events.items()})
    how = f"composed by the {worst.accountant.upper()} accountant"
    return Cost(epsilon=worst.epsilon, delta=delta, client=name, trainings=count, how=how, spent=worst)


def one_alone(trainings: Sequence[Training]) -> float | None:
    """Return the largest epsilon of a client in one training; None if some cost is not known."""
    if not trainings or not all(t.events for t in trainings):
        return None
    return max(epsilon for t in trainings for epsilon in t.alone.values())


def added_up(costs: Sequence[Cost]) -> Cost:
    """Return the cost of trainings together if it is not known whether they share records.

    They are assumed to share records, which gives the larger cost: epsilons and deltas are added up.
    """
    worst = max(costs, key=lambda c: c.epsilon)
    return Cost(
        epsilon=math.fsum(c.epsilon for c in costs),
        delta=math.fsum(c.delta for c in costs),
        client=worst.client,
        trainings=sum(c.trainings for c in costs),
        how="epsilons and deltas added up",
    )


def sentence(cost: Cost, *, alone: float) -> str:
    """Return the sentence for a configuration's guarantees: what composes, and one seed's own cost."""
    return (
        f"Seeds compose: the {cost.trainings} trainings use the same records, so epsilon "
        f"{rounded_up(cost.epsilon)} covers all of them together ({cost.how}); one seed alone spent "
        f"{rounded_up(alone)}."
    )


@lru_cache(maxsize=1024)
def cost_of(events: tuple[Event, ...], delta: float) -> Spent:
    """Return `dp.accounting.spent` of events; cached, as clients with as many records have equal events."""
    return spent(events, delta=delta)


def _times(event: Event, count: int) -> Event:
    if isinstance(event, DiscreteSum):
        return replace(event, rounds=count)
    return replace(event, steps=count)


def _worst(costs: Mapping[str, Spent]) -> tuple[str, Spent]:
    return max(costs.items(), key=lambda pair: pair[1].epsilon)
