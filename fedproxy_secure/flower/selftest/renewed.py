"""Attacks by a server that asks for a round twice: in parallel, in a new run, or after a rollback.

The sum of all clients minus the sum of all but one is that one client's update. So each attempt tries to
get a second answer to the same round: at the same time, in a new run of Flower, or after clients' disks
were put back to an earlier state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure import wire
from fedproxy_secure.errors import ProtocolAborted
from fedproxy_secure.flower.selftest import known_bad
from fedproxy_secure.flower.selftest.attempts import Attempt, Limit
from fedproxy_secure.flower.selftest.hostile import TwoInboxes
from fedproxy_secure.flower.selftest.stage import DropsOut, Stage, World, read, small_job, staged
from fedproxy_secure.journal.store import SUFFIX as JOURNAL
from fedproxy_secure.protect.secure_sum import attempt as kept
from fedproxy_secure.protect.secure_sum.terms import first_clip
from fedproxy_secure.proxy_intake import store as proxy_store

ADVERSARY = "parallel_server"


def two_at_once(world: World) -> str:
    """Send two inboxes at once, one without the victim: the answers differ by the pair's shared mask."""
    with staged(world) as stage:
        sizes = stage.initial.sizes
        assert sizes is not None
        grid = TwoInboxes(stage.grid(), job=stage.job, sizes=sizes.tolist(), victim=stage.victim)
        stage.serve(grid)
        return read(grid.victims_update(), stage.update(), stage.victim)


def other_survivors(world: World) -> str:
    """Ask for the same round in a new run, and say that the victim is lost after it has shared."""
    with staged(world) as stage:
        whole = stage.serve(stage.grid())
        without = stage.serve(stage.grid(DropsOut(wire.MASK, stage.node(-1))))
        return _difference(stage, stage.sum_of(whole, 4), stage.sum_of(without, 3))


def other_cohort(world: World) -> str:
    """Ask for the same round in a new run, without inviting the victim."""
    with staged(world) as stage:
        whole = stage.serve(stage.grid())
        without = stage.serve(stage.grid(), stage.without_victim())
        return _difference(stage, stage.sum_of(whole, 4), stage.sum_of(without, 3))


def other_adapter(world: World) -> str:
    """Ask for the same round in a new run, from another broadcast adapter."""
    with staged(world) as stage:
        first = stage.serve(stage.grid())
        moved = replace(stage.initial, adapter=stage.initial.adapter + np.float32(1e-3))
        second = stage.serve(stage.grid(), state=moved)
        distance = np.abs(stage.sum_of(first, 4) - stage.sum_of(second, 4, moved)).max()
        return f"gets sums of one round from two adapters, up to {distance:.1e} apart"


def other_clip(world: World) -> str:
    """Ask for the same round in a new run, under another clip: what each clip cuts off reveals values."""
    with staged(world, small_job(rounds=2)) as stage:
        clips = [share * first_clip(stage.job) for share in (0.9, 0.8)]
        for clip in clips:
            state = replace(stage.initial, round=1, clip=np.array([clip]))
            stage.serve(stage.grid(), state=state)
        return f"gets sums of one round at the clips {clips[0]:g} and {clips[1]:g}"


def other_proxy(world: World) -> str:
    """Start another run under the same policy and seed, on a proxy that differs in one number."""
    with staged(world) as stage:
        whole = stage.serve(stage.grid())
        other = world.another_proxy(_nudge)
        with proxy_store.offered_on_this_host(other):
            without = stage.serve(stage.grid(), stage.without_victim(), proxy=other)
        return _difference(stage, stage.sum_of(whole, 4), stage.sum_of(without, 3))


