"""How far fusion over sums is from exact H-TIES: `make bench-fusion`.

Four demo clients train four rounds of the quickstart's settings; every round's updates are fused exactly
and over sums. Where `make bench-pipeline` has left the comparison `demo_world`, also the paired
difference in accuracy of masked and plaintext H-TIES.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import FusionConfig, load_config
from fedproxy_secure.experiments.stages import make_proxy, prepare
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.fusion import algorithms as exact_rules
from fedproxy_secure.federate.fusion.elections import H_TIES
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.models.adapters import get_vector
from fedproxy_secure.secagg.ckks import products as ckks_gram
from fedproxy_secure.secagg.granularity import (
    Granularity,
    Layout,
    contribution,
    merge,
    segments_of,
)
from fedproxy_secure.secagg.ring import RingPlan, quantise, read_sum
from fedproxy_secure.secagg.sketch import Standing, count_sketch, gram_of, standing
from tests.bench.rows import FOLDER, Row, publish
from tests.support.paired import paired_difference

COMMAND = "make bench-fusion"
ROUNDS = 4


def main() -> None:
    """Measure everything, print, write."""
    publish("fusion", [*distance_rows(), *accuracy_rows()])


def distance_rows() -> list[Row]:
    """Relative distance, cosine and length against exact H-TIES, per round of real updates."""
    torch.set_num_threads(1)
    config = load_config("configs/quickstart.yaml")
    materials = prepare(config)
    proxy = make_proxy(config, materials, seed=0, remove_ratio=0.5)
    job = FederationJob.from_config(config, seed=0)
    found: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(proxy.model, materials.tokenizer, Path(folder))
        named = with_proxy(job, Path(folder))
        clients = [build_client(named, i, Path(folder)) for i in range(len(job.clients))]
        layout = Layout(sizes=tuple(clients[0].sizes))
        with clients[0].model.lent() as tuned:
            adapter = get_vector(tuned)
        for round_number in range(ROUNDS):
            tau = np.stack([c.train(round=round_number, start=adapter).update for c in clients])
            own = job.fusion
            exact = exact_rules.h_ties(
                tau, exact_rules.analyse(tau), rho=own.rho, r0=own.r0, delta=own.delta
            )
            mean = tau.mean(axis=0)
            others = {
                "the best multiple of the mean": (mean @ exact) / (mean @ mean) * mean,
                "coordinate": over_sums(tau, "coordinate", layout, own),
                "block": over_sums(tau, "block", layout, own),
                "coordinate, encrypted_gram": over_sums(
                    tau, "coordinate", layout, own, places=standings(tau, own, round_number)
                ),
                "block, encrypted_gram": over_sums(
                    tau, "block", layout, own, places=standings(tau, own, round_number)
                ),
            }
            for name, step in others.items():
                found.setdefault(name, []).append(_compare(step, exact))
            adapter = (adapter + exact).astype(np.float32)
    rows = []
    for name, values in found.items():
        for metric, column in zip(
            ("relative distance", "cosine", "length"), np.array(values).T, strict=True
        ):
            rows.append(
                Row(
                    metric=f"{name} against exact H-TIES: {metric}",
                    value=float(np.mean(column)),
                    low=float(column.min()),
                    high=float(column.max()),
                    n=ROUNDS,
                    unit="ratio",
                    target="",
                    ok=None,
                    command=COMMAND,
                )
            )
    return rows


def over_sums(
    tau: np.ndarray,
    granularity: Granularity,
    layout: Layout,
    fusion: FusionConfig,
    *,
    places: Sequence[Standing] | None = None,
) -> np.ndarray:
    """The step that the server computes from the sums, float32 [d]; the masks would cancel."""
    clients, clip = len(tau), float(np.abs(tau).max())
    segments = segments_of(granularity, layout, clip=clip, clients=clients, bits=32)
    plan = RingPlan(bits=32, clients=clients, segments=segments)
    total = np.zeros(plan.words, dtype=plan.word_type)
    places = places or [Standing(weight=1.0, retention=H_TIES.kept_share(fusion))] * clients
    for update, place in zip(tau, places, strict=True):
        trimmed = exact_rules.keep_largest(update, place.retention)
        total += quantise(plan, contribution(trimmed, granularity, layout, plan, weight=place.weight)).words
    made = merge(
        read_sum(plan, total),
        granularity,
        layout,
        plan,
        clients=clients,
        weight=sum(p.weight for p in places),
        rho=fusion.rho,
        kept=H_TIES.kept_share(fusion),
    )
    return made.step


def standings(tau: np.ndarray, fusion: FusionConfig, round_number: int) -> list[Standing]:
    """What each client does with the cosines, through real sketches and ciphertexts."""
    keys = ckks_gram.make_keys()
    seed = round_number.to_bytes(32, "big")
    sketches = [ckks_gram.encrypt(keys.secret, count_sketch(update, seed)) for update in tau]
    opened = ckks_gram.open_products(keys.secret, ckks_gram.products(keys.public, sketches))
    cosines = gram_of(len(tau), opened)
    return [standing(cosines, i, r0=fusion.r0, delta=fusion.delta) for i in range(len(tau))]


def _compare(step: np.ndarray, exact: np.ndarray) -> tuple[float, float, float]:
    length, whole = float(np.linalg.norm(step)), float(np.linalg.norm(exact))
    return (
        float(np.linalg.norm(step - exact)) / whole,
        float(step @ exact) / length / whole,
        length / whole,
    )


def accuracy_rows() -> list[Row]:
    """Masked minus plaintext H-TIES in points of fused accuracy, paired by seed, where it was compared."""
    cells = FOLDER / "demo_world" / "cells"
    if not cells.is_dir():
        return []
    config = load_config("configs/demo_world.yaml")
    rows = []
    for ratio in config.compare.remove_ratios:
        for method in ("masked_h_ties_coordinate", "masked_h_ties_block"):
            accuracy = {
                m: {s: _accuracy(cells / f"{m}-{ratio:g}-seed{s}.json") for s in config.seeds}
                for m in (method, "fedproxy_h_ties")
            }
            made = paired_difference(
                accuracy[method], accuracy["fedproxy_h_ties"], metric="difference", unit="share"
            )
            low, high = (None if v is None else 100 * v for v in (made.low, made.high))
            within = abs(100 * made.value) <= 0.5
            rows.append(
                Row(
                    metric=f"demo_world, ratio {ratio:g}: {method} minus plaintext H-TIES",
                    value=100 * made.value,
                    low=low,
                    high=high,
                    n=made.n,
                    unit="points",
                    target="within .5" if method.endswith("block") else "",
                    ok=within if method.endswith("block") else None,
                    command=COMMAND,
                )
            )
    return rows


def _accuracy(cell: Path) -> float:
    shares = [b.count("1") / len(b) for b in json.loads(cell.read_text())["fused"].values()]
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
