"""What the owner gets back of what clients taught a small proxy: `make bench-way-back`.

A run on SmolLM2-135M whose fused LLM is then made in several ways. `half` and `quarter` name the share of
blocks removed from `configs/real_proxies.yaml`, with a closer proxy, a smaller learning rate and twelve
rounds; `tasks DATA` is `configs/paper_small.yaml` at a quarter, with DATA as `data.root`. A run takes half
an hour of one core (`tasks` an hour) and is kept in build/bench/way_back; each way takes some five minutes
more.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from fedproxy_secure import prepare, run
from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.compress.proxy import Proxy
from fedproxy_secure.config import PlugBackConfig, load_config
from fedproxy_secure.data.evaluate import perplexity
from fedproxy_secure.evidence.answers import Bits, alone, bits_from_text, over_seeds_or_records
from fedproxy_secure.experiments.stages import evaluate
from fedproxy_secure.fuse.line_search import divergence
from fedproxy_secure.fuse.stage import fuse
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.runtime.untrusted import read_json
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-way-back"
KEPT = FOLDER / "way_back"
CLOSER = ("heal.fit_windows=128", "local.learning_rate=5.0e-4", "federate.rounds=12")
RUNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "half": ("configs/real_proxies.yaml", CLOSER),
    "quarter": ("configs/real_proxies.yaml", (*CLOSER, "compress.remove_ratio=0.25")),
    "tasks": (
        "configs/paper_small.yaml",
        (
            "heal.fit_windows=512",
            "heal.steps=60",
            "compress.remove_ratio=0.25",
            "fusion.rule=fedavg",
            "fusion.server_learning_rate=2",
            "seeds=[0]",
        ),
    ),
}
JUDGED = 8  # windows of public text that perplexity and divergence are measured on, which no way reads
MOST_WINDOWS = 400
WAYS = {
    "the difference alone": PlugBackConfig(),
    "times the factor of public text": PlugBackConfig(scale="public_text"),
    "aligned on 128 windows": PlugBackConfig(align_windows=128),
    f"aligned on {MOST_WINDOWS} windows": PlugBackConfig(align_windows=MOST_WINDOWS),
}


def main() -> None:
    """Run the named federation once, `half` without a name; fuse its LLM in every way, print and write."""
    torch.set_num_threads(1)
    name, *data = sys.argv[1:] or ["half"]
    if name not in RUNS or len(data) != (name == "tasks"):
        raise SystemExit("usage: python -m tests.bench.way_back [half | quarter | tasks DATA]")
    file, settings = RUNS[name]
    overrides = ["attacks.suite=none", *settings, *(f"data.root={root}" for root in data)]
    config = load_config(file, overrides)
    out = KEPT / name
    run(config, out, resume=out.exists())
    place = out / "seed-0"
    # more windows than the run read, the same first ones
    materials = prepare(load_config(file, [*overrides, f"plug_back.align_windows={MOST_WINDOWS}"]))
    tuned, proxy = _tuned(place)
    judged, align_on = materials.aligning_windows[-JUDGED:], materials.aligning_windows[:-JUDGED]
    said = read_json(place / "result.json")["tuned"]
    tuned_bits = {task: bits_from_text(text) for task, text in said.items()}
    rows = [
        _row("tuned proxy: accuracy", tuned_bits),
        _plain("tuned proxy: perplexity", perplexity(tuned, judged), ""),
        _plain("LLM: perplexity", perplexity(materials.llm, judged), ""),
    ]
    for way, plug_back in WAYS.items():
        made = fuse(plug_back, materials.llm, proxy, tuned, windows=materials.windows, align_on=align_on)
        found = evaluate(made.llm, materials, config)
        bits = {task: accuracy.correct for task, accuracy in found.items()}
        rows += [
            _row(f"fused LLM, {way}: accuracy", bits),
            _plain(f"fused LLM, {way}: factor", made.search.scale, ""),
            _plain(f"fused LLM, {way}: KL of the tuned proxy", divergence(tuned, made.llm, judged), "nats"),
            _plain(f"fused LLM, {way}: perplexity", perplexity(made.llm, judged), ""),
        ]
        publish(f"way_back_{name}", rows)  # what is known, should the rest be stopped


def _tuned(place: Path) -> tuple[Any, Proxy]:
    """Return the tuned proxy of a run, and the proxy that its clients got."""
    model, _ = load_llm(place / "proxy", dtype="float32")
    plan = read_json(place / "plan.json")
    own = BlockPlan(llm_blocks=plan["llm_blocks"], kept=tuple(plan["kept"]))
    tuned = PeftModel.from_pretrained(cast(Any, model), place / "adapter")
    return tuned.eval(), Proxy(model=model, plan=own)


def _row(metric: str, bits: Bits) -> Row:
    return Row.of(metric, over_seeds_or_records({0: (bits,)}, alone, metric), command=COMMAND)


def _plain(metric: str, value: float, unit: str) -> Row:
    return Row(metric=metric, value=value, n=1, unit=unit, target="", ok=None, command=COMMAND)


if __name__ == "__main__":
    main()
