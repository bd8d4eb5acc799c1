"""Which recipe serves the real LLM at epsilon 8: `make bench-dp-real`.

Each variant changes settings of `configs/real_private.yaml`. It is measured with the noise of epsilon 8 and
without, and kept in build/bench/dp_real, so that a search that was stopped goes on.
`python -m tests.bench.dp_real NAME ...` measures these variants alone. With `recipe` as its only name it
runs the file itself through the pipeline, with and without privacy.

The search has training and test records of its own, of the same tasks, that the file's runs never read: it
spends nothing of their budget. A row says what it would have cost on the records themselves. Two of the
file's four clients take part. Private steps are imitated: records are drawn, clipped and given noise as
the file says, but the noise is rounded, and gradients of single records come from padded passes over many,
which is faster and would tell one record of another (`fedproxy_secure.federate.record_gradients`). Clients
train in bfloat16; the LLM is evaluated in float32.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.encode import Encoded, batch_loss, encode_records, training_batch
from fedproxy_secure.data.records import Task
from fedproxy_secure.data.worlds.real_tasks import real_records
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.dp.record_noise import RecordNoise, record_noise
from fedproxy_secure.evidence.answers import alone, over_seeds_or_records
from fedproxy_secure.experiments.stages import (
    Materials,
    evaluate,
    make_fused_llm,
    make_proxy,
    prepare,
    tune,
)
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.models.adapters import attach, get_vector, set_vector, trained_parameters
from fedproxy_secure.models.llm import sharing_copy
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import FOLDER, Row, publish
from tests.support.record_gradients import RecordGradients

COMMAND = "make bench-dp-real"
CONFIG = "configs/real_private.yaml"
CELLS = FOLDER / "dp_real"
SEED = 0
SEARCHED = ("freight", "museum")  # the clients of the search
RECORDS, TESTED = slice(8000, 16000), slice(100, 150)  # of the search, of each task
TOGETHER = 32  # records of a pass
TWIN = "privacy.unit=none"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "as_it_is": (),
    "lr_1e-2": ("local.learning_rate=1e-2",),
    "lr_2e-2": ("local.learning_rate=2e-2",),
    "rank_8": ("adapter.rank=8",),
    "all_blocks": ("adapter.blocks=null",),
    "frozen_a": ("adapter.kind=ffa", "adapter.rank=1", "local.learning_rate=5e-3"),
    "lora": ("adapter.kind=lora", "adapter.rank=1", "local.learning_rate=3e-3"),
    "batch_32": ("local.batch_size=32", "local.steps=8"),
    "batch_128": ("local.batch_size=128", "local.steps=2"),
    "batch_256": ("local.batch_size=256",),
    "batch_256_lr_2e-2": ("local.batch_size=256", "local.learning_rate=2e-2"),
    "batch_256_lora": (
        "local.batch_size=256",
        "adapter.kind=lora",
        "adapter.rank=1",
        "local.learning_rate=3e-3",
    ),
    "wide_clip": ("privacy.clip_norm=2",),
    "one_round": ("federate.rounds=1", "local.steps=12"),
}


def main() -> None:
    """Measure what is asked for, or all variants; print, write."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["recipe"]:
        publish("dp_real_recipe", recipe_rows())
        return
    names = sys.argv[1:] or list(VARIANTS)
    search = Search()
    made = {name: search.cell(name, VARIANTS[name]) for name in names}
    publish("dp_real", [*(row for name in names for row in rows(name, made[name])), cost_row(made)])


