"""`compare`: every method x remove ratio x seed, in parallel, resumable, joined into one report."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import Config
from fedproxy_secure.errors import FedProxyError, RunFolderError
from fedproxy_secure.experiments.method import method_of, trained_steps
from fedproxy_secure.experiments.results import text_clients
from fedproxy_secure.experiments.run_report import plug_back_notes
from fedproxy_secure.experiments.sweeps.cell_progress import Overall, cell_units, healing_units
from fedproxy_secure.experiments.sweeps.method_cells import (
    Cell,
    CellResult,
    Origin,
    cell_file,
    cells_of,
    run_cell,
    settings_sha256,
    write_cell,
)
from fedproxy_secure.experiments.sweeps.method_differences import differences_of
from fedproxy_secure.experiments.sweeps.method_folder import (
    check_origins,
    devices_of,
    folder_notes,
    missing_cells,
    open_folder,
    read_cells,
)
from fedproxy_secure.experiments.sweeps.method_notes import (
    comparison_notes,
    proxy_notes,
    stamps_of_methods,
    unresolved_gaps,
)
from fedproxy_secure.experiments.sweeps.method_rows import costs_of, proxy_rows, rows_of, scales_of
from fedproxy_secure.experiments.sweeps.method_tasks import (
    read_constant,
    scale_notes,
    task_scales,
    tasks_that_count,
    write_constant,
)
from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy, forget_weights, records_of
from fedproxy_secure.experiments.sweeps.schedule import run_cells
from fedproxy_secure.report.measured import rows_without_losses
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import check_new, environment
from fedproxy_secure.runtime.only_one import only_run_in
from fedproxy_secure.runtime.preload import warm_up
from fedproxy_secure.runtime.progress import NoProgress, Progress
from fedproxy_secure.runtime.workers import Lost, processes_of

if TYPE_CHECKING:
    from fedproxy_secure.experiments.sweeps.pace import Pace

CELLS_NEED = (
    "fedproxy_secure.experiments.inputs",
    "fedproxy_secure.federate.client",
    "fedproxy_secure.flower.client_app",
    "peft",
    "transformers.models.llama.modeling_llama",
)

Task = Cell | PreparedProxy


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
    core, or on CUDA one at a time. With `compare.jobs` 1 all run in this process, where methods that a
    script has registered are known. If the settings heal, the proxies that cells start from are healed
    first, once for each remove ratio and seed.

    A stopped comparison goes on with `resume=True` and ends with the same report; seeds, methods and remove
    ratios may then differ from before, and finished cells are kept.

    After an interruption or a failure, the report of the finished cells is still written.

    Raises `RunFolderError` if another process works in `out`, else the error of the first cell that failed,
    after the running cells have ended and been saved.
    """
    compression_of(config.compress, config.heal)
    if not resume:
        check_new(out)
    todo = _todo(out, cells_of(config))
    for name in dict.fromkeys(cell.method for cell in todo):
        method_of(name).check_installed(config)
    if todo and config.compare.jobs != 1:
        warm_up(CELLS_NEED)  # imports while this process reads the records
    from fedproxy_secure.experiments.inputs import check_inputs

    check_inputs(config, out)
    with only_run_in(out):
        return _compare(config, out, resume=resume, display=progress or NoProgress(), command=command)


def _compare(config: Config, out: Path, *, resume: bool, display: Progress, command: str) -> Report:
    """Run the missing cells of a comparison; the folder is locked for this process."""
    from fedproxy_secure.data.tasks import load_tasks

    cells = cells_of(config)
    folder = open_folder(config, out, resume=resume)
    finished = read_cells(config, out, cells)  # first: a cell of other settings raises here
    todo = _todo(out, cells)
    if config.heal.heals:
        forget_weights(out, _proxies(config, todo))
    tasks = load_tasks(config.data)  # before any cell: unreadable records raise here
    origin = Origin.here(config, tasks)
    check_origins(out, finished, origin)
    write_constant(config, out, tasks)
    tests = sum(len(task.test) for task in tasks)
    overall = Overall(shown=display, name="compare", planned=_planned(config, todo, tests=tests))
    overall.begin()
    remaining = list(todo)
    try:
        with closing(_run_cells(config, out, todo, overall, origin)) as results:
            for result in results:
                settings = settings_sha256(config, result.cell)
                write_cell(folder.path, replace(result, origin=replace(origin, settings=settings)))
                remaining.remove(result.cell)
                if config.heal.heals:  # without healing, cells write records of proxies in these folders
                    forget_weights(out, _proxies(config, remaining))
                overall.ended(result.cell.name)
    except (Exception, KeyboardInterrupt):  # any error, also an unexpected one
        with suppress(FedProxyError):  # the caller must get the error that stopped the comparison
            compare_report(config, out, command=command)
        raise
    overall.done()
    return compare_report(config, out, command=command)


