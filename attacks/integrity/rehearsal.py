"""A federation in memory, for attacks that need rounds that were not recorded: poisoning, shadow rounds.

The recorded clients train on their recorded records through the project's own client. Updates merge by the
project's own fusion rules, in the clear or over sums as under masking, with the server's checks of a sum
and of a step. No messages are sent, since the rest of masking does not affect the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attacks.base import Budget
from attacks.white_box import WhiteBox
from fedproxy_secure.config import AuditConfig, ClientConfig, LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate.client import LocalClient
from fedproxy_secure.federate.fusion.algorithms import analyse
from fedproxy_secure.federate.fusion.elections import weighs_clients
from fedproxy_secure.federate.fusion.rule import fusion_rule_of
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.models.adapters import tensor_sizes
from fedproxy_secure.models.lent import LentModel
from fedproxy_secure.protect.secure_sum.step_bound import held, longest_step
from fedproxy_secure.protect.secure_sum.terms import largest_clip
from fedproxy_secure.record.view import PublicSettings
from fedproxy_secure.secagg.granularity import Granularity, Layout, contribution, merge, segments_of
from fedproxy_secure.secagg.ring import RingPlan
from fedproxy_secure.secagg.sketch import LEAST_WEIGHT

Craft = Callable[[np.ndarray, int], np.ndarray]  # (honest update, round) -> what is sent
# what a client trained, by its name, its seed and its records
FirstRound = dict[tuple[str, int, tuple[Encoded, ...]], ClientUpdate]
BITS = 32


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a rehearsal merges updates.

    Args:
        name: a fusion rule's in the clear, or `fedavg`, `coordinate` or `block` over sums.
        clip: largest magnitude of a coordinate that the protocol allows; None without a protocol.
    """

    name: str
    clip: float | None = None


def client_of(
    box: WhiteBox,
    settings: PublicSettings,
    name: str,
    items: Sequence[Encoded],
    steps: int | None = None,
    seed: int | None = None,
) -> LocalClient:
    """Return the project's client on these records, with the white box's model.

    With `seed` None the client has the run's seed.
    """
    local = settings.local if steps is None else settings.local.model_copy(update={"steps": steps})
    return LocalClient(
        name=name,
        model=LentModel(box.tuned),
        items=items,
        truncated=0,
        pad_id=box.tokenizer.pad_token_id,
        local=LocalConfig.model_validate(local.model_dump()),
        seed=settings.seed if seed is None else seed,
    )


def job_of(settings: PublicSettings) -> FederationJob:
    """Return the public part of a run's job, without its clients' records."""
    return FederationJob(
        seed=settings.seed,
        clients=tuple(ClientConfig(name=n, task="classification") for n in settings.clients),
        data_root=None,
        max_tokens=settings.max_tokens,
        adapter=settings.adapter,
        local=settings.local,
        fusion=settings.fusion,
        federate=settings.federate,
        protect=settings.protect,
        privacy=settings.privacy,
        audit=AuditConfig(),
    )


def lied_clip(rule: Rule, settings: PublicSettings, number: int) -> float | None:
    """Return the clip of a round after a client falsely claimed in each round that values were clipped.

    The clip doubles each time, up to what clients accept. A clip in the settings stays as it is.
    """
    if rule.clip is None or number == 0 or settings.protect.clip is not None:
        return rule.clip
    return max(rule.clip, min(rule.clip * 2.0**number, largest_clip(settings.local)))


