"""What a step of private training costs in time and memory: `make bench-dp-costs`, a minute on one core."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.encode import Encoded, encode_records, training_batch
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.experiments.stages import make_proxy, prepare
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import Row, publish

COMMAND = "make bench-dp-costs"
ADAPTERS = ("core", "ffa", "lora")
STEPS = 5  # of one timed call


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    publish("dp_costs", [*cost_rows(), *ghost_rows()])


def cost_rows() -> list[Row]:
    """Time and memory of a private step over a plain one, batch 16, interleaved."""
    rows = []
    for adapter in ADAPTERS:
        config = load_config("configs/demo_world.yaml", [f"adapter.kind={adapter}"])
        materials = prepare(config)
        proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
        tuned = attach(proxy.model, config.adapter, seed=0)
        items = encode_records(materials.tasks[0].train, materials.tokenizer, max_tokens=128).items
        pad = materials.tokenizer.pad_token_id

        def plain(
            tuned: Any = tuned, items: tuple[Encoded, ...] = items, config: Config = config, pad: Any = pad
        ) -> None:
            train(
                tuned,
                items,
                steps=STEPS,
                local=config.local,
                pad_id=pad,
                rng=stream(0, "bench"),
                subject="bench",
            )

        def private(
            tuned: Any = tuned, items: tuple[Encoded, ...] = items, config: Config = config, pad: Any = pad
        ) -> None:
            rate = config.local.batch_size / len(items)
            train_privately(
                tuned,
                items,
                steps=STEPS,
                local=config.local,
                private=RecordNoise(noise_multiplier=1.0, clip_norm=1.0, sampling_rate=rate),
                noise=Noise(bytes(32)),
                pad_id=pad,
                subject="bench",
            )

        plain(), private()
        ratios = [_seconds(private) / _seconds(plain) for _ in range(9)]
        low, value, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        rows.append(
            Row(
                metric=f"{adapter}: private step over plain step, CPU time, batch 16",
                value=float(value),
                low=float(low),
                high=float(high),
                n=len(ratios),
                unit="ratio",
                target="<= 1.6",
                ok=bool(value <= 1.6),
                command=COMMAND,
            )
        )
        memory = _peak_bytes(private) / _peak_bytes(plain)
        rows.append(
            Row(
                metric=f"{adapter}: private step over plain step, most memory at once, batch 16",
                value=memory,
                low=None,
                high=None,
                n=1,
                unit="ratio",
                target="<= 1.5",
                ok=memory <= 1.5,
                command=COMMAND,
            )
        )
    return rows


def ghost_rows() -> list[Row]:
    """Opacus's ghost clipping over per-record gradients: passes of one batch of 16, `lora`, interleaved."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    config = load_config("configs/demo_world.yaml")
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
    tuned = attach(proxy.model, config.adapter, seed=0)
    items = encode_records(materials.tasks[0].train, materials.tokenizer, max_tokens=128).items[:16]
    batch = training_batch(items, pad_id=materials.tokenizer.pad_token_id, device="cpu")
    tuned.train()

    def losses() -> torch.Tensor:
        logits = tuned(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none"
        )
        return (nll * batch.response).sum(dim=1) / batch.response.sum(dim=1)

    def per_record() -> None:
        hooked = GradSampleModule(tuned, loss_reduction="mean")
        for _ in range(STEPS):
            losses().mean().backward()  # type: ignore[no-untyped-call]
            hooked.set_grad_sample_to_none()
        hooked.to_standard_module()

    def ghost() -> None:
        hooked = GradSampleModuleFastGradientClipping(
            tuned, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
        )
        for _ in range(STEPS):
            own = losses()
            own.mean().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            factor = hooked.get_clipping_coef()
            tuned.zero_grad(set_to_none=True)
            hooked.disable_hooks()
            (factor * own).sum().backward()
            hooked.enable_hooks()
            tuned.zero_grad(set_to_none=True)
        hooked.to_standard_module()

    per_record(), ghost()
    ratios = [_seconds(ghost) / _seconds(per_record) for _ in range(9)]
    low, value, high = (float(v) for v in np.quantile(ratios, [0.1, 0.5, 0.9]))
    rows = [("CPU time", value, low, high, len(ratios))]
    rows.append(("most memory at once", _peak_bytes(ghost) / _peak_bytes(per_record), None, None, 1))
    return [
        Row(
            metric=f"lora: ghost clipping over per-record gradients, {what}, batch 16",
            value=found,
            low=bottom,
            high=top,
            n=n,
            unit="ratio",
            target="",
            ok=None,
            command=COMMAND,
        )
        for what, found, bottom, top, n in rows
    ]


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _peak_bytes(work: Callable[[], None]) -> float:
    """The most memory that tensors of one call hold at once, by torch's own profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = top = 0
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        top = max(top, held)
    return float(top)


if __name__ == "__main__":
    main()
