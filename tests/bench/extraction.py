"""How much of an LLM comes back from its proxy and queries: `make bench-extraction`.

A12 at the standard suite's sizes against the embedded demo LLM, whose proxies lack a quarter, half and
three quarters of the blocks, and against the fused LLM of a recorded quickstart run, half removed, as a
malicious client of that run. Besides: R when the true gaps are known, and ancestry against other
seeds. About a quarter of an hour on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from attacks.base import Budget, Truth
from attacks.extraction.ancestry import ancestry
from attacks.extraction.api import Api
from attacks.extraction.behaviour import KL, behaviour, scales, scores
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.questions import answers_of, questions
from attacks.extraction.starts.fillers import gaps_of, grown, spread
from attacks.extraction.starts.offered import FILLERS, Offer
from attacks.extraction.texts import known_texts
from attacks.extraction.thief import TEXT_TOKENS, Effort, Thief
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.config import load_config
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding
from fedproxy_secure.experiments.run import run
from fedproxy_secure.experiments.stages import make_proxy, prepare
from fedproxy_secure.models.llm import demo_llm_folder, load_llm
from fedproxy_secure.record.view import View, view
from tests.bench.rows import Row, publish
from threat_models import get as threat_model

COMMAND = "make bench-extraction"
RATIOS = (0.25, 0.5, 0.75)
KNOWN_GAPS = Effort(grid=(256,), steps=80, batch=8, all_controls=False, recipes=(FILLERS,))


def main() -> None:
    """Measure everything, print, write."""
    publish("extraction", extraction_rows())


def extraction_rows() -> list[Row]:
    """R against queries, the gains, the controls; for each victim."""
    torch.set_num_threads(1)
    config = load_config("configs/quickstart.yaml")
    materials = prepare(config)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        recorded = config.model_copy(
            update={"audit": config.audit.model_copy(update={"record": True, "holdout": 0.3})}
        )
        run(recorded, Path(scratch) / "run")
        rows += _finding_rows("fused LLM, 50% removed", _attack_run(Path(scratch) / "run" / "seed-0"))
        for ratio in RATIOS:
            proxy = make_proxy(config, materials, seed=0, remove_ratio=ratio)
            folder = Path(scratch) / f"proxy-{ratio:g}"
            save_model(proxy.model, materials.tokenizer, folder)
            name = f"demo LLM, {ratio:.0%} removed"
            rows += _finding_rows(name, _attack_demo(folder))
            if ratio < RATIOS[-1]:  # there even spreading is right
                rows += _gap_rows(name, proxy)
            if ratio == 0.5:
                rows += _ancestry_rows(name, folder)
    return rows


def _attack_demo(proxy: Path) -> Finding:
    seen = View(
        threat_model="client",
        settings=None,
        adapters={0: np.zeros(0, dtype=np.float32)},
        proxy=proxy,
        api=demo_llm_folder(),
    )
    return _attack(seen, Truth(clients={}))


def _attack_run(folder: Path) -> Finding:
    return _attack(view(folder, threat_model("client")), read_truth(folder, honest_besides=1))


def _attack(seen: View, truth: Truth) -> Finding:
    return run_one(ProxyExtraction(), seen, truth, profile="standard", seconds=3600, seed=0)


def _finding_rows(victim: str, found: Finding) -> list[Row]:
    print(f"{victim}: {found.outcome}, {found.reason}; {found.seconds:.0f} s", flush=True)
    controls = {"positive control": found.positive, "negative control": found.negative}
    made = [_row(f"{victim}: {e.metric}", e) for e in found.estimates]
    made += [_row(f"{victim}: {name}", e) for name, e in controls.items() if e is not None]
    for row in made:  # as they come: the next victim takes minutes
        print(f"  {row.metric}  {row.value:.4g}", flush=True)
    return made


def _gap_rows(victim: str, proxy: Proxy) -> list[Row]:
    """The same texts, queries and steps with fillers spread evenly and where blocks are missing."""
    llm, tokenizer = load_llm("demo", dtype="float32")
    asked = questions(demo_llm_folder(), (), seed=0)
    original = answers_of(demo_llm_folder(), asked)
    count = KNOWN_GAPS.grid[-1]
    texts = known_texts(
        proxy.model, tokenizer, count=count, tokens=TEXT_TOKENS, rng=np.random.default_rng(1)
    )
    api, plan = Api(demo_llm_folder(), limit=count), proxy.plan
    thief = Thief(proxy.model, api, texts, KNOWN_GAPS, Budget(seconds=3600), 0)
    gaps = {
        "spread evenly": spread(len(plan.kept), len(plan.dropped)),
        "in the true gaps": gaps_of(plan.kept, plan.llm_blocks),
    }
    found = {"proxy": proxy.model, "LLM": llm}
    for name, places in gaps.items():
        start = grown(proxy.model, places, "zero")
        found[name] = thief.distilled(count, [Offer(name=name, make=lambda start=start: start)]).model
    answers = {name: behaviour(m, asked) for name, m in found.items()}
    values = {name: scores(b, original, asked) for name, b in answers.items()}
    scale = scales(values, "proxy", "LLM")[KL]
    return [
        _row(f"{victim}: R, {count} queries, fillers {name}", scale.estimate(values[name][KL], "R"))
        for name in gaps
    ]


def _ancestry_rows(victim: str, proxy: Path) -> list[Row]:
    descent = ancestry(proxy, demo_llm_folder())
    numbers = {
        "ancestry": (descent.score,),
        "ancestry of models of 3 other seeds": descent.strangers,
    }
    return [
        Row(
            metric=f"{victim}: {name}",
            value=float(np.mean(values)),
            low=min(values),
            high=max(values),
            n=len(values),
            unit="ratio",
            target="",
            ok=None,
            command=COMMAND,
        )
        for name, values in numbers.items()
    ]


def _row(metric: str, made: Estimate) -> Row:
    return Row.of(metric, made, command=COMMAND)


if __name__ == "__main__":
    main()
