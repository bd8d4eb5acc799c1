"""`compare`: every method x remove ratio x seed, in parallel, resumable, joined into one report."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import Config
from fedproxy_secure.dp.guarantees import guarantees
from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.experiments.method import Method, method_of
from fedproxy_secure.experiments.results import READ_BY_NORM
from fedproxy_secure.experiments.sweeps.method_cells import (
    Cell,
    CellResult,
    Origin,
    cell_file,
    cells_of,
    run_cell,
    write_cell,
)
from fedproxy_secure.experiments.sweeps.method_differences import differences_of
from fedproxy_secure.experiments.sweeps.method_folder import (
    check_records,
    devices_of,
    folder_notes,
    open_folder,
    read_cells,
)
from fedproxy_secure.experiments.sweeps.method_rows import costs_of, rows_of
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import environment
from fedproxy_secure.runtime.preload import warm_up
from fedproxy_secure.runtime.progress import NoProgress, Progress
from fedproxy_secure.runtime.workers import Lost, run_tasks

CELLS_NEED = (
    "fedproxy_secure.experiments.inputs",
    "fedproxy_secure.federate.client",
    "fedproxy_secure.flower.client_app",
    "peft",
    "transformers.models.llama.modeling_llama",
)


def compare(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """Run every cell that `out` does not hold yet, then write and return the report.

    Each cell runs in a process of its own with one torch thread, `compare.jobs` at a time; 0 is one per
    core, or on CUDA one in all. With `compare.jobs` 1 all run in this process, where methods that a script
    has registered are known. A stopped comparison goes on with `resume=True` and ends with the same report;
    its seeds, methods and remove ratios may then be others, and cells that are there are kept.

    Interrupted or after a failure, the report of the cells that have finished is written all the same.

    Raises `FedProxyError` of the first failing cell, after the running ones have ended and been saved.
    """
    shown = progress or NoProgress()
    compression_of(config.compress)
    cells = cells_of(config)
    folder = open_folder(config, out, resume=resume)
    there = read_cells(config, out, cells)  # first of all: a cell of other settings stops here
    todo = [c for c in cells if not cell_file(out, c).exists()]
    if todo and config.compare.jobs != 1:
        warm_up(CELLS_NEED)  # imports while this process reads the records
    origin = Origin.here(config)  # before any cell: unreadable records stop here
    check_records(out, there, origin)
    shown.start("compare", len(todo))  # of those left, so that the time left is not flattered
    try:
        with closing(_run_cells(config, todo, on_cuda=origin.device.startswith("cuda"))) as ended:
            for result in ended:
                write_cell(folder.path, replace(result, origin=origin))
                shown.advance("compare", note=result.cell.name)
    except (FedProxyError, KeyboardInterrupt):
        with suppress(FedProxyError):  # what stopped the comparison is what the caller must hear of
            compare_report(config, out, command=command)
        raise
    shown.done("compare")
    return compare_report(config, out, command=command)


def compare_report(config: Config, out: Path, *, command: str = "") -> Report:
    """Write and return the report of the cells that are in `out`, which may be some of them; run nothing.

    Needs neither the model nor the records. A note says which cells are missing.

    Raises `RunFolderError` if there is no cell of these settings, or one that is damaged or was made with
    others.
    """
    cells = cells_of(config)
    results = read_cells(config, out, cells)
    if not results:
        raise RunFolderError(f"{out}: has no finished cell of these settings; run `compare` first")
    truncated = max(r.origin.truncated for r in results if r.origin is not None)
    report = Report(
        name=config.name,
        command=command or "fedproxy_secure.compare(...)",
        config_sha256=config.sha256(),
        environment=environment(", ".join(devices_of(results))),
        seeds=config.seeds,
        estimates=costs_of(results),
        rows=tuple(rows_of(results)),
        differences=tuple(differences_of(results, config.compare.against)),
        notes=(*folder_notes(out, cells, results), *_notes(config, truncated)),
    )
    publish(report, out)
    return report


def plan_rows(config: Config) -> list[tuple[str, str]]:
    """Return what a comparison would train, as names and formatted values; load nothing."""
    cells = cells_of(config)
    methods = {name: method_of(name) for name in config.compare.methods}
    trained = [c for c in cells if methods[c.method].trains]
    steps = config.federate.rounds * config.local.steps * len(config.data.clients)
    return [
        ("cells", f"{len(cells)}: {len(methods)} methods, {len(config.seeds)} seeds"),
        *(("method", f"{name}: {method.title}") for name, method in methods.items()),
        ("training", f"{len(trained)} cells of {steps:,} steps, {len(trained) * steps:,} in all"),
    ]


def _run_cells(config: Config, todo: Sequence[Cell], *, on_cuda: bool) -> Generator[CellResult]:
    """Yield cells as they finish; after a failure begin no further one."""
    failed: list[tuple[int, Lost]] = []

    def until_failure() -> Iterator[Cell]:
        for cell in todo:
            if failed:
                return
            yield cell

    work = partial(run_cell, config)
    with closing(run_tasks(work, until_failure(), jobs=config.compare.jobs, on_cuda=on_cuda)) as ended:
        for index, result in ended:
            if isinstance(result, Lost):
                failed.append((index, result))
            else:
                yield result
    if failed:
        index, lost = failed[0]
        lost.reraise(todo[index].name)


def _notes(config: Config, truncated: int) -> tuple[str, ...]:
    """Return what a reader must know before believing a number."""
    from fedproxy_secure.experiments.stages import cut_notes

    methods = [method_of(name) for name in config.compare.methods]
    privacy = config.privacy
    promised = guarantees(
        privacy.unit,
        epsilon=privacy.target_epsilon,
        delta=privacy.target_delta,
        clip_norm=privacy.clip_norm,
        mechanism=privacy.mechanism,
        simulated=privacy.randomness == "unsafe_simulated",
    )
    return (
        *_stamps(config, methods),
        *promised[:1],
        *(() if privacy.unit == "none" else _limits_of_privacy(config, methods)),
        *(method.note for method in methods if method.note),
        f"Budget: {config.federate.rounds} rounds x {config.local.steps} steps x "
        f"{config.local.batch_size} records a client; centralised methods see as many in all.",
        *cut_notes(truncated, config),
        *_norm_notes(config),
    )


def _norm_notes(config: Config) -> list[str]:
    """Return the note on tasks of which users of lm-eval read another measure than this report's first."""
    names = [c.name for c in config.data.clients if c.task in READ_BY_NORM]
    if not names:
        return []
    return [
        "Accuracy, gap closed and differences are by acc. For question answering "
        f"({', '.join(names)}) users of lm-eval read acc_norm; where the two differ, it has its own table."
    ]


def _stamps(config: Config, methods: Sequence[Method]) -> list[str]:
    """Return what is unsafe in the protection of methods, and in which methods."""
    names: dict[str, list[str]] = {}
    for method in methods:
        settings = method.federation(config)
        if settings is not None:
            for stamp in protection_of(settings.protect).unsafe(settings.protect):
                names.setdefault(stamp, []).append(method.name)
    return [f"{stamp} Methods: {', '.join(whose)}." for stamp, whose in names.items()]


def _limits_of_privacy(config: Config, methods: Sequence[Method]) -> list[str]:
    open_ones = [m.name for m in methods if m.federation(config) is None]
    lines = [
        "That is of one federated method with one seed alone: every method, remove ratio and seed "
        "trains on the same records, so their epsilons compose."
    ]
    if open_ones:
        lines.append(f"Only federated methods are private, not: {', '.join(open_ones)}.")
    return lines
