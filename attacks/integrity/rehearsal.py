"""A federation in memory, for attacks that need rounds that were not recorded: poisoning, shadow rounds.

The recorded clients train on their recorded records through the project's own client, with the run's PCR
and FedProx. Updates merge by the project's own fusion rules, in the clear or over sums as under masking,
with the server's checks of a sum and of a step. The server then takes the rule's step at the run's server
learning rate. No messages are sent, since the rest of masking does not affect the result.

Rounds have the learning rates of the run's first rounds, wherever the rehearsal starts.

Not rehearsed: differential privacy, rounds of a part of the clients, H-TIES' weights under masking other
than `uniform`, and a clip that follows the clients from round to round.
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
from fedproxy_secure.federate.fusion.algorithms import keep_largest
from fedproxy_secure.federate.fusion.elections import election_of, weighs_clients
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import ServerState, advance, fuse_round
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.models.adapters import tensor_sizes
from fedproxy_secure.models.lent import LentModel
from fedproxy_secure.protect.broadcast import broadcast_of, train_from
from fedproxy_secure.protect.secure_sum.step_bound import held, longest_step
from fedproxy_secure.protect.secure_sum.terms import chosen_clip, largest_clip
from fedproxy_secure.record.view import PublicSettings
from fedproxy_secure.secagg.granularity import (
    Granularity,
    Layout,
    Merged,
    contribution,
    merge,
    segments_of,
)
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
        name: a fusion rule's, or `coordinate` or `block`: the run's own rule over sums. With a clip a rule
            that is linear is computed over sums, too.
        clip: largest magnitude of a coordinate that the protocol allows; None without a protocol.
    """

    name: str
    clip: float | None = None


def client_of(
    box: WhiteBox,
    settings: PublicSettings,
    name: str,
    items: Sequence[Encoded],
    seed: int | None = None,
) -> LocalClient:
    """Return the project's client on these records, with the white box's model.

    With `seed` None the client has the run's seed.
    """
    return LocalClient(
        name=name,
        model=LentModel(box.tuned),
        items=items,
        truncated=0,
        pad_id=box.tokenizer.pad_token_id,
        local=LocalConfig.model_validate(settings.local.model_dump()),
        rounds=settings.federate.rounds,
        seed=settings.seed if seed is None else seed,
    )


def with_steps(settings: PublicSettings, steps: int, *, round: int) -> PublicSettings:
    """Return settings of rounds of `steps` steps, all at the rate with which `round` of the run begins."""
    rate = settings.first_rate(min(round, settings.federate.rounds - 1))  # the last adapter has no round
    changes = {"steps": steps, "learning_rate": rate, "schedule": "constant"}
    return settings.changed(local=settings.local.model_copy(update=changes))


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


def clip_of(rule: Rule, settings: PublicSettings, number: int, *, lied: bool) -> float | None:
    """Return the clip of a round: as the learning rates fall, so does it, even one in the settings.

    `lied`: a client falsely claimed in each round before that values were clipped. The clip then doubles
    each time, up to what clients accept.
    """
    if rule.clip is None or settings.protect.clip is not None:
        return rule.clip and chosen_clip(settings, number)
    clip = rule.clip * (settings.total_rate(number) / settings.total_rate(0))
    if not lied:
        return clip
    return max(clip, min(rule.clip * 2.0**number, largest_clip(settings, number)))


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
    job = job_of(settings)
    sizes = np.array(tensor_sizes(box.tuned), dtype=np.int64)
    state = ServerState(round=0, adapter=start.copy(), sizes=sizes)
    for number in range(count):
        updates: list[ClientUpdate] = []
        for name, items in sorted(records.items()):
            budget.check()
            seed = (seeds or {}).get(name, settings.seed)
            key = (name, seed, tuple(items)) if number == 0 else None
            update = None if key is None else first.get(key)
            if update is None:
                client = client_of(box, settings, name, items, seed=seed)
                update = train_from(client, broadcast_of(job, state))
            if key is not None:
                first[key] = update
            craft = (crafts or {}).get(name)
            if craft is not None:
                changed = craft(update.update, number).astype(np.float32)
                update = replace(update, update=changed)
            updates.append(update)
        round_rule = replace(rule, clip=clip_of(rule, settings, number, lied=bool(unclipped)))
        before, state = state, advanced(state, updates, round_rule, settings, unclipped)
        if trace is not None:
            trace.append(state.adapter - before.adapter)
    return state.adapter


