"""What differential privacy costs: `make bench-dp`.

The curve over epsilon takes one run of `configs/demo_private.yaml` for every adapter, epsilon and seed (36,
some two minutes each on one core); each is kept in build/bench/dp_cells and not run again.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.audit.training_audit import audit_private_steps
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.data.encode import Encoded, encode_records, training_batch
from fedproxy_secure.dp.accounting import noise_multiplier_for, spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.dp.noise import Noise
from fedproxy_secure.dp.record_noise import RecordNoise
from fedproxy_secure.evidence.estimate import mean_interval
from fedproxy_secure.experiments.results import average
from fedproxy_secure.experiments.stages import evaluate, make_fused_llm, make_proxy, prepare, tune
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.private_training import train_privately
from fedproxy_secure.federate.training import train
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.runtime.randomness import stream
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-dp"
CONFIG = "configs/demo_private.yaml"
SEEDS = (0, 1, 2)
EPSILONS = (math.inf, 8.0, 3.0, 1.0)
# with noise, and the better one without
LEARNING_RATES = {"core": (5e-2, 3e-2), "ffa": (5e-3, 5e-3), "lora": (3e-3, 3e-3)}
STEPS = 5  # of one timed call
CELLS = FOLDER / "dp_cells"


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    publish("dp", [*accountant_rows(), *audit_rows(), *cost_rows(), *ghost_rows(), *curve_rows()])


def cell(adapter: str, epsilon: float, seed: int) -> dict[str, Any]:
    """One run: fused and tuned accuracy, epsilon spent; from its file if it was run before."""
    config = _config(adapter, epsilon)
    file = CELLS / f"{adapter}-eps{epsilon:g}-seed{seed}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        if found["config_sha256"] == config.sha256():
            return found
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=seed, remove_ratio=config.compress.remove_ratio)
    with tempfile.TemporaryDirectory() as folder:
        save_model(proxy.model, materials.tokenizer, Path(folder) / "proxy")
        job = FederationJob.from_config(config, seed=seed)
        tuned = tune(job, proxy.model, Path(folder) / "proxy", run_folder=Path(folder))
        costs = read_all(Path(folder) / "privacy").values()
    fused = make_fused_llm(materials, proxy, tuned)
    made = {
        "config_sha256": config.sha256(),
        "fused": average(evaluate(fused, materials, config)),
        "tuned": average(evaluate(tuned, materials, config)),
        "zero_shot": average(evaluate(materials.llm, materials, config)),
        "spent": max((c.epsilon for c in costs), default=None),
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made, indent=2))
    print(f"{file.stem}: fused {made['fused']:.3f}, tuned {made['tuned']:.3f}", file=sys.stderr, flush=True)
    return made


def _config(adapter: str, epsilon: float) -> Config:
    private, free = LEARNING_RATES[adapter]
    rate = free if math.isinf(epsilon) else private
    changes = [f"adapter.kind={adapter}", f"local.learning_rate={rate}"]
    if math.isinf(epsilon):
        changes.append("privacy.unit=none")
    else:
        # seeded noise, so that the same command gives the same table
        changes += [f"privacy.target_epsilon={epsilon}", "privacy.randomness=unsafe_simulated"]
    return load_config(CONFIG, changes)


def curve_rows() -> list[Row]:
    """Gap closed, as a share of what the same adapter closes without noise."""
    rows = []
    for adapter in LEARNING_RATES:
        free = {s: cell(adapter, math.inf, s) for s in SEEDS}
        for epsilon in EPSILONS:
            cells = {s: cell(adapter, epsilon, s) for s in SEEDS}
            accuracy = mean_interval({s: c["fused"] for s, c in cells.items()}, metric="", unit="share")
            rows.append(
                _row(f"{adapter}, epsilon {epsilon:g}: fused accuracy", accuracy, "share", "", None)
            )
            if math.isinf(epsilon):
                continue
            kept = mean_interval(
                {
                    s: (c["fused"] - c["zero_shot"]) / (free[s]["fused"] - free[s]["zero_shot"])
                    for s, c in cells.items()
                },
                metric="",
                unit="share",
            )
            aimed = adapter == "core" and epsilon == 8
            rows.append(
                _row(
                    f"{adapter}, epsilon {epsilon:g}: gap closed, over the non-private run's",
                    kept,
                    "share",
                    ">= .70" if aimed else "",
                    kept.value >= 0.7 if aimed else None,
                )
            )
    return rows


def cost_rows() -> list[Row]:
    """Time and memory of a private step over a plain one, batch 16, interleaved."""
    rows = []
    for adapter in LEARNING_RATES:
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
                who="bench",
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
                who="bench",
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


def audit_rows() -> list[Row]:
    """The one-run audit of our DP-SGD over 20 seeds, with the claimed noise and with a quarter of it."""
    claimed, delta, rate, steps = 1.0, 1e-5, 0.5, 10
    needed = noise_multiplier_for(target_epsilon=claimed, delta=delta, sampling_rate=rate, steps=steps)
    rows = []
    for part, wanted in ((1.0, 0), (0.25, 20)):
        results = [
            audit_private_steps(
                noise_multiplier=needed * part,
                sampling_rate=rate,
                steps=steps,
                claimed_epsilon=claimed,
                delta=delta,
                seed=seed,
            )
            for seed in range(20)
        ]
        failed = sum(r.verdict == "FAIL" for r in results)
        bounds = [r.lower_bound for r in results]
        rows.append(
            Row(
                metric=f"claim epsilon 1, {part:g} of its noise: runs of 20 that FAIL the audit",
                value=failed,
                low=None,
                high=None,
                n=len(results),
                unit="runs",
                target=f"= {wanted}",
                ok=failed == wanted,
                command=COMMAND,
            )
        )
        rows.append(
            Row(
                metric=f"claim epsilon 1, {part:g} of its noise: audited lower bound, mean over runs",
                value=float(np.mean(bounds)),
                low=min(bounds),
                high=max(bounds),
                n=len(results),
                unit="epsilon",
                target="",
                ok=None,
                command=COMMAND,
            )
        )
    return rows


def accountant_rows() -> list[Row]:
    """Our epsilon against dp-accounting's, on a grid."""
    sys.path.append("build/peers")  # pip install --target build/peers dp-accounting
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        print("dp-accounting is missing: pip install --target build/peers dp-accounting", file=sys.stderr)
        return []
    over = []
    for noise in (0.6, 1.0, 2.0):
        for rate in (0.004, 0.04, 1.0):
            for steps in (80, 400):
                ours = spent(
                    [SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=steps)], delta=1e-5
                ).epsilon
                peer = PLDAccountant()
                event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
                peer.compose(SelfComposedDpEvent(event, steps))
                over.append(ours / peer.get_epsilon(1e-5))
    rows = [
        ("lowest", min(over), min(over) >= 0.99, ">= .99"),
        ("highest", max(over), max(over) <= 1.01, "<= 1.01"),
    ]
    return [
        Row(
            metric=f"epsilon over dp-accounting's (PLD), {name} on the grid",
            value=float(value),
            low=None,
            high=None,
            n=len(over),
            unit="ratio",
            target=target,
            ok=ok,
            command=COMMAND,
        )
        for name, value, ok, target in rows
    ]


def _row(metric: str, made: Any, unit: str, target: str, ok: bool | None) -> Row:
    return Row(
        metric=metric,
        value=made.value,
        low=made.low,
        high=made.high,
        n=made.n,
        unit=unit,
        target=target,
        ok=ok,
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
