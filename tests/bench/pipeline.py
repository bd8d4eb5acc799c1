"""The pipeline's targets: `make bench-pipeline`.

Runs `configs/demo_world.yaml` (and `configs/real_text.yaml` where `FEDPROXY_DATA` names the folder of
the real data) below `build/bench`, going on with what is already there, and measures what the framework
costs beside the training itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch

from fedproxy_secure.config import Config, load_config
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.flower.engines import federate
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import demo_llm_folder, load_llm
from fedproxy_secure.report.report import MethodRow, Report
from tests.bench.rows import FOLDER, Row, publish
from tests.support.command import run_command
from tests.support.paired import paired_difference

COMMAND = "make bench-pipeline"
FLOORS = {0.25: 0.9, 0.5: 0.8}
OVERHEAD_REPEATS = 5


def main() -> None:
    """Measure everything, print, write."""
    rows = [quickstart_seconds(), overhead()]
    rows += comparison_rows("demo_world", FLOORS)
    if data := os.environ.get("FEDPROXY_DATA"):
        rows += comparison_rows("real_text", {}, f"data.root={data}", f"model.path={data}/lm")
    publish("pipeline", rows)


def quickstart_seconds() -> Row:
    """Wall time of the embedded comparison, on two cores."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_command("compare", "configs/quickstart.yaml", "--out", f"{folder}/run")
        took = time.perf_counter() - began
    return Row(
        metric="compare quickstart after installation",
        value=took,
        low=None,
        high=None,
        n=1,
        unit="s",
        target="<= 180",
        ok=took <= 180,
        command=COMMAND,
    )


def overhead() -> Row:
    """Wall time of a federation on the in-process grid over the bare training of its clients."""
    from tests.bench.rows import interleaved_ratio

    torch.set_num_threads(1)
    config = Config()
    job = FederationJob.from_config(config, seed=0)
    job = job.changed(
        local=job.local.model_copy(update={"steps": 10}),
        federate=job.federate.model_copy(update={"rounds": 2}),
    )
    folder = demo_llm_folder()
    model, _ = load_llm(folder)
    initial = initial_state(attach(model, job.adapter, seed=0))
    named = with_proxy(job, folder)
    clients = [build_client(named, i, folder) for i in range(len(job.clients))]

    def bare() -> None:
        for round_number in range(job.federate.rounds):
            for client in clients:
                client.train(round=round_number, start=initial.adapter)

    with tempfile.TemporaryDirectory() as run_folder:

        def federated() -> None:
            state = Path(run_folder) / "state.safetensors"
            state.unlink(missing_ok=True)
            federate(job, folder, initial, run_folder=Path(run_folder))

        value, low, high = interleaved_ratio(federated, bare, OVERHEAD_REPEATS)
    return Row(
        metric="federation over bare training, in-process grid",
        value=value,
        low=low,
        high=high,
        n=OVERHEAD_REPEATS,
        unit="ratio",
        target="<= 1.10",
        ok=value <= 1.10,
        command=COMMAND,
    )


def comparison_rows(name: str, floors: dict[float, float], *changes: str) -> list[Row]:
    """Gap closed by the best FedProxy rule, its lead over FedOT, the owner's edge, per ratio."""
    folder = FOLDER / name
    sets = [part for change in changes for part in ("--set", change)]
    run_command("compare", f"configs/{name}.yaml", *sets, "--out", str(folder), "--resume")
    report = Report.load(folder)
    config = load_config(f"configs/{name}.yaml", list(changes))
    rows = []
    for ratio in config.compare.remove_ratios:
        mine = [r for r in report.rows if r.remove_ratio == ratio]
        best = max((r for r in mine if r.method.startswith("fedproxy_")), key=_gap)
        rivals = [r for r in mine if r.method.startswith("fedot")]
        floor = floors.get(ratio)
        where = f"{name}, ratio {ratio:g}, {best.method}"
        rows.append(
            _row(
                f"{where}: gap closed",
                best.gap_closed,
                "" if floor is None else f">= {floor}",
                None if floor is None else _gap(best) >= floor,
            )
        )
        for rival in rivals:
            lead = _lead(folder, config, best.method, rival.method, ratio)
            ok = lead.low is not None and lead.low > 0
            rows.append(_row(f"{where}: lead over {rival.method}", lead, "interval above 0", ok))
        edge = best.owners_edge
        ok = None if edge is None else edge.value >= 0
        rows.append(_row(f"{where}: owner's edge", edge, ">= 0", ok))
    return rows


def _lead(folder: Path, config: Config, best: str, rival: str, ratio: float) -> Estimate:
    """Paired difference of the two methods' accuracies, seed by seed."""
    import json

    def accuracy(method: str, seed: int) -> float:
        cell = json.loads((folder / "cells" / f"{method}-{ratio:g}-seed{seed}.json").read_text())
        shares = [bits.count("1") / len(bits) for bits in cell["fused"].values()]
        return sum(shares) / len(shares)

    a, b = ({s: accuracy(m, s) for s in config.seeds} for m in (best, rival))
    return paired_difference(a, b, metric="lead", unit="share")


def _gap(row: MethodRow) -> float:
    return -1.0 if row.gap_closed is None else row.gap_closed.value


def _row(metric: str, estimate: Estimate | None, target: str, ok: bool | None) -> Row:
    assert estimate is not None, f"{metric}: the comparison lacks what this row needs"
    return Row.of(metric, estimate, command=COMMAND, target=target, ok=ok)


if __name__ == "__main__":
    main()