def compare_report(config: Config, out: Path, *, command: str = "") -> Report:
    """Write and return the report of the finished cells in `out`, without running any.

    It needs neither the model nor the records. Its `unfinished` says which cells are missing.

    Raises `RunFolderError` if there is no cell of these settings, or one that is damaged or was made with
    other settings.
    """
    cells = cells_of(config)
    results = read_cells(config, out, cells)
    if not results:
        raise RunFolderError(f"{out}: has no finished cell of these settings; run `compare` first")
    origins = [r.origin for r in results if r.origin is not None]  # `read_cells` requires one of each
    truncated = max(origin.truncated for origin in origins)
    constant = read_constant(out, results)
    scales = task_scales(results, constant)
    ratios = config.compare.remove_ratios
    records = records_of(config, out, ratios, replace(origins[0], settings=config.cell_sha256()))
    counting = tasks_that_count(scales)
    rows = tuple(rows_of(results, counting=counting))
    report = Report(
        name=config.name,
        command=command or "fedproxy_secure.compare(...)",
        config_sha256=config.sha256(),
        environment=environment(", ".join(devices_of(results))),
        seeds=config.seeds,
        estimates=costs_of(results),
        rows=rows,
        differences=tuple(differences_of(results, config.compare.against)),
        task_scales=tuple(scales),
        proxies=tuple(proxy_rows(results, records)),
        unsafe=stamps_of_methods(config),
        unfinished=tuple(missing_cells(cells, results)),
        notes=(
            *folder_notes(out, cells, results),
            *comparison_notes(config, truncated),
            *scale_notes(config, results, constant),
            *proxy_notes(results, records),
            *plug_back_notes(config, scales_of(results), (r.outcome.aligned_windows for r in results)),
        ),
        not_measured=(
            *unresolved_gaps(results, counting),
            *rows_without_losses(rows, text_clients(config)),
        ),
    )
    publish(report, out)
    return report


def plan_rows(config: Config) -> list[tuple[str, str]]:
    """Return what a comparison would train, as names and formatted values, without loading anything."""
    cells = cells_of(config)
    methods = {name: method_of(name) for name in config.compare.methods}
    trained = [c for c in cells if methods[c.method].trains]
    steps = trained_steps(config)
    return [
        ("cells", f"{len(cells)}: {len(methods)} methods, {len(config.seeds)} seeds"),
        *(("method", f"{name}: {method.title}") for name, method in methods.items()),
        ("training", f"{len(trained)} cells of {steps:,} steps, {len(trained) * steps:,} together"),
    ]


def time_row(config: Config, pace: Pace) -> tuple[str, str]:
    """Return how long a comparison would take, as a name and a formatted value."""
    from fedproxy_secure.experiments.sweeps.pace import together
    from fedproxy_secure.models.llm import pick_device

    cells = cells_of(config)
    pieces = [pace.healing_seconds(config, proxy.remove_ratio) for proxy in _proxies(config, cells)]
    pieces += [pace.cell_seconds(config, cell) for cell in cells]
    on_cuda = pick_device(config.model.device).type == "cuda"
    processes = min(len(pieces), processes_of(config.compare.jobs, on_cuda=on_cuda))
    return "time", pace.text(together(pieces, processes), processes=processes)


def _run_cells(
    config: Config, out: Path, todo: Sequence[Cell], overall: Overall, origin: Origin
) -> Generator[CellResult]:
    """Prepare the proxies that cells need, then yield cells as they finish; begin none after a failure."""
    failed: list[tuple[str, Lost]] = []

    def progress_of(task: Task) -> Progress:
        return overall.of(_name(task))

    running = run_cells(
        partial(_work, config, out, origin),
        todo,
        partial(_proxy, config),
        jobs=config.compare.jobs,
        on_cuda=origin.device.startswith("cuda"),
        progress=progress_of,
        stop=lambda: bool(failed),
    )
    with closing(running) as outcomes:
        for task, result in outcomes:
            if isinstance(result, Lost):
                failed.append((_name(task), result))
            elif isinstance(task, PreparedProxy):
                overall.ended(_name(task))
            else:
                yield result
    if failed:
        name, lost = failed[0]
        lost.reraise(name)


def _todo(out: Path, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a comparison that have no result yet."""
    return [c for c in cells if not cell_file(out, c).exists()]


def _work(
    config: Config, out: Path, origin: Origin, task: Task, *, progress: Progress
) -> CellResult | None:
    """Run a cell or prepare a proxy; the first cell that builds an unhealed proxy measures it."""
    if isinstance(task, PreparedProxy):
        task.write_record(out, task.prepare(out, progress=progress, measured=True), origin)
        return None
    prepared, on_proxy = _proxy(config, task), None
    if not config.heal.heals and task.remove_ratio is not None:
        proxy = PreparedProxy(remove_ratio=task.remove_ratio, seed=task.seed, config=config)
        on_proxy = partial(proxy.measure, out, origin)
    healing = prepared.folder(out) if prepared else None
    return run_cell(config, task, progress=progress, healing=healing, on_proxy=on_proxy)


def _name(task: Task) -> str:
    return task.name if isinstance(task, Cell) else task.title


def _proxy(config: Config, cell: Cell) -> PreparedProxy | None:
    """Return the healed proxy that a cell starts from, None if it starts from none."""
    if not config.heal.heals or cell.remove_ratio is None or not method_of(cell.method).settings_proxy:
        return None
    return PreparedProxy(remove_ratio=cell.remove_ratio, seed=cell.seed, config=config)


def _proxies(config: Config, cells: Sequence[Cell]) -> list[PreparedProxy]:
    """Return the healed proxies that cells start from, without repeats."""
    return list(dict.fromkeys(p for c in cells if (p := _proxy(config, c)) is not None))


def _planned(config: Config, todo: Sequence[Cell], *, tests: int) -> dict[str, int]:
    """Return the estimated work of each missing cell and proxy, by name; `tests`: as in `cell_units`."""
    return {
        **{
            _name(proxy): healing_units(config, remove_ratio=proxy.remove_ratio)
            for proxy in _proxies(config, todo)
        },
        **{cell.name: cell_units(config, cell, tests=tests) for cell in todo},
    }
