"""A federation in memory, for attacks that need rounds which nobody recorded: poisoning, shadow rounds.

The recorded clients train on their recorded records through the project's own client, and updates merge by
the project's own fusion rules, in the clear or over sums of quantised updates as under masking. No messages
flow: what masking adds besides rounding and clipping is not at stake here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attacks.base import Budget
from attacks.white_box import WhiteBox
from fedproxy_secure.config import LocalConfig
from fedproxy_secure.data.encode import Encoded
from fedproxy_secure.federate import fusion as rules
from fedproxy_secure.federate.adapters import tensor_sizes
from fedproxy_secure.federate.client import LocalClient
from fedproxy_secure.federate.update import ClientUpdate
from fedproxy_secure.record.view import PublicSettings
from fedproxy_secure.secagg.granularity import Granularity, Layout, contribution, merge, segments_of
from fedproxy_secure.secagg.ring import RingPlan

Craft = Callable[[np.ndarray, int], np.ndarray]  # (honest update, round) -> what is sent
# what a client trained, by its name and a hash of its records
FirstRound = dict[tuple[str, int], ClientUpdate]
BITS = 32


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a rehearsal merges: `fedavg` or `h_ties` in the clear, or over sums `coordinate` or `block`.

    `clip`: largest magnitude of a coordinate that the protocol lets through; None: no protocol.
    """

    name: str
    clip: float | None = None


def client_of(
    box: WhiteBox, settings: PublicSettings, name: str, items: Sequence[Encoded], steps: int | None = None
) -> LocalClient:
    """The project's client on these records; its adapter is the white box's."""
    local = settings.local if steps is None else settings.local.model_copy(update={"steps": steps})
    return LocalClient(
        name=name,
        tuned=box.tuned,
        items=items,
        truncated=0,
        pad_id=box.tokenizer.pad_token_id,
        local=LocalConfig.model_validate(local.model_dump()),
        seed=settings.seed,
    )


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
    first: FirstRound | None = None,
) -> np.ndarray:
    """The adapter, float32 [d], after `count` rounds; clients named in `crafts` send what it makes.

    `first`: updates of the first round in earlier calls with this box, these settings and this start,
    looked up and added to: honest clients do the same in it whatever the rule and the play. Later rounds
    start from what the rule made and are not kept.
    """
    first = {} if first is None else first
    adapter = start.copy()
    sizes = tuple(tensor_sizes(box.tuned))
    for number in range(count):
        updates: list[ClientUpdate] = []
        for name, items in sorted(records.items()):
            budget.check()
            seen = first if number == 0 else {}
            key = (name, hash(tuple(items)))
            if key not in seen:
                seen[key] = client_of(box, settings, name, items).train(round=number, start=adapter)
            update = seen[key]
            craft = (crafts or {}).get(name)
            if craft is not None:
                changed = craft(update.update, number).astype(np.float32)
                update = ClientUpdate(**{**vars(update), "update": changed})
            updates.append(update)
        adapter = adapter + _merged(updates, rule, settings, sizes)
    return adapter


def _merged(
    updates: Sequence[ClientUpdate], rule: Rule, settings: PublicSettings, sizes: tuple[int, ...]
) -> np.ndarray:
    fusion = settings.fusion
    tau = np.stack([u.update for u in updates]).astype(np.float32)
    if rule.clip is not None:
        tau = np.clip(tau, -rule.clip, rule.clip)
    if rule.name == "fedavg":
        return np.asarray(tau.mean(axis=0))
    if rule.name == "h_ties":
        analysis = rules.analyse(tau)
        return rules.h_ties(tau, analysis, rho=fusion.rho, r0=fusion.r0, delta=fusion.delta)
    layout = Layout(sizes=sizes)
    granularity: Granularity = "coordinate" if rule.name == "coordinate" else "block"
    clip = rule.clip if rule.clip is not None else float(np.abs(tau).max()) + 1e-9
    own = segments_of(granularity, layout, clip=clip, clients=len(tau), bits=BITS)
    plan = RingPlan(bits=BITS, clients=len(tau), segments=own)
    parts = [contribution(t, granularity, layout, plan) for t in tau]
    sums = {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0]}
    merged = merge(
        sums, granularity, layout, plan, clients=len(tau), weight=float(len(tau)), rho=fusion.rho, kept=1.0
    )
    return merged.step
