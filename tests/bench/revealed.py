"""What granularity `coordinate` reveals that `block` does not: `make bench-revealed`.

The rounds of `tests.bench.attacks`, fused by H-TIES: beside the sum the server reads per coordinate the sum
of magnitudes and the counts of signs. Counted is where one client stands alone on a side, so that its value
is known, and where all agree, so that every client's sign is. Then A2 and A5 get the sum with the lone
clients' values in their places, and the sum as it is. Some three minutes on one core.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from attacks.base import Budget, Truth
from attacks.integrity.passive_sums import SignCounts, coordinate_sums
from attacks.registry import get
from attacks.trial import run_one
from fedproxy_secure.config import load_config
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.experiments.stages import prepare
from fedproxy_secure.record.view import Sums, View
from tests.bench.attacks import Setting, rounds
from tests.bench.rows import Row, publish

COMMAND = "make bench-revealed"
SETTINGS = (
    Setting(adapter="lora", optimizer="sgd", steps=1, batch=4),
    Setting(adapter="lora"),
    Setting(adapter="ffa"),
)
SHARES = {
    "share of coordinates with a lone contributor": "one client's value known",
    "share of coordinates with unanimous signs": "every client's sign known",
    SignCounts.info.headline: "one client's value named right",
}


def main() -> None:
    """Measure everything, print, write."""
    torch.set_num_threads(1)
    config = load_config("configs/demo_matrix.yaml", ["audit.holdout=0", "audit.canaries=[]"])
    materials = prepare(config)
    rows: list[Row] = []
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            for cohort, view, truth in rounds(config, materials, setting, Path(folder)):
                if cohort > 1:
                    rows += revealed_rows(f"{setting.name}, sum of {cohort}", view, truth)
    publish("revealed", rows)


def revealed_rows(where: str, view: View, truth: Truth) -> list[Row]:
    """Shares of coordinates, and A2's and A5's AUC from the sum with and without them."""
    sums = coordinate_sums(view, truth)
    counts = replace(view, sums=sums)
    attack, rng = SignCounts(), np.random.default_rng(0)
    guess = attack.guess(counts, None, Budget(), rng)
    rows = [_row(f"{where}: {SHARES[e.metric]}", e) for e in attack.score(guess, truth)]
    ((number, at, values, _),) = guess.named
    with_lone = sums[number].segments["update"].copy()
    with_lone[at] = values
    lone = Sums(clients=sums[number].clients, segments={"update": with_lone.astype(np.float32)})
    for id_, what in (("A2", "token AUC"), ("A5", "membership AUC")):
        for seen, from_what in (
            (view, "the sum"),
            (replace(view, sums={number: lone}), "with lone values"),
        ):
            found = run_one(get(id_), seen, truth, profile="smoke", seconds=120, seed=0)
            (auc,) = (e for e in found.estimates if e.metric == "auc")
            rows.append(_row(f"{where}: {what}, {from_what}", auc))
            print(rows[-1].metric, f"{rows[-1].value:.3f}", file=sys.stderr, flush=True)
    return rows


def _row(metric: str, e: Estimate) -> Row:
    return Row.of(metric, e, command=COMMAND)


if __name__ == "__main__":
    main()