def journals_put_back(world: World, *, new_run: bool = False, keys_too: bool = False) -> str:
    """Put the clients' journals back to before the round, and ask for the round again without the victim.

    `new_run`: ask in a new run of Flower, whose states remember nothing. `keys_too`: put back the whole
    folders in which the journals lie.
    """
    with staged(world) as stage:
        app = DropsOut(wire.MASK, stage.node(-1), active=False)
        grid = stage.grid(app)
        files = stage.keys.glob("*" if keys_too else f"*{JOURNAL}")
        before = {file: file.read_bytes() for file in files if file.is_file()}
        whole = stage.serve(grid)
        for file, content in before.items():
            file.write_bytes(content)
        app.active = True
        without = stage.serve(stage.grid(app) if new_run else grid)
        return _difference(stage, stage.sum_of(whole, 4), stage.sum_of(without, 3))


def other_seed(world: World, *, allowed: bool = False, **protect: Any) -> str:
    """Start another run under another seed, without inviting the victim.

    `allowed`: the policy lists both seeds.
    """
    with staged(world, small_job(**protect), seeds=(0, 1) if allowed else (0,)) as stage:
        whole = stage.serve(stage.grid())
        without = stage.serve(stage.grid(), stage.without_victim().changed(seed=1))
        return _difference(stage, stage.sum_of(whole, 4), stage.sum_of(without, 3))


def attempts() -> Iterator[Attempt | Limit]:
    """Yield the attempts in the order in which they are shown."""
    yield Attempt(
        adversary=ADVERSARY,
        name="asks for two masked vectors at once",
        attack=two_at_once,
        known_bad="client whose journal grants every step",
        without=lambda: kept.unsafe_journals(known_bad.Forgetful),
    )
    for name, attack in (
        ("a round again in a new run of Flower, other survivors", other_survivors),
        ("a round again in a new run of Flower, another cohort", other_cohort),
        ("a round again in a new run of Flower, another broadcast adapter", other_adapter),
        ("a round again in a new run of Flower, another clip", other_clip),
    ):
        yield Attempt(
            adversary=ADVERSARY,
            name=name,
            attack=attack,
            known_bad="client whose journal forgets rounds",
            without=lambda: kept.unsafe_journals(known_bad.ForgetsRounds),
        )
    yield Attempt(
        adversary=ADVERSARY,
        name="another proxy under the same policy and seed",
        attack=other_proxy,
        known_bad="client whose journal agrees to any run",
        without=lambda: kept.unsafe_journals(known_bad.AgreesToAnyRun),
    )
    yield Attempt(
        adversary=ADVERSARY,
        name="a seed that the policy does not list",
        attack=other_seed,
        known_bad="client that takes the server's job",
        without=known_bad.trusting_clients,
    )
    yield Limit(
        adversary=ADVERSARY,
        name="a second seed that the policy lists",
        attack=lambda world: other_seed(world, allowed=True),
        why="each seed in a policy is a run of its own: list one; protect.refuse_differencing refuses only "
        "sums that differ by exactly one client",
    )
    for name, new_run in (
        ("journals put back, Flower's states not", False),
        ("journals put back, then a new run of Flower", True),
    ):
        yield Attempt(
            adversary=ADVERSARY,
            name=name,
            attack=partial(journals_put_back, new_run=new_run),
            known_bad="client that does not ask how old its journal is",
            without=lambda: kept.unsafe_journals(known_bad.TrustsItsDisk),
        )
    yield Limit(
        adversary=ADVERSARY,
        name="whole folders of keys put back, then a new run of Flower",
        attack=lambda world: journals_put_back(world, new_run=True, keys_too=True),
        why="nothing on the client's machine remembers more; keep its disk from being put back",
    )


def _difference(stage: Stage, whole: np.ndarray, without: np.ndarray) -> str:
    if len(whole) != len(without):
        raise ProtocolAborted("sums: are of different lengths")
    return read(whole - without, stage.update(), stage.victim)


def _nudge(model: nn.Module, _tokenizer: object) -> None:
    with torch.no_grad():
        weight = next(model.parameters())
        weight.view(-1)[0] += 1e-3
