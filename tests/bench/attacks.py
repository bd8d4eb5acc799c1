"""What one round tells: tokens, sequences, membership, from an update and from sums: `make bench-attacks`.

On the proxy of the embedded demo LLM (half of the blocks), after one round of tuning, clients of the demo
world's four tasks train one more round; A2, A3 and A5 get what the server saw of it: one update, or the sum
of 4 or 16 clients, with and without record-level differential privacy. Two rounds are compared: one step of
SGD on 4 records, as in the literature, and this project's own, 10 steps on 16 records. Some half an hour on
one core. With `FEDPROXY_DATA` set also on the real-text model there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from attacks.base import Truth
from attacks.registry import get
from attacks.trial import run_one
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import AdapterKind, Config, load_config
from fedproxy_secure.data.encode import Encoded, encode_records
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import record_noise
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding
from fedproxy_secure.experiments.stages import Materials, make_proxy, prepare
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach, get_vector, set_vector
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import PublicSettings, Sums, View
from fedproxy_secure.runtime.randomness import stream
from tests.bench.known_answers import known_answer_rows
from tests.bench.rows import Row, publish

COMMAND = "make bench-attacks"
SHARDS = 4  # clients a task
COHORTS = (1, 4, 16)
TASKS = 4
HELD_OUT = 100  # records a client that are set aside
PRIVATE_RECORDS = 8000  # the schedule of configs/demo_private.yaml, whose noise is taken
LEARNING_RATES = {"sgd": 0.1, "adamw": 3e-3}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One kind of round. `epsilon`: of record-level differential privacy; None: without.

    `modules`, `first_block`: what is adapted.
    """

    adapter: AdapterKind
    rank: int = 16
    optimizer: str = "adamw"
    steps: int = 10
    batch: int = 16
    epsilon: float | None = None
    modules: Literal["all", "attention", "mlp"] = "all"
    first_block: bool = True

    @property
    def name(self) -> str:
        """For the table."""
        private = "" if self.epsilon is None else f", epsilon {self.epsilon:g}"
        where = "" if self.modules == "all" else f", {self.modules} only"
        where += "" if self.first_block else ", not block 0"
        return f"{self.adapter} r{self.rank} {self.optimizer} {self.steps}x{self.batch}{where}{private}"


SETTINGS = (
    *(Setting(adapter=a, optimizer="sgd", steps=1, batch=4) for a in ("lora", "ffa", "core")),
    *(Setting(adapter=a) for a in ("lora", "ffa", "core")),
    Setting(adapter="lora", optimizer="sgd"),
    Setting(adapter="lora", rank=4),
    Setting(adapter="lora", rank=4, optimizer="sgd", steps=1, batch=4),
    Setting(adapter="lora", optimizer="sgd", steps=1, batch=4, modules="mlp"),
    Setting(adapter="lora", optimizer="sgd", steps=1, batch=4, first_block=False),
    *(Setting(adapter="lora", epsilon=e) for e in (8.0, 3.0, 1.0)),
    *(Setting(adapter=a, epsilon=8.0) for a in ("ffa", "core")),
)


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    plain = ["audit.holdout=0", "audit.canaries=[]"]
    rows = known_answer_rows()
    for found in leak_rows("demo", load_config("configs/demo_matrix.yaml", plain), SETTINGS):
        rows += found
        publish("attacks", rows)  # after each setting: half an hour is long
    if data := os.environ.get("FEDPROXY_DATA"):
        real = load_config("configs/real_text.yaml", [f"data.root={data}", f"model.path={data}/lm"])
        for found in leak_rows("real text", real, SETTINGS[:4]):
            rows += found
            publish("attacks", rows)


def leak_rows(where: str, config: Config, settings: Sequence[Setting]) -> Iterator[list[Row]]:
    """A2's and A5's AUC and A3's exact recall for every cohort, setting by setting."""
    materials = prepare(config)
    for setting in settings:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for cohort, view, truth in rounds(config, materials, setting, Path(folder)):
                if setting.epsilon is not None and cohort != TASKS:
                    continue
                for attack in ("A2", "A3", "A5"):
                    rows.append(_row(where, setting, cohort, _tried(attack, view, truth)))
                    print(rows[-1].metric, f"{rows[-1].value:.3f}", file=sys.stderr, flush=True)
        yield rows


