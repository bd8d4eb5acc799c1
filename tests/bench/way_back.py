"""What the owner gets back of what clients taught a small proxy: `make bench-way-back`.

A run on SmolLM2-135M with half of its blocks removed (`configs/real_proxies.yaml` with a closer proxy, a
smaller learning rate and twelve rounds), whose fused LLM is then made in several ways. The run takes half
an hour of one core and is kept in build/bench/way_back; each way takes some five minutes more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from fedproxy_secure import prepare, run
from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.compress.proxy import Proxy
from fedproxy_secure.config import PlugBackConfig, load_config
from fedproxy_secure.data.evaluate import perplexity
from fedproxy_secure.evidence.answers import Bits, alone, over_seeds_or_records
from fedproxy_secure.experiments.results import bits_from_text
from fedproxy_secure.experiments.stages import evaluate
from fedproxy_secure.fuse.line_search import divergence
from fedproxy_secure.fuse.stage import fuse
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.runtime.untrusted import read_json
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-way-back"
RUN = FOLDER / "way_back"
SETTINGS = (
    "attacks.suite=none",
    "heal.fit_windows=128",
    "local.learning_rate=5.0e-4",
    "federate.rounds=12",
)
MOST_WINDOWS = 400
WAYS = {
    "the difference alone": PlugBackConfig(),
    "times the factor of public text": PlugBackConfig(scale="public_text"),
    "aligned on 128 windows": PlugBackConfig(align_windows=128),
    "aligned on 400 windows": PlugBackConfig(align_windows=MOST_WINDOWS),
}


def main() -> None:
    """Run the federation once, fuse its LLM in every way, print and write the rows."""
    torch.set_num_threads(1)
    config = load_config("configs/real_proxies.yaml", list(SETTINGS))
    run(config, RUN, resume=RUN.exists())
    place = RUN / "seed-0"
    # more windows than the run read, the same first ones
    materials = prepare(load_config("configs/real_proxies.yaml", [f"heal.fit_windows={MOST_WINDOWS}"]))
    tuned, proxy = _tuned(place)
    judged = materials.healing_windows[-8:]
    said = read_json(place / "result.json")["tuned"]
    tuned_bits = {task: bits_from_text(text) for task, text in said.items()}
    rows = [
        _row("tuned proxy: accuracy", tuned_bits),
        _plain("tuned proxy: perplexity", perplexity(tuned, judged), ""),
    ]
    for way, settings in WAYS.items():
        made = fuse(
            settings,
            materials.llm,
            proxy,
            tuned,
            windows=materials.windows,
            align_on=materials.healing_windows[:-8],
        )
        found = evaluate(made.llm, materials, config)
        bits = {task: accuracy.correct for task, accuracy in found.items()}
        rows += [
            _row(f"fused LLM, {way}: accuracy", bits),
            _plain(f"fused LLM, {way}: factor", made.search.scale, ""),
            _plain(f"fused LLM, {way}: KL of the tuned proxy", divergence(tuned, made.llm, judged), "nats"),
            _plain(f"fused LLM, {way}: perplexity", perplexity(made.llm, judged), ""),
        ]
        publish("way_back", rows)  # what is known, should the rest be stopped


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
