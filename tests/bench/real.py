"""How fast the real LLM trains and is evaluated here, against the machine's own rate: `make bench-real`.

Everything is measured on one thread, in turns, in one run, on the records of `configs/real.yaml`, and,
where `FEDPROXY_DATA` names the folder of the real tasks, on those. The peer is what a script around PEFT
does: padded batches, PEFT's own layers.

    FEDPROXY_DATA=DATA python -m tests.bench.real start-token

prints instead what the LLM before tuning answers correctly with the tokenizer's start token before each
prompt, as everywhere in this project, and without it, as lm-eval asks it by default.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.choices import choice_loglikelihoods
from fedproxy_secure.data.encode import Encoded, batch_loss, encode_records, records_loss, training_batch
from fedproxy_secure.data.evaluate import choice_correct
from fedproxy_secure.data.records import Record
from fedproxy_secure.evidence.answers import share_right
from fedproxy_secure.experiments.stages import Materials, exact_proxy, prepare
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.federate.training import train
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.models.adapters import attach, trained_parameters
from fedproxy_secure.models.llm import blocks_of, sharing_copy
from fedproxy_secure.models.mixed import has_amx, mix_products
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import Row, publish, seconds
from tests.support.command import run_command

COMMAND = "make bench-real"
REPEATS = 5
RATIO = 0.25  # of the blocks removed
BATCH = 8
EVALUATED = 24  # test records of each task
WORKER_GB = 2.0
ASKED = 100  # test records of each task that is asked with and without the start token


def main() -> None:
    """Measure everything, print, write."""
    if sys.argv[1:] == ["start-token"]:
        return publish("real_start_token", start_token_rows(os.environ["FEDPROXY_DATA"]))
    rows = [worker_memory()]  # first: this process is still small
    torch.set_num_threads(1)
    configs = [load_config("configs/real.yaml")]
    if data := os.environ.get("FEDPROXY_DATA"):
        configs.append(load_config("configs/paper_small.yaml", [f"data.root={data}"]))
    for config in configs:
        materials = prepare(config)
        rows += step_rows(config, materials)
        rows += evaluation_rows(config, materials)
    rows.append(overhead(configs[-1], prepare(configs[-1])))
    publish("real", rows)


def matrix_rate() -> float:
    """Return the rate of a typical matrix product of the LLM on one thread, FLOP/s."""
    x, weight = torch.randn(400, 576), torch.randn(1536, 576)
    repeats = 100

    def products() -> None:
        for _ in range(repeats):
            nn.functional.linear(x, weight)

    products()
    return 2 * 400 * 576 * 1536 * repeats / seconds(products)


def step_rows(config: Config, materials: Materials) -> list[Row]:
    """A training step's share of the floor, and its speed over the peer's."""
    proxy = exact_proxy(config, materials, seed=0, remove_ratio=RATIO)
    ours = attach(sharing_copy(proxy.model), config.adapter, seed=0)
    peer = pefts_own(sharing_copy(proxy.model), config)
    pad = materials.tokenizer.pad_token_id
    weights = sum(p.numel() for p in blocks_of(proxy.model).parameters())
    mixed = mixed_copy(ours) if has_amx() else None
    shares, speedups, over_float32 = [], [], []
    for task in materials.tasks:
        items = encoded(task.train[:200], materials, config)
        for repeat in range(REPEATS):
            chosen = [
                items[i]
                for i in stream(repeat, "bench", task.name).choice(len(items), BATCH, replace=False)
            ]
            floor = 4 * weights * sum(len(i.ids) for i in chosen) / matrix_rate()
            took = step_seconds(ours, partial(records_loss, ours, chosen, pad_id=pad))
            padded = training_batch(chosen, pad_id=pad, device="cpu")
            peers = step_seconds(peer, partial(batch_loss, peer, padded))
            shares.append(floor / took)
            speedups.append(peers / took)
            if mixed is not None:
                mixed_took = step_seconds(mixed, partial(records_loss, mixed, chosen, pad_id=pad))
                over_float32.append(took / mixed_took)
    return [
        *mixed_rows(f"{config.name}: training step", over_float32),
        row(f"{config.name}: training step, share of the floor", shares, ">= 0.65", 0.65),
        row(f"{config.name}: training step, speed over padded PEFT", speedups, ">= 1.8", 1.8),
    ]


def evaluation_rows(config: Config, materials: Materials) -> list[Row]:
    """Evaluation's share of the floor on tokens that must be read once, and its speed-up."""
    llm = materials.llm
    weights = sum(p.numel() for p in blocks_of(llm).parameters())
    mixed = mixed_copy(llm) if has_amx() else None
    shares, speedups, over_float32 = [], [], []
    for task in materials.tasks:
        records = task.test[:EVALUATED]
        tokens = sum(once_read(r, materials) for r in records)
        floor = 2 * weights * tokens / matrix_rate()
        scored = partial(
            choice_loglikelihoods,
            tokenizer=materials.tokenizer,
            records=records,
            max_tokens=config.data.max_tokens,
        )
        took = seconds(partial(scored, llm))
        peers = seconds(partial(every_choice_padded, llm, materials, records))
        shares.append(floor / took)
        speedups.append(peers / took)
        if mixed is not None:
            over_float32.append(took / seconds(partial(scored, mixed)))
    return [
        *mixed_rows(f"{config.name}: evaluation", over_float32),
        row(f"{config.name}: evaluation, share of the floor", shares, ">= 0.65", 0.65),
        row(f"{config.name}: evaluation, speed over padded choices", speedups, ">= 1.8", 1.8),
    ]