def advanced(
    state: ServerState,
    updates: Sequence[ClientUpdate],
    rule: Rule,
    settings: PublicSettings,
    unclipped: Collection[str] = (),
) -> ServerState:
    """Return the server's state after a round with these updates; clients in `unclipped` do not clip."""
    if rule.name not in _ELECTED:
        settings = settings.changed(fusion=settings.fusion.model_copy(update={"rule": rule.name}))
    fusion = settings.fusion
    if rule.name not in _ELECTED and not (fusion.linear and rule.clip is not None):
        clip = np.inf if rule.clip is None else rule.clip
        inside = [replace(u, update=np.clip(u.update, -clip, clip)) for u in updates]
        return fuse_round(state, inside, fusion)[0]
    merged = _over_sums(state, updates, rule, settings, unclipped)
    if rule.clip is None or settings.privacy.unit == "client":
        return advance(state, merged.step, fusion, conflict=merged.conflict)
    most = longest_step(
        job_of(settings),
        state.adapter,
        round=state.round,
        cohort=len(updates),
        threshold=len(updates),
        clients=len(updates),
        weight=_weight(updates, settings, unclipped),
    )
    return advance(state, held(merged.step, most)[0], fusion, conflict=merged.conflict)


_ELECTED: dict[str, Granularity] = {"coordinate": "coordinate", "block": "block"}


def _over_sums(
    state: ServerState,
    updates: Sequence[ClientUpdate],
    rule: Rule,
    settings: PublicSettings,
    unclipped: Collection[str],
) -> Merged:
    """Return what the server makes of the sums of the updates, which clients trim and clip as in a run."""
    fusion, election = settings.fusion, election_of(settings.fusion)
    kept = 1.0 if election is None else election.kept_share(fusion)
    free = [u.client in unclipped for u in updates]
    tau = [
        u.update if is_free else keep_largest(u.update, kept)
        for u, is_free in zip(updates, free, strict=True)
    ]
    sizes = (len(state.adapter),) if state.sizes is None else tuple(state.sizes.tolist())
    layout, granularity = Layout(sizes=sizes), _ELECTED.get(rule.name, "plain")
    clip = rule.clip if rule.clip is not None else float(np.abs(tau).max()) + 1e-9
    segments = segments_of(granularity, layout, clip=clip, clients=len(tau), bits=BITS)
    plan = RingPlan(bits=BITS, clients=len(tau), segments=segments)
    parts = [
        _words(t, granularity, layout, plan)
        if is_free
        else contribution(np.clip(t, -clip, clip), granularity, layout, plan)
        for t, is_free in zip(tau, free, strict=True)
    ]
    sums = {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0]}
    # the ring ends at the sum of all clips; a sum beyond one end wraps around to the other
    reach = 2 ** (BITS - 1) * plan.step_of(plan.segments[0])
    sums["update"] = (sums["update"].astype(np.float64) + reach) % (2 * reach) - reach
    return merge(
        sums,
        granularity,
        layout,
        plan,
        clients=len(tau),
        weight=_weight(updates, settings, unclipped),
        rho=1.0 if election is None else election.margin(fusion),
        kept=kept,
    )


def _weight(updates: Sequence[ClientUpdate], settings: PublicSettings, unclipped: Collection[str]) -> float:
    """Return the sum of the clients' weights in the mean, each 1 unless H-TIES weighs clients.

    Then a client in `unclipped` claims the least weight that the server accepts.
    """
    weight = float(len(updates))
    if weighs_clients(settings.fusion) and settings.protect.weights != "uniform":
        weight -= sum(u.client in unclipped for u in updates) * (1 - LEAST_WEIGHT)
    return weight


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
