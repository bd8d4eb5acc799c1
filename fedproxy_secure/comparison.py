"""`compare`: every method x remove ratio x seed, in parallel, resumable, joined into one report."""

from __future__ import annotations

import operator
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from fedproxy_secure.artifacts import RunFolder, environment
from fedproxy_secure.config import RATIO_FREE_METHODS, Config, Method
from fedproxy_secure.dp.guarantees import guarantees
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.preload import end_with_parent
from fedproxy_secure.progress import NoProgress, Progress
from fedproxy_secure.report.estimate import (
    Bits,
    Estimate,
    alone,
    gap_closed,
    mean_share,
    over_seeds_or_records,
)
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import MethodRow, Report
from fedproxy_secure.untrusted import read_json


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of one method: a line of the comparison before seeds are joined."""

    method: Method
    remove_ratio: float | None
    seed: int

    @property
    def name(self) -> str:
        """File name of the cell's record, without suffix."""
        ratio = "" if self.remove_ratio is None else f"-{self.remove_ratio:g}"
        return f"{self.method}{ratio}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What a finished cell left on disk."""

    cell: Cell
    fused: Bits
    tuned: Bits | None
    upload_bytes: int
    seconds: float


def cells_of(config: Config) -> list[Cell]:
    """All cells, longest first where that is known, so that two workers end about together."""
    cells = []
    for method in config.compare.methods:
        ratios = (None,) if method in RATIO_FREE_METHODS else config.compare.remove_ratios
        cells += [
            Cell(method=method, remove_ratio=ratio, seed=seed) for ratio in ratios for seed in config.seeds
        ]
    heavy: tuple[Method, ...] = ("centralised_llm", "fedavg_llm")
    return sorted(cells, key=lambda c: c.method not in heavy)


def plan_rows(config: Config) -> list[tuple[str, str]]:
    """What a comparison would train: names and formatted values, for people; nothing is loaded."""
    cells = cells_of(config)
    trained = [c for c in cells if not c.method.startswith("zero_shot")]
    steps = config.federate.rounds * config.local.steps * len(config.data.clients)
    return [
        ("cells", f"{len(cells)}: {len(config.compare.methods)} methods, {len(config.seeds)} seeds"),
        ("training", f"{len(trained)} cells of {steps:,} steps, {len(trained) * steps:,} in all"),
    ]


