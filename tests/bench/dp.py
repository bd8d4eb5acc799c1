"""What differential privacy costs in accuracy: `make bench-dp`.

The curve over epsilon takes one run of `configs/demo_private.yaml` for every adapter, epsilon and seed (40,
up to ten minutes each on one core); each is kept in build/bench/dp_cells and not run again.
`python -m tests.bench.dp core` measures the curve of `core` adapters alone, with epsilon 8 and without
noise, over five seeds. Whether claims hold is the matter of `dp_audits`, what a step costs of `dp_costs`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import Config, load_config
from fedproxy_secure.dp.accounting import spent
from fedproxy_secure.dp.events import SampledGaussian
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.evidence.estimate import mean_interval
from fedproxy_secure.experiments.results import average
from fedproxy_secure.experiments.stages import evaluate, make_fused_llm, make_proxy, prepare, tune
from fedproxy_secure.federate.job import FederationJob
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-dp"
CONFIG = "configs/demo_private.yaml"
SEEDS, MANY_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)  # many where a target is measured
EPSILONS = (math.inf, 8.0, 3.0, 1.0)
# with noise, and the better one without
LEARNING_RATES = {"core": (4e-2, 3e-2), "ffa": (5e-3, 5e-3), "lora": (3e-3, 3e-3)}
AIMED, GAP, HALF_WIDTH = 8.0, 0.85, 0.10  # epsilon, share of the gap, half of its interval
CELLS = FOLDER / "dp_cells"


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["core"]:
        publish("dp_core", curve_rows({"core": (math.inf, AIMED)}))
        return
    publish("dp", [*accountant_rows(), *curve_rows()])


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
    fused = make_fused_llm(config, materials, proxy, tuned).llm
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


def curve_rows(curves: Mapping[str, Sequence[float]] | None = None) -> list[Row]:
    """Gap closed, as a share of what the same adapter closes without noise; by adapter its epsilons."""
    rows = []
    for adapter, epsilons in (curves or dict.fromkeys(LEARNING_RATES, EPSILONS)).items():
        for epsilon in epsilons:
            many = adapter == "core" and (math.isinf(epsilon) or epsilon == AIMED)
            cells = {s: cell(adapter, epsilon, s) for s in (MANY_SEEDS if many else SEEDS)}
            free = {s: cell(adapter, math.inf, s) for s in cells}
            accuracy = mean_interval({s: c["fused"] for s, c in cells.items()}, metric="", unit="share")
            rows.append(
                Row.of(f"{adapter}, epsilon {epsilon:g}: fused accuracy", accuracy, command=COMMAND)
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
            half = math.inf if kept.high is None else kept.high - kept.value
            rows.append(
                Row.of(
                    f"{adapter}, epsilon {epsilon:g}: gap closed, over the non-private run's",
                    kept,
                    command=COMMAND,
                    target=f">= {GAP}, half-width <= {HALF_WIDTH}" if many else "",
                    ok=kept.value >= GAP and half <= HALF_WIDTH if many else None,
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


if __name__ == "__main__":
    main()