class Search:
    """The models and records of the search, loaded when the first cell is not on disk yet."""

    def __init__(self) -> None:
        self._loaded: tuple[Materials, Proxy, nn.Module] | None = None

    def cell(self, name: str, changes: Sequence[str]) -> Mapping[str, Any]:
        """Return a variant's findings with the noise of its epsilon and without; from its file if there."""
        return {
            "private": self._half(name, load_config(CONFIG, changes)),
            "free": self._half(f"{name}-free", load_config(CONFIG, [*changes, TWIN])),
        }

    def _half(self, name: str, config: Config) -> Mapping[str, Any]:
        return _kept(name, config, partial(self._measured, name, config))

    def _measured(self, name: str, config: Config) -> dict[str, Any]:
        if self._loaded is None:
            self._loaded = _load(config)
        materials, proxy, half = self._loaded
        tokenizer = materials.tokenizer
        items = [
            encode_records(task.train, tokenizer, max_tokens=config.data.max_tokens).items
            for task in materials.tasks
        ]
        tuned, began = attach(sharing_copy(half), config.adapter, seed=SEED), time.process_time()
        noise = record_noise(
            config.privacy, config.local, rounds=config.federate.rounds, records=len(items[0])
        )
        federate(config, tuned, items, noise=noise, pad_id=tokenizer.pad_token_id, name=name)
        return {
            "tuned": answers(tuned, materials, config),
            "fused": answers(make_fused_llm(config, materials, proxy, tuned).llm, materials, config),
            "noise_multiplier": noise.noise_multiplier,
            "sampling_rate": noise.sampling_rate,
            "steps": config.federate.rounds * config.local.steps,
            "delta": config.privacy.target_delta,
            "trained_numbers": len(get_vector(tuned)),
            "seconds": time.process_time() - began,
        }


def _load(config: Config) -> tuple[Materials, Proxy, nn.Module]:
    """Return the search's materials, the healed proxy, and the proxy in bfloat16."""
    tasks = tuple(
        Task(
            name=name,
            train=tuple(real_records(name, "train", RECORDS.stop)[RECORDS]),
            test=tuple(real_records(name, "test", TESTED.stop)[TESTED]),
            holdout=(),
        )
        for name in SEARCHED
    )
    materials = replace(prepare(config), tasks=tasks)
    ratio = config.compress.remove_ratio
    proxy = make_proxy(config, materials, seed=SEED, remove_ratio=ratio, folder=CELLS)
    return materials, proxy, copy.deepcopy(proxy.model).to(torch.bfloat16)


def federate(
    config: Config,
    tuned: nn.Module,
    items: Sequence[Sequence[Encoded]],
    *,
    noise: RecordNoise,
    pad_id: int,
    name: str,
) -> None:
    """Tune the adapter as the clients of `items` and the server would, by imitated steps.

    The server moves by the file's learning rate over its number of clients, times the sum of the clients'
    moves. With `privacy.unit` none gradients are neither clipped nor given noise.
    """
    parameters, vector = trained_parameters(tuned), get_vector(tuned)
    gradients, drawn = RecordGradients(tuned), torch.Generator().manual_seed(1234)
    step = config.fusion.server_learning_rate / len(config.data.clients)
    private, clip = config.privacy.unit == "record", noise.clip_norm
    tuned.train()
    for round in range(config.federate.rounds):
        moved = []
        for client, own in enumerate(items):
            set_vector(tuned, vector)
            kind: Any = torch.optim.AdamW if config.local.optimizer == "adamw" else torch.optim.SGD
            optimizer = kind(parameters, lr=config.local.learning_rate, weight_decay=0.0)
            rng = stream(SEED, "dp_real", name, round, client)
            steps, rounds = config.local.steps, config.federate.rounds
            for share in config.local.shares(steps=steps, round=round, rounds=rounds):
                optimizer.param_groups[0]["lr"] = config.local.learning_rate * share
                chosen = np.flatnonzero(rng.random(len(own)) < noise.sampling_rate)
                total = [torch.zeros_like(p) for p in parameters]
                for first in range(0, len(chosen), TOGETHER):
                    part = [own[i] for i in chosen[first : first + TOGETHER]]
                    batch = training_batch(part, pad_id=pad_id, device="cpu")
                    each = gradients.of(batch_loss(tuned, batch) * len(part))
                    length = torch.stack([g.flatten(1).square().sum(1) for g in each]).sum(0).sqrt()
                    kept = (clip / length).clamp(max=1.0) if private else torch.ones_like(length)
                    for t, g in zip(total, each, strict=True):
                        t += torch.einsum("b,boi->oi", kept, g)
                for p, t in zip(parameters, total, strict=True):
                    if private:
                        t = t + noise.noise_multiplier * clip * torch.randn(t.shape, generator=drawn)
                    p.grad = t / config.local.batch_size
                if not private:
                    nn.utils.clip_grad_norm_(parameters, config.local.max_grad_norm)
                optimizer.step()
            moved.append(get_vector(tuned) - vector)
        vector = (vector + step * np.sum(moved, axis=0)).astype(np.float32)
    gradients.close()
    tuned.eval()
    set_vector(tuned, vector)