def compare(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """Run every cell that `out` does not hold yet, then write and return the report.

    Cells run in `compare.jobs` processes of one torch thread each; by itself one a core, and on CUDA one
    in all. A stopped comparison goes on with `resume=True` and ends with the same report.

    Raises `FedProxyError` of the first failing cell, after the running ones have ended and been saved.
    """
    from fedproxy_secure.llm import pick_device
    from fedproxy_secure.pipeline import truncated_prompts

    if any(m.startswith("masked_") for m in config.compare.methods):
        config.check_protection()
    shown = progress or NoProgress()
    folder = RunFolder.resume(out, config) if resume else RunFolder.create(out, config)
    cells = cells_of(config)
    todo = [c for c in cells if not cell_file(out, c).exists()]
    truncated = truncated_prompts(config)  # first of all: unreadable records stop here
    shown.start("compare", len(todo))  # of those left, so that the time left is not flattered
    for result in _run_cells(config, todo):
        folder.write_json(f"cells/{result.cell.name}.json", cell_to_json(result))
        shown.advance("compare", note=result.cell.name)
    shown.done("compare")
    results = [read_cell(out, c) for c in cells]
    report = Report(
        name=config.name,
        command=command or "fedproxy_secure.compare(...)",
        config_sha256=config.sha256(),
        environment=environment(str(pick_device(config.model.device))),
        seeds=config.seeds,
        estimates=_costs(results),
        rows=tuple(rows_of(results)),
        notes=_notes(config, truncated),
    )
    publish(report, out)
    return report


def _run_cells(config: Config, todo: Sequence[Cell]) -> Iterator[CellResult]:
    """Finished cells, in the order they finish."""
    from fedproxy_secure.llm import pick_device

    by_itself = 1 if pick_device(config.model.device).type == "cuda" else os.cpu_count() or 1
    jobs = min(config.compare.jobs or by_itself, len(todo))
    waiting, failed = list(todo), None
    if not waiting:
        return
    # spawned workers inherit this; contending threads are 20 times slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        running: set[Future[CellResult]] = set()
        while running or (waiting and failed is None):
            while waiting and failed is None and len(running) < jobs:
                running.add(pool.submit(run_cell, config, waiting.pop(0)))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if error is None:
                    yield future.result()
                failed = failed or error
    if failed is not None:
        raise failed


def run_cell(config: Config, cell: Cell) -> CellResult:
    """Run one cell in this process."""
    import torch

    from fedproxy_secure.methods import run_method

    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_method(
            cell.method,
            config,
            seed=cell.seed,
            remove_ratio=cell.remove_ratio,
            folder=Path(folder),
        )
    return CellResult(
        cell=cell,
        fused={t: a.correct for t, a in outcome.fused.items()},
        tuned=None if outcome.tuned is None else {t: a.correct for t, a in outcome.tuned.items()},
        upload_bytes=outcome.upload_bytes,
        seconds=time.perf_counter() - began,
    )


def rows_of(results: Sequence[CellResult]) -> list[MethodRow]:
    """Join seeds: one row per method and remove ratio, gap closed paired by seed."""
    by_seed = {(r.cell.method, r.cell.remove_ratio, r.cell.seed): r for r in results}
    keys = list(dict.fromkeys((r.cell.method, r.cell.remove_ratio) for r in results))
    rows = []
    for method, ratio in sorted(keys, key=lambda k: (k[1] is not None, k[1] or 0)):
        mine = {s: r for (m, q, s), r in by_seed.items() if (m, q) == (method, ratio)}
        rows.append(_row(method, ratio, mine, by_seed))
    return rows


def _row(
    method: Method,
    ratio: float | None,
    mine: dict[int, CellResult],
    by_seed: dict[tuple[Method, float | None, int], CellResult],
) -> MethodRow:
    fused = {s: r.fused for s, r in mine.items()}
    tuned = {s: r.tuned for s, r in mine.items() if r.tuned is not None}
    name = method if ratio is None else f"{method} at {ratio:g}"
    ends = {
        s: (by_seed["zero_shot", None, s].fused, by_seed["centralised_llm", None, s].fused)
        for s in mine
        if ("zero_shot", None, s) in by_seed and ("centralised_llm", None, s) in by_seed
    }
    gap = edge = None
    if len(ends) == len(mine) and all(mean_share(c) != mean_share(z) for z, c in ends.values()):
        gap = over_seeds_or_records(
            {s: (f, *ends[s]) for s, f in fused.items()},
            gap_closed,
            f"gap closed, {name}",
        )
    if tuned and method != "zero_shot_proxy":
        edge = over_seeds_or_records(
            {s: (fused[s], t) for s, t in tuned.items()},
            operator.sub,
            f"owner's edge, {name}",
        )
    tasks = {
        task: over_seeds_or_records(
            {s: ({task: f[task]},) for s, f in fused.items()}, alone, f"accuracy on {task}, {name}"
        )
        for task in next(iter(fused.values()))
    }
    return MethodRow(
        method=method,
        remove_ratio=ratio,
        tasks=tasks,
        average=over_seeds_or_records({s: (f,) for s, f in fused.items()}, alone, f"accuracy, {name}"),
        gap_closed=gap,
        tuned_proxy=over_seeds_or_records(
            {s: (t,) for s, t in tuned.items()}, alone, f"tuned proxy accuracy, {name}"
        )
        if tuned
        else None,
        owners_edge=edge,
    )


def _costs(results: Sequence[CellResult]) -> tuple[Estimate, ...]:
    """Bytes a client uploads a round, per method and ratio; the same for every seed."""
    costs: dict[str, list[CellResult]] = {}
    for r in results:
        if r.upload_bytes:
            ratio = "" if r.cell.remove_ratio is None else f" at {r.cell.remove_ratio:g}"
            costs.setdefault(f"upload a client and round, {r.cell.method}{ratio}", []).append(r)
    return tuple(
        Estimate(
            metric=name,
            value=float(rs[0].upload_bytes),
            low=None,
            high=None,
            n=len(rs),
            unit="bytes",
            seeds=tuple(r.cell.seed for r in rs),
            how="counted, payload only",
        )
        for name, rs in costs.items()
    )


def _notes(config: Config, truncated: int) -> tuple[str, ...]:
    from fedproxy_secure.pipeline import cut_notes

    return (
        "unsafe_plaintext: in every method whose name does not begin with masked_, the server sees every "
        "client's update.",
        *guarantees(
            config.privacy.unit,
            epsilon=config.privacy.target_epsilon,
            delta=config.privacy.target_delta,
            clip_norm=config.privacy.clip_norm,
            mechanism=config.privacy.mechanism,
            simulated=config.privacy.randomness == "unsafe_simulated",
        )[:1],
        *(
            ()
            if config.privacy.unit == "none"
            else (
                "That is of one federated method with one seed alone: every method, remove ratio and seed "
                "trains on the same records, so their epsilons compose.",
                "Only federated methods are private; zero_shot, centralised_* and local_only are not.",
            )
        ),
        "local_only is judged on each client's own task, with the model that client tuned alone.",
        f"Budget: {config.federate.rounds} rounds x {config.local.steps} steps x "
        f"{config.local.batch_size} records a client; centralised methods see as many in all.",
        *cut_notes(truncated, config),
    )


def cell_file(out: Path, cell: Cell) -> Path:
    """Where a finished cell's record lies."""
    return out / "cells" / f"{cell.name}.json"


def cell_to_json(result: CellResult) -> dict[str, object]:
    """Plain values; answers as strings of 0 and 1."""

    def text(bits: Bits) -> dict[str, str]:
        return {task: "".join("01"[int(b)] for b in row) for task, row in bits.items()}

    return {
        "method": result.cell.method,
        "remove_ratio": result.cell.remove_ratio,
        "seed": result.cell.seed,
        "fused": text(result.fused),
        "tuned": None if result.tuned is None else text(result.tuned),
        "upload_bytes": result.upload_bytes,
        "seconds": result.seconds,
    }


def read_cell(out: Path, cell: Cell) -> CellResult:
    """What a finished cell left. Raises `RunFolderError` if it is missing or damaged."""

    def bits(texts: dict[str, str]) -> dict[str, tuple[bool, ...]]:
        return {task: tuple(c == "1" for c in row) for task, row in texts.items()}

    path = cell_file(out, cell)
    try:
        raw = read_json(path)
        return CellResult(
            cell=cell,
            fused=bits(raw["fused"]),
            tuned=None if raw["tuned"] is None else bits(raw["tuned"]),
            upload_bytes=raw["upload_bytes"],
            seconds=raw["seconds"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path}: is damaged: {error}; delete it and resume") from error