def rounds(
    box: WhiteBox,
    settings: PublicSettings,
    start: np.ndarray,
    records: Mapping[str, Sequence[Encoded]],
    *,
    count: int,
    rule: Rule,
    budget: Budget,
    crafts: Mapping[str, Craft] | None = None,
    unclipped: Collection[str] = (),
    seeds: Mapping[str, int] | None = None,
    trace: list[np.ndarray] | None = None,
    first: FirstRound | None = None,
) -> np.ndarray:
    """Return the adapter, float32 [d], after some rounds.

    Args:
        box: the proxy.
        settings: the run's public settings.
        start: the adapter before the first round, float32 [d].
        records: each client's records, by name.
        count: number of rounds.
        rule: how updates merge.
        budget: limits of the attack.
        crafts: by client, the function that changes its honest update before it sends it.
        unclipped: clients whose words go into the ring unclipped, and whose control words lie.
        seeds: seeds of clients that do not use the run's seed.
        trace: a list to which each round's step is added.
        first: updates of the first round from earlier calls with this box, these settings and this start.
            They are reused and extended, because the first round of honest clients does not depend on the
            rule and the play. Later rounds depend on the rule and are not kept.
    """
    first = {} if first is None else first
    adapter = start.copy()
    sizes = tuple(tensor_sizes(box.tuned))
    for number in range(count):
        updates: list[ClientUpdate] = []
        for name, items in sorted(records.items()):
            budget.check()
            seed = (seeds or {}).get(name, settings.seed)
            key = (name, seed, tuple(items)) if number == 0 else None
            update = None if key is None else first.get(key)
            if update is None:
                client = client_of(box, settings, name, items, seed=seed)
                update = client.train(round=number, start=adapter)
            if key is not None:
                first[key] = update
            craft = (crafts or {}).get(name)
            if craft is not None:
                changed = craft(update.update, number).astype(np.float32)
                update = replace(update, update=changed)
            updates.append(update)
        round_rule = replace(rule, clip=lied_clip(rule, settings, number)) if unclipped else rule
        step = _merged(updates, round_rule, settings, sizes, adapter, unclipped)
        if trace is not None:
            trace.append(step)
        adapter = adapter + step
    return adapter


def _merged(
    updates: Sequence[ClientUpdate],
    rule: Rule,
    settings: PublicSettings,
    sizes: tuple[int, ...],
    adapter: np.ndarray,
    unclipped: Collection[str],
) -> np.ndarray:
    fusion = settings.fusion
    tau = np.stack([u.update for u in updates]).astype(np.float32)
    free = np.array([u.client in unclipped for u in updates])
    if rule.clip is not None:
        tau[~free] = np.clip(tau[~free], -rule.clip, rule.clip)
    if rule.name not in _GRANULARITY:
        if rule.clip is not None:
            tau = np.clip(tau, -rule.clip, rule.clip)
        named = fusion.model_copy(update={"rule": rule.name})
        return fusion_rule_of(named).merge(tau, analyse(tau), fusion)
    if rule.name == "fedavg" and rule.clip is None:
        return np.asarray(tau.mean(axis=0))
    layout, granularity = Layout(sizes=sizes), _GRANULARITY[rule.name]
    clip = rule.clip if rule.clip is not None else float(np.abs(tau).max()) + 1e-9
    segments = segments_of(granularity, layout, clip=clip, clients=len(tau), bits=BITS)
    plan = RingPlan(bits=BITS, clients=len(tau), segments=segments)
    parts = [
        _words(t, granularity, layout, plan) if is_free else contribution(t, granularity, layout, plan)
        for t, is_free in zip(tau, free, strict=True)
    ]
    sums = {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0]}
    # the ring ends at the sum of all clips; a sum beyond one end wraps around to the other
    reach = 2 ** (BITS - 1) * plan.step_of(plan.segments[0])
    sums["update"] = (sums["update"].astype(np.float64) + reach) % (2 * reach) - reach
    weight = float(len(tau))
    if weighs_clients(settings.fusion) and settings.protect.weights != "uniform":
        weight -= float(free.sum()) * (1 - LEAST_WEIGHT)  # the least weight that the server accepts
    merged = merge(
        sums, granularity, layout, plan, clients=len(tau), weight=weight, rho=fusion.rho, kept=1.0
    )
    if rule.clip is None or settings.privacy.unit == "client":
        return merged.step
    most = longest_step(
        job_of(settings),
        adapter,
        cohort=len(tau),
        threshold=len(tau),
        clients=len(tau),
        weight=weight,
    )
    return held(merged.step, most)[0]


_GRANULARITY: dict[str, Granularity] = {"fedavg": "plain", "coordinate": "coordinate", "block": "block"}


def _words(
    values: np.ndarray, granularity: Granularity, layout: Layout, plan: RingPlan
) -> dict[str, np.ndarray]:
    """Return the segments that a client that does not clip sends for values, float [d].

    It sends squares of zero, so that its values count as agreement. If signs are counted it keeps to the
    clip, because more mass than the counts allow would end the round.
    """
    if granularity == "coordinate":
        clip = plan.segments[0].clip or 0.0
        return contribution(np.clip(values, -clip, clip), granularity, layout, plan)
    words = {"update": values}
    if granularity == "block":
        words["squares"] = np.zeros(len(layout.starts()))
    return words