def start_token_rows(data: str) -> list[Row]:
    """Accuracies before tuning on the first test records, with the start token and without it."""
    torch.set_num_threads(1)
    config = load_config("configs/paper_small.yaml", [f"data.root={data}", "model.dtype=float32"])
    materials, rows = prepare(config), list[Row]()
    tokens = {"with": materials.tokenizer.bos_token, "without": None}
    for task in materials.tasks:
        for how, token in tokens.items():
            materials.tokenizer.bos_token = token
            right = choice_correct(
                materials.llm, materials.tokenizer, task.test[:ASKED], max_tokens=config.data.max_tokens
            )
            for score, bits in (("acc", right.acc), ("acc_norm", right.acc_norm)):
                metric = f"{task.name}, {score} {how} the start token"
                made = share_right({0: {task.name: tuple(map(bool, bits))}}, metric)
                rows.append(Row.of(metric, made, command="python -m tests.bench.real start-token"))
    return rows


def overhead(config: Config, materials: Materials) -> Row:
    """A federated step over a bare loop that packs as well."""
    proxy = exact_proxy(config, materials, seed=0, remove_ratio=RATIO)
    job = FederationJob.from_config(config, seed=0)
    job = job.changed(
        local=job.local.model_copy(update={"steps": 4}),
        federate=job.federate.model_copy(update={"rounds": 1}),
        protect=job.protect.model_copy(update={"scheme": "unsafe_plaintext"}),
    )
    items = [encoded(task.train, materials, config) for task in materials.tasks]
    tuned = attach(sharing_copy(proxy.model), job.adapter, seed=0)
    initial = initial_state(tuned)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "proxy"
        save_model(proxy.model, materials.tokenizer, place)

        def bare() -> None:
            for task, own in zip(materials.tasks, items, strict=True):
                train(
                    tuned, own, steps=job.local.steps, local=job.local,
                    pad_id=materials.tokenizer.pad_token_id, rng=stream(0, "client", task.name, 0),
                    subject=task.name,
                )  # fmt: skip

        def federated() -> None:
            federate(job, place, initial)

        federated()  # loads the proxy and reads the records
        ratios = [seconds(federated) / seconds(bare) for _ in range(REPEATS)]
    value = float(np.median(ratios))
    return Row(
        metric=f"{config.name}: federated step over a bare loop",
        value=value, low=min(ratios), high=max(ratios), n=REPEATS, unit="ratio", target="<= 1.10",
        ok=value <= 1.10, command=COMMAND,
    )  # fmt: skip


def worker_memory() -> Row:
    """Peak resident memory of a comparison's process, mapped weights included."""
    with tempfile.TemporaryDirectory() as folder:
        run_command(
            "compare", "configs/real.yaml", "--out", f"{folder}/run",
            *[part for change in (
                "compare.methods=[fedproxy_fedavg_lr]", "compare.remove_ratios=[0.25]", "compare.jobs=1",
                "federate.rounds=1", "local.steps=2", "heal.steps=0",
            ) for part in ("--set", change)],
        )  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    return Row(
        metric="peak memory of a worker", value=used, n=1, unit="GB", target=f"<= {WORKER_GB:g}",
        ok=used <= WORKER_GB, command=COMMAND,
    )  # fmt: skip


def pefts_own(model: nn.Module, config: Config) -> nn.Module:
    """Return the model with the same adapter by PEFT alone."""
    from peft import LoraConfig, get_peft_model

    own = config.adapter
    lora = LoraConfig(r=own.rank, lora_alpha=own.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned: nn.Module = get_peft_model(model, lora)  # type: ignore[arg-type]
    return tuned.train()


def step_seconds(model: nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of a loss and its gradients."""
    return seconds(lambda: torch.autograd.grad(loss(), trained_parameters(model)))


def mixed_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model, on its memory, with `model.dtype: mixed`."""
    copied = sharing_copy(model)
    mix_products(copied)
    return copied


def mixed_rows(what: str, over_float32: list[float]) -> list[Row]:
    """Return the speed of `mixed` over float32; nothing where the processor has no AMX."""
    return (
        [row(f"{what}, speed of mixed over float32", over_float32, ">= 1.5", 1.5)] if over_float32 else []
    )


def every_choice_padded(model: nn.Module, materials: Materials, records: Sequence[Record]) -> None:
    """Score each choice in a row of its own, with its prompt, padded to the longest: the plain way."""
    pad = materials.tokenizer.pad_token_id
    with torch.inference_mode():
        for record in records:
            rows = [Record(prompt=record.prompt, choices=(c,), label=0) for c in record.choices]
            batch = training_batch(
                encode_records(rows, materials.tokenizer, max_tokens=256).items, pad_id=pad, device="cpu"
            )
            batch_loss(model, batch)


def once_read(record: Record, materials: Materials) -> int:
    """Return the tokens that scoring a record has to read: its prompt, and its choices but their last."""
    rows = [Record(prompt=record.prompt, choices=(c,), label=0) for c in record.choices]
    items = encode_records(rows, materials.tokenizer, max_tokens=10_000).items
    return items[0].response_start + sum(len(i.ids) - i.response_start - 2 for i in items)


def encoded(records: Sequence[Record], materials: Materials, config: Config) -> Sequence[Encoded]:
    """Return records as tokens."""
    return encode_records(records, materials.tokenizer, max_tokens=config.data.max_tokens).items


def row(metric: str, values: list[float], target: str, floor: float) -> Row:
    """Return the median of ratios, and their range."""
    value = float(np.median(values))
    return Row(
        metric=metric, value=value, low=min(values), high=max(values), n=len(values), unit="ratio",
        target=target, ok=value >= floor, command=COMMAND,
    )  # fmt: skip


if __name__ == "__main__":
    main()