def answers(model: nn.Module, materials: Materials, config: Config) -> list[int]:
    """Return one 0 or 1 for each test record of all tasks, which are of one size."""
    return [int(c) for found in evaluate(model, materials, config).values() for c in found.correct]


def rows(name: str, made: Mapping[str, Any]) -> list[Row]:
    """Shares of test records with noise and without, epsilon, and the seconds of both cells."""
    found = []
    for which, label in (("private", f"epsilon {_epsilon([made['private']]):.3g}"), ("free", "no privacy")):
        found += _shares(f"{name}, {label}", made[which], ("fused", "tuned"))
        found.append(_number(f"{name}, {label}: CPU time", made[which]["seconds"], "s"))
    return found


def cost_row(made: Mapping[str, Any]) -> Row:
    """What these variants would spend together if all of them trained on the same private records."""
    value = _epsilon([m["private"] for m in made.values()])
    return _number("the whole search, had it read the records of the file", value, "epsilon", n=len(made))


def _epsilon(cells: Sequence[Mapping[str, Any]]) -> float:
    names = ("noise_multiplier", "sampling_rate", "steps")
    events = [SampledGaussian(**{name: c[name] for name in names}) for c in cells]
    return spent(events, delta=cells[0]["delta"]).epsilon


def _shares(label: str, made: Mapping[str, Any], models: Sequence[str]) -> list[Row]:
    found = []
    for model in models:
        share = over_seeds_or_records({SEED: ({"all tasks": made[model]},)}, alone, "")
        found.append(Row.of(f"{label}: {model} accuracy", share, command=COMMAND))
    return found


def _number(metric: str, value: float, unit: str, *, n: int = 1) -> Row:
    return Row(metric=metric, value=value, n=n, unit=unit, target="", ok=None, command=COMMAND)


def recipe_rows() -> list[Row]:
    """The file itself through the pipeline, on its own records, with and without privacy."""
    found = []
    # seeded noise, so that the same command gives the same table
    for label, change in (("epsilon 8", "privacy.randomness=unsafe_simulated"), ("no privacy", TWIN)):
        config = load_config(CONFIG, [change])
        made = _kept(f"recipe-{label.replace(' ', '-')}", config, partial(_piped, config))
        found += _shares(f"recipe, {label}", made, ("fused", "tuned", "zero_shot"))
        found.append(_number(f"recipe, {label}: CPU time", made["seconds"], "s"))
        if made["spent"] is not None:
            found.append(_number(f"recipe, {label}: spent", made["spent"], "epsilon"))
    return found


def _kept(name: str, config: Config, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a cell's findings; from its file if it was measured with the same settings."""
    file = CELLS / f"{name}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["config_sha256"] == config.sha256():
            return kept
    made = {"config_sha256": config.sha256(), **measure()}
    CELLS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made) + "\n")
    print(f"{name}: fused {np.mean(made['fused']):.3f}", file=sys.stderr, flush=True)
    return made


def _piped(config: Config) -> dict[str, Any]:
    materials, began = prepare(config), time.process_time()
    ratio = config.compress.remove_ratio
    CELLS.mkdir(parents=True, exist_ok=True)
    proxy = make_proxy(config, materials, seed=SEED, remove_ratio=ratio, folder=CELLS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_model(proxy.model, materials.tokenizer, place / "proxy")
        job = FederationJob.from_config(config, seed=SEED)
        tuned = tune(job, proxy.model, place / "proxy", run_folder=place)
        costs = read_all(place / "privacy").values() if (place / "privacy").exists() else ()
    return {
        "fused": answers(make_fused_llm(config, materials, proxy, tuned).llm, materials, config),
        "tuned": answers(tuned, materials, config),
        "zero_shot": answers(materials.llm, materials, config),
        "spent": max((c.epsilon for c in costs), default=None),
        "seconds": time.process_time() - began,
    }


if __name__ == "__main__":
    main()
