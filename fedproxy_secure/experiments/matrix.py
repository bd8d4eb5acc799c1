"""`matrix`: protection x compression x remove ratio x fusion x adapter x seed; run, attack, measure each.

    baselines/cells/NAME.json   the centralised LLM, for every seed: the ceiling of `gap_closed`
    cells/NAME/                 a run folder, recorded, with its findings in `attacks/`
    cells/NAME/cell.json        written last: the cell is done
    cells/NAME/failed.json      why the cell failed
    proxies/NAME/               with healing: a proxy that several cells start from (`prepared_proxies`)
    report.json, report.html .. all cells together, signed over audit.jsonl, which has the cells' log heads

Every cell runs in a process of its own, so that a cell that fails or is killed does not affect the others.
A stopped matrix goes on with `resume=True`: finished cells are kept, unfinished ones go on after their last
round, failed ones are tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.config import Config
from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.experiments.attacked import check_attacks
from fedproxy_secure.experiments.method import trained_steps
from fedproxy_secure.experiments.sweeps.cell_progress import Overall
from fedproxy_secure.experiments.sweeps.matrix_cells import (
    MatrixCell,
    cell_config,
    cells_of,
    is_done,
    measure_cell,
    note_failure,
    proxy_of,
)
from fedproxy_secure.experiments.sweeps.matrix_report import ceilings_of, matrix_report, todo_of
from fedproxy_secure.experiments.sweeps.method_cells import Cell, one_thread, run_cell, write_cell
from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy, forget_weights
from fedproxy_secure.experiments.sweeps.schedule import planned_units, run_cells, weighed_cell
from fedproxy_secure.experiments.tracking import require
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.artifacts import RunFolder, check_new
from fedproxy_secure.runtime.files.names import ATTACK_FILES, BASELINES, CELL_FAILED, seed_folder
from fedproxy_secure.runtime.only_one import only_run_in
from fedproxy_secure.runtime.preload import warm_up
from fedproxy_secure.runtime.progress import NoProgress, Progress
from fedproxy_secure.runtime.workers import Lost, processes_of

if TYPE_CHECKING:
    from fedproxy_secure.experiments.sweeps.pace import Pace

CELLS_NEED = (
    "fedproxy_secure.experiments.run",
    "fedproxy_secure.experiments.inputs",
    "fedproxy_secure.federate.client",
    "fedproxy_secure.flower.client_app",
    "fedproxy_secure.flower.recording",
    "peft",
    "transformers.models.llama.modeling_llama",
    "opacus",
)
Piece = MatrixCell | Cell


def matrix(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """Run, attack and measure every cell that `out` does not hold yet; write and return the report.

    Each cell runs in a process of its own with one torch thread, `matrix.jobs` at a time; 0 is one per
    core, or on CUDA one at a time. With `matrix.jobs` 1 all run in this process, where a script's
    registrations are known; their peak memory is then this process's. The report includes failed cells.

    Raises `RunFolderError` for a folder of other work or settings or one that another process works in,
    `ConfigError` if no configuration can run, or the attacks that `attacks` names cannot. A folder that
    began with other records, LLM or public text is of other settings, too.
    """
    check_attacks(config)
    if not resume:
        check_new(out)
    cells, refused = cells_of(config, out)
    if todo := todo_of(config, out, cells):
        require(config.track)
    if todo and config.matrix.jobs != 1:
        warm_up(CELLS_NEED)  # imports while this process reads the records
    from fedproxy_secure.experiments.inputs import check_inputs

    check_inputs(config, out)
    display = progress or NoProgress()
    with only_run_in(out):
        return _matrix(config, out, cells, refused, resume=resume, display=display, command=command)


def _matrix(
    signed: Config,
    out: Path,
    cells: Sequence[MatrixCell],
    refused: Sequence[str],
    *,
    resume: bool,
    display: Progress,
    command: str,
) -> Report:
    """Run the missing cells of a matrix; the folder is locked for this process.

    `refused`: the configurations that cannot run.
    """
    config = signed.with_signing_key(None)
    folder = (RunFolder.resume if resume else RunFolder.create)(out, config, "matrix")
    witness = Witness.open(folder, signed, command=command)
    todo = todo_of(config, out, cells)
    from fedproxy_secure.data.tasks import load_tasks, truncated_prompts
    from fedproxy_secure.experiments.inputs import check_same_inputs
    from fedproxy_secure.models.llm import pick_device

    # before any cell: unreadable records raise here
    tasks = load_tasks(config.data)
    check_same_inputs(config, witness, tasks)
    truncated, tests = truncated_prompts(config, tasks), sum(len(t.test) for t in tasks)
    device = pick_device(config.model.device)
    needs = {piece.name: _proxy(config, piece) for piece in todo}  # only once: `_proxy` checks all settings
    forget_weights(out, {proxy for proxy in needs.values() if proxy is not None})
    overall = Overall(shown=display, name="matrix", planned=planned_units(config, todo, needs, tests=tests))
    overall.begin()
    with witness.aborts():
        for cell in cells:
            if is_done(out, cell):
                witness.inner(cell.folder)  # alterations are found before hours of work
            elif cell_config(config, cell).privacy.unit != "none":
                witness.check_kept(cell.folder)
        witness.reopen(*(name for piece in todo for name in _remade(out, piece)))
        for piece in todo:  # failed cells are tried again
            (_place(out, piece) / CELL_FAILED).unlink(missing_ok=True)
        key = signed.audit.signing_key or str(own_key_file(out))  # cells sign with the matrix's
        keyed = config.with_signing_key(key)
        running = _run_all(
            partial(_work, keyed, out, cells, tests),
            out,
            todo,
            needs,
            jobs=config.matrix.jobs,
            overall=overall,
            on_cuda=device.type == "cuda",
        )
        with closing(running) as names:
            for name in names:
                overall.ended(name)
        overall.done()
        done = [c.folder for c in cells if is_done(out, c)]
        for name in done:
            witness.inner(name)
        head = witness.settle(*(f"{name}/{findings}" for name in done for findings in ATTACK_FILES))
        report = matrix_report(
            config, out, cells, refused, truncated=truncated, audit_head=head, command=command
        )
        publish(report, folder.path)
        witness.sign()
    return report


def plan_rows(config: Config) -> list[tuple[str, str]]:
    """Describe what a matrix would run, by name, without loading anything.

    Raises `ConfigError` as `matrix` does.
    """
    check_attacks(config)
    cells, refused = cells_of(config)
    ceilings = len(config.seeds)
    return [
        ("cells", f"{len(cells)}: {len({c.key for c in cells})} configurations, {len(config.seeds)} seeds"),
        ("training", f"{trained_steps(config):,} steps per cell, and for each of {ceilings} ceilings"),
        ("suite", f"{config.attacks.suite}, from {', '.join(config.attacks.views)}"),
        *[("left out", line) for line in refused],
    ]


def time_row(config: Config, pace: Pace) -> tuple[str, str]:
    """Return how long a matrix would take without its attacks, as a name and a formatted value."""
    from fedproxy_secure.experiments.sweeps.pace import together
    from fedproxy_secure.models.llm import pick_device

    cells, _ = cells_of(config)
    proxies = {p for c in cells if (p := proxy_of(config, c)) is not None}
    pieces = [
        pace.run_seconds(config, remove_ratio=c.remove_ratio) - pace.healing_seconds(config, c.remove_ratio)
        for c in cells
    ]
    pieces += [pace.cell_seconds(config, cell) for cell in ceilings_of(config)]
    pieces += [pace.healing_seconds(config, proxy.remove_ratio) for proxy in proxies]
    on_cuda = pick_device(config.model.device).type == "cuda"
    processes = min(len(pieces), processes_of(config.matrix.jobs, on_cuda=on_cuda))
    return "time", f"without attacks {pace.text(together(pieces, processes), processes=processes)}"


def _run_all(
    work: Callable[..., None],
    out: Path,
    todo: Sequence[Piece],
    needs: Mapping[str, PreparedProxy | None],
    *,
    jobs: int,
    overall: Overall,
    on_cuda: bool,
) -> Generator[str]:
    """Run cells and yield their names as they end or fail; the proxies they need are prepared first.

    `needs`: the proxy that each cell starts from, by the cell's name.
    """

    def progress_of(task: Piece | PreparedProxy) -> Progress:
        seeds = frozenset({seed_folder(task.seed)})  # these lines outlast those of their stages
        return overall.of(_name(task), hidden=seeds)

    running = run_cells(
        work,
        todo,
        lambda piece: needs[piece.name],
        jobs=jobs,
        on_cuda=on_cuda,
        progress=progress_of,
    )
    remaining = list(todo)
    with closing(running) as outcomes:
        for task, result in outcomes:
            if not isinstance(task, PreparedProxy):
                if isinstance(result, Lost) and not (_place(out, task) / CELL_FAILED).exists():
                    note_failure(_place(out, task), str(result))
                remaining.remove(task)
                forget_weights(out, [p for c in remaining if (p := needs[c.name]) is not None])
            yield _name(task)


def _proxy(config: Config, piece: Piece) -> PreparedProxy | None:
    return None if isinstance(piece, Cell) else proxy_of(config, piece)


def _name(task: Piece | PreparedProxy) -> str:
    return task.title if isinstance(task, PreparedProxy) else task.name


def _work(
    config: Config,
    out: Path,
    cells: Sequence[MatrixCell],
    tests: int,
    task: Piece | PreparedProxy,
    *,
    progress: Progress,
) -> None:
    """Run one cell, on one thread; if it fails, note why, so that the rest of the matrix goes on.

    `cells`: all cells of the matrix. `tests`: test records of all clients together.
    """
    if isinstance(task, PreparedProxy):
        task.prepare(out, progress=progress)
        return
    try:
        if isinstance(task, Cell):
            write_cell(out / BASELINES, run_cell(config, task, progress=progress))
        else:
            cores = processes_of(config.matrix.jobs, on_cuda=False)  # all attacks but A12 run on the CPU
            at_once = 1 if config.matrix.jobs == 1 else partial(attack_jobs, config, out, cells, cores)
            weighed = weighed_cell(config, task, progress, tests=tests)
            with one_thread():
                measure_cell(config, task, out, jobs=at_once, progress=weighed)
    except Exception as error:
        line = str(error) if isinstance(error, FedProxyError) else f"{type(error).__name__}: {error}"
        note_failure(_place(out, task), line)


def attack_jobs(config: Config, out: Path, cells: Sequence[MatrixCell], cores: int) -> int:
    """Return how many attacks one cell may run at once: an equal share of the cores, at least 1.

    The cores are shared among all `cells` and ceilings that have not ended, so that the last cell uses all
    of them.
    """
    running = sum(not (_place(out, c) / CELL_FAILED).exists() for c in todo_of(config, out, cells))
    return max(1, cores // max(1, running))


def _remade(out: Path, piece: Piece) -> list[str]:
    """Return the files of a cell or ceiling that a matrix's log has and that a new attempt replaces."""
    place = _place(out, piece).relative_to(out).as_posix()
    return [f"{place}/{name}" for name in (CELL_FAILED, *ATTACK_FILES)]


def _place(out: Path, cell: Piece) -> Path:
    """Return the folder in which a cell's failure is noted."""
    return out / BASELINES / cell.name if isinstance(cell, Cell) else out / cell.folder
