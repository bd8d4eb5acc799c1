"""What makes a difference that clients taught the proxy survive in the LLM: `make bench-transfer`.

On `configs/real.yaml` with 4 rounds and 30 healing steps, each variant changes one thing: how the proxy is
healed, which blocks it keeps, and by what factor the lifted difference is scaled. A variant takes about ten
minutes of one core; each is kept in build/bench/transfer and not run again.
`python -m tests.bench.transfer states predictions` measures these variants alone.
"""

from __future__ import annotations

import json
import operator
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedproxy_secure.config import Config, load_config
from fedproxy_secure.config.kinds import METHODS
from fedproxy_secure.evidence.answers import alone, over_seeds_or_records
from fedproxy_secure.experiments.inputs import Inputs
from fedproxy_secure.experiments.results import Accuracy
from fedproxy_secure.fuse.plug_back import plug_back
from fedproxy_secure.models.adapters import block_deltas
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-transfer"
CONFIG = "configs/real.yaml"
BUDGET = ("federate.rounds=4", "heal.steps=30", "plug_back.align_windows=null")
METHOD = "fedproxy_fedavg_lr"
SEED, RATIO = 0, 0.25
SCALES = (0.5, 1.0, 1.5)  # of the lifted difference
CELLS = FOLDER / "transfer"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "states": (),
    "predictions": ("heal.state_weight=0",),
    "unhealed": ("heal.steps=0",),
    "slow": ("heal.learning_rate=1e-4",),
    "light": ("heal.state_weight=10",),
    "heavy": ("heal.state_weight=1000",),
    "uniform": ("compress.importance=uniform",),
    "server_4": ("compare.server_learning_rate=4",),
}


def main() -> None:
    """Measure the variants that are asked for, or all; print, write."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(VARIANTS)
    publish("transfer", [row for name in names for row in rows(name, cell(name))])


def cell(name: str) -> Mapping[str, Any]:
    """Return which test records each model of a variant answers; from its file if it was run before."""
    config = load_config(CONFIG, [*BUDGET, *VARIANTS[name]])
    file = CELLS / f"{name}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["config_sha256"] == config.sha256():
            return kept
    made = {"config_sha256": config.sha256(), **run(config)}
    CELLS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made) + "\n")
    return made


def run(config: Config) -> dict[str, Any]:
    """Heal and tune a proxy; judge it, and the LLM with its difference at every scale."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs.load(config, seed=SEED, ratio=RATIO, folder=Path(folder))
        proxy = inputs.proxy()
        tuned, _ = inputs.federate(proxy.model, METHODS.get(METHOD).federation(config))
        deltas = block_deltas(tuned)
        answered = {"tuned": answers(inputs.evaluate(tuned))}
        for scale in SCALES:
            scaled = {place: scale * delta for place, delta in deltas.items()}
            fused = plug_back(inputs.llm, proxy, scaled)
            answered[f"fused {scale:g}"] = answers(inputs.evaluate(fused))
    return {"answers": answered, "healing": proxy.details.get("healing")}


def answers(accuracies: Mapping[str, Accuracy]) -> list[int]:
    """Return one 0 or 1 for each test record of all tasks, which are of one size."""
    return [int(c) for found in accuracies.values() for c in found.correct]


def rows(name: str, made: Mapping[str, Any]) -> list[Row]:
    """Shares of test records, and the owner's edge on the same records."""
    found = {what: {"all tasks": each} for what, each in made["answers"].items()}
    shares = [over_seeds_or_records({SEED: (bits,)}, alone, what) for what, bits in found.items()]
    edge = over_seeds_or_records({SEED: (found["fused 1"], found["tuned"])}, operator.sub, "owner's edge")
    made_rows = [Row.of(f"{name}: {e.metric}", e, command=COMMAND) for e in (*shares, edge)]
    if made["healing"] is not None:
        for key in ("kl_after", "state_error_after"):
            value = made["healing"][key]
            made_rows.append(
                Row(metric=f"{name}: {key}", value=value, n=1, unit="", target="", ok=None, command=COMMAND)
            )
    return made_rows


if __name__ == "__main__":
    main()
