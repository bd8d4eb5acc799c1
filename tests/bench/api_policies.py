"""What an attacker gets of the fused LLM by what its API tells: `make bench-api-policies`.

A recorded quickstart run (half of the demo LLM removed, seed 0) is attacked by A12 at the smoke suite's
sizes, once for each policy, as a malicious client with 64 queries. Beside it stands what the policy takes
from customers: how often the likeliest token that is told is the fused LLM's own. Some ten minutes on one
core; `python -m tests.bench.api_policies NAME...` measures the policies of these names alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from attacks.base import replace_view
from attacks.extraction.api import Api
from attacks.extraction.behaviour import AGREEMENT, WRITTEN_TEXT
from attacks.extraction.proxy import ProxyExtraction
from attacks.extraction.scored import KL_LEFT
from attacks.extraction.texts import story_windows
from attacks.suite import read_truth
from attacks.trial import run_one
from fedproxy_secure.config import ApiConfig, load_config
from fedproxy_secure.evidence.estimate import proportion_interval
from fedproxy_secure.experiments.run import run
from fedproxy_secure.models.llm import load_tokenizer
from fedproxy_secure.record.view import View, view
from tests.bench.rows import Row, publish
from threat_models import get as threat_model

COMMAND = "make bench-api-policies"
POLICIES: Mapping[str, ApiConfig] = {
    "logits": ApiConfig(),
    "top_k": ApiConfig(answers="top_k"),
    "text": ApiConfig(answers="text"),
    "noise_1": ApiConfig(noise=1.0),
    "noise_4": ApiConfig(noise=4.0),
    "text_noise_1": ApiConfig(answers="text", noise=1.0),
}
TOLD = (
    *("extraction R", "extraction R, 16 queries", "extraction R, 64 queries", KL_LEFT),
    *(f"R of {AGREEMENT}", f"R of {WRITTEN_TEXT}"),
)
TEXTS = 32  # on which what customers are told is compared with the fused LLM


def main(names: list[str]) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    config = load_config("configs/quickstart.yaml", ["audit.record=true", "audit.holdout=0.3"])
    with tempfile.TemporaryDirectory() as scratch:
        run(config, Path(scratch) / "run", in_cell=True)
        rows = [row for name in names or POLICIES for row in policy_rows(Path(scratch) / "run", name)]
    publish("api_policies", rows)


def policy_rows(folder: Path, name: str) -> list[Row]:
    """R of a policy, its negative control, and what the policy takes from customers."""
    place, policy = folder / "seed-0", POLICIES[name]
    seen = replace_view(view(place, threat_model("client")), api_policy=policy)
    truth = read_truth(place, honest_besides=1)
    found = run_one(ProxyExtraction(), seen, truth, profile="smoke", seconds=3600, seed=0)
    print(f"{name}: {found.outcome}, {found.reason}; {found.seconds:.0f} s", flush=True)
    rows = [Row.of(f"{name}: {e.metric}", e, command=COMMAND) for e in found.estimates if e.metric in TOLD]
    if found.negative is not None:
        rows.append(Row.of(f"{name}: negative control", found.negative, command=COMMAND))
    return [*rows, customers_row(seen, name)]


def customers_row(seen: View, name: str) -> Row:
    """How often the likeliest token that is told is the fused LLM's, on public texts."""
    assert seen.api is not None
    texts = story_windows(load_tokenizer(seen.api), count=TEXTS, tokens=64, seed=7)
    told, true = (
        Api(seen.api, limit=TEXTS, policy=policy).ask(texts).likeliest
        for policy in (seen.api_policy, ApiConfig())
    )
    same = proportion_interval(
        int((told == true).sum()), true.numel(), metric="likeliest token as the LLM's", seeds=(0,)
    )
    return Row.of(f"{name}: {same.metric}", same, command=COMMAND)


if __name__ == "__main__":
    main(sys.argv[1:])