def rounds(
    config: Config, materials: Materials, setting: Setting, folder: Path
) -> Iterator[tuple[int, View, Truth]]:
    """The server's view of one round of each cohort, and the truth."""
    proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
    save_model(proxy.model, materials.tokenizer, folder)
    adapted = None if setting.first_block else tuple(range(1, len(proxy.plan.kept)))
    adapter = config.adapter.model_copy(
        update={
            "kind": setting.adapter,
            "rank": setting.rank,
            "modules": setting.modules,
            "blocks": adapted,
        }
    )
    tuned = attach(proxy.model, adapter, seed=0)
    clients = _clients(config, materials)
    local = config.local.model_copy(
        update={
            "steps": setting.steps,
            "batch_size": setting.batch,
            "optimizer": setting.optimizer,
            "learning_rate": LEARNING_RATES[setting.optimizer],
        }
    )
    warm = local.model_copy(
        update={"steps": 10, "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-3}
    )
    privacy = config.privacy
    if setting.epsilon is not None:
        privacy = privacy.model_copy(
            update={"unit": "record", "target_epsilon": setting.epsilon, "clip_norm": 0.5}
        )
    fresh, states = get_vector(tuned), []
    pad = materials.tokenizer.pad_token_id
    first = []
    for name, items, _ in clients[::SHARDS]:
        set_vector(tuned, fresh)
        train(tuned, items, steps=10, local=warm, pad_id=pad, rng=stream(0, "warm", name), subject=name)
        first.append(get_vector(tuned) - fresh)
    start = (fresh + np.mean(first, axis=0)).astype(np.float32)
    for name, items, held_out in clients:
        set_vector(tuned, start)
        drawn = _Drawn(items)
        rng = stream(0, "bench", name)
        if setting.epsilon is None:
            train(tuned, drawn, steps=local.steps, local=local, pad_id=pad, rng=rng, subject=name)
        else:
            noise = record_noise(
                privacy, local.model_copy(update={"batch_size": 64}), rounds=8, records=PRIVATE_RECORDS
            )
            rate = setting.batch / len(items)
            train_privately(
                tuned,
                drawn,
                steps=local.steps,
                local=local,
                private=replace(noise, sampling_rate=rate),
                noise=Noise(rng.bytes(32)),
                pad_id=pad,
                subject=name,
            )
        done = PrivateRound(update=get_vector(tuned) - start, used=np.array(drawn.indices))
        states.append(
            PrivateState(client=name, train=tuple(items), holdout=held_out, canaries=(), rounds={0: done})
        )
    for cohort in COHORTS:
        # one client of each task first, then the other shards
        chosen = [s for shard in range(SHARDS) for s in states[shard::SHARDS]][:cohort]
        updates = {s.client: s.rounds[0].update for s in chosen}
        names = tuple(sorted(updates))
        total = np.sum([updates[n] for n in names], axis=0, dtype=np.float32)
        settings = PublicSettings(
            seed=0,
            d=len(start),
            adapter=adapter,
            local=local,
            fusion=config.fusion.model_copy(update={"rule": "fedavg"}),
            federate=config.federate,
            protect=config.protect,
            privacy=privacy,
            max_tokens=config.data.max_tokens,
            blocks=None,
            clients=names,
        )
        view = View(
            threat_model="server",
            settings=settings,
            adapters={0: start, 1: start + total / cohort},
            updates={(0, n): updates[n] for n in names} if cohort == 1 else {},
            sums={} if cohort == 1 else {0: Sums(clients=names, segments={"update": total})},
            cohorts={0: names},
            proxy=folder,
        )
        yield cohort, view, Truth(clients={s.client: s for s in chosen})


def _clients(config: Config, materials: Materials) -> list[tuple[str, list[Encoded], tuple[Encoded, ...]]]:
    """Name, training records, records set aside: `SHARDS` clients of each task, by chance."""
    made = []
    for task in materials.tasks:
        items = encode_records(task.train, materials.tokenizer, max_tokens=config.data.max_tokens).items
        order = stream(0, "shards", task.name).permutation(len(items))
        for shard in range(SHARDS):
            mine = [items[i] for i in order[shard::SHARDS]]
            made.append((f"{task.name}-{shard}", mine[HELD_OUT:], tuple(mine[:HELD_OUT])))
    return made


class _Drawn(list[Encoded]):
    """Records that remember which of them were read."""

    def __init__(self, items: Sequence[Encoded]) -> None:
        super().__init__(items)
        self.indices: list[int] = []

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.indices.append(int(index))
        return super().__getitem__(index)


def _tried(attack: str, view: View, truth: Truth) -> Finding:
    began = time.monotonic()
    found = run_one(get(attack), view, truth, profile="smoke", seconds=120, seed=0)
    print(f"{attack}: {found.outcome} in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return found


def _row(where: str, setting: Setting, cohort: int, found: Finding) -> Row:
    seen = "one update" if cohort == 1 else f"sum of {cohort}"
    wanted = {"A2": "auc", "A3": "exact recall", "A5": "auc"}[found.id]
    estimate = next((e for e in found.estimates if e.metric == wanted), None) or Estimate(
        metric=wanted,
        value=0.0,
        low=None,
        high=None,
        n=1,
        unit="AUC",
        seeds=(0,),
        how=found.reason,
        nature="sampled",
    )
    metric = {"A2": "token AUC", "A3": "sequences found exactly", "A5": "membership AUC"}[found.id]
    return Row.of(f"{where}, {setting.name}, {seen}: {metric} ({found.outcome})", estimate, command=COMMAND)


if __name__ == "__main__":
    main()
