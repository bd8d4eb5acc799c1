"""Run the benchmark: every requested cell in a process of its own, into a folder that can resume.

manifest.json      the benchmark that the folder belongs to
cells/NAME.json    the findings on each cell, written when the cell ends
runs/NAME/         the cell's run, see `attacks.benchmark.cells`
benchmark.json     all cells together
benchmark.txt      the same as a table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.base import Attack
from attacks.benchmark.cells import Plan, measure
from attacks.benchmark.grid import GRID, Grid, GridCell, chosen
from attacks.benchmark.identity import Identity, identity_of
from attacks.benchmark.providers import entries_of
from attacks.benchmark.results import TEXT_NAME, Benchmark, CellResult
from attacks.benchmark.table import table
from fedproxy_secure.errors import FedProxyError
from fedproxy_secure.evidence.finding import Profile
from fedproxy_secure.experiments.sweeps.cell_progress import Overall
from fedproxy_secure.runtime.artifacts import RunFolder, check_new, environment
from fedproxy_secure.runtime.only_one import only_run_in
from fedproxy_secure.runtime.preload import warm_up
from fedproxy_secure.runtime.progress import NoProgress, Progress
from fedproxy_secure.runtime.workers import Lost, run_tasks

if TYPE_CHECKING:
    import torch

CELLS_NEED = (
    "attacks.preload",
    "attacks.suite",
    "fedproxy_secure.experiments.run",
    "fedproxy_secure.flower.client_app",
    "fedproxy_secure.flower.recording",
    "opacus",
)
TASK = "benchmark"


def run_benchmark(
    out: Path,
    *,
    grid: Grid = GRID,
    model: str = "demo",
    profile: Profile = "smoke",
    quick: bool = False,
    patterns: Sequence[str] = (),
    attacks: Sequence[str] = (),
    resume: bool = False,
    jobs: int = 0,
    progress: Progress | None = None,
    command: str = "",
) -> Benchmark:
    """Run and attack every cell that `out` does not hold yet; write and return the results.

    A cell that fails is in the results with its reason, and the others still run.

    Args:
        out: the output folder.
        grid: the cells; `GRID` is this project's benchmark.
        model: the LLM, as in the setting `model.path`, but not a hub id.
        profile: how much the attacks spend.
        quick: whether only the quick part of the grid runs.
        patterns: names of the cells that run, in which `*` stands for any text; empty: all.
        attacks: names or ids of the attacks that run; empty: every registered attack.
        resume: whether to keep what `out` has.
        jobs: how many cells run at once; 0: one for each core, or on CUDA one in all; 1: in this process.
        progress: where progress is reported; by default nowhere.
        command: the command as typed, for the results.

    Raises `ConfigError` for an unknown cell or attack, `ModelError` for a model that cannot be read,
    `RunFolderError` if `out` holds something else, or another process works in it.
    """
    cells = chosen(grid, quick=quick, patterns=patterns)
    known = _every()
    selected = asked_for(attacks, known)
    identity = checked_identity(grid, model=model, profile=profile)
    if not resume:
        check_new(out)
    with only_run_in(out):
        folder = (RunFolder.resume if resume else RunFolder.create)(out, identity, "benchmark")
        plan = Plan(
            grid=grid,
            identity=identity,
            model=_absolute(model),
            attacks=entries_of(selected),
            out=folder.path,
        )
        todo = [cell for cell in cells if not is_done(plan, cell)]
        if todo and jobs != 1:
            warm_up(CELLS_NEED)
        _run_all(plan, todo, jobs=jobs, shown=progress or NoProgress())
        results = Benchmark(
            benchmark_id=identity.id,
            identity=identity,
            model=Path(model).name,
            command=command or "attacks.benchmark.run.run_benchmark(...)",
            environment=environment(_device().type),
            attacks=plan.attacks,
            cells=tuple(_read(plan, cell) for cell in cells),
            attacks_left_out=tuple(sorted(known.keys() - {a.name for a in plan.attacks})),
            cells_left_out=tuple(cell.name for cell in grid.cells if cell not in cells),
            subset=len(cells) < len(grid.cells) or len(selected) < len(known),
        )
        results.write(out)
        folder.write_text(TEXT_NAME, table(results))
    return results


def checked_identity(grid: Grid, *, model: str, profile: Profile) -> Identity:
    """Return the identity of a grid on an LLM, after loading the LLM once as a check.

    Raises `ModelError` if it cannot be loaded.
    """
    from fedproxy_secure.models.llm import load_llm

    identity = identity_of(grid, model=model, profile=profile)
    load_llm(model, device="cpu", dtype="float32")
    return identity


def asked_for(names: Sequence[str], known: Mapping[str, Attack]) -> list[Attack]:
    """Return the attacks of these names or ids, each once, in the registry's order; all without a name.

    Raises `ConfigError` for an unknown one, with the nearest name.
    """
    from attacks.registry import find

    requested = {one.info.name for name in names for one in find(name)}
    return [one for one in known.values() if not names or one.info.name in requested]


def is_done(plan: Plan, cell: GridCell) -> bool:
    """Return whether the folder has the cell's result, with everything that this call asks for."""
    result = CellResult.read(plan.out, cell.name)
    return result is not None and result.benchmark_id == plan.identity.id and result.has(plan.attacks)


def _run_all(plan: Plan, todo: Sequence[GridCell], *, jobs: int, shown: Progress) -> None:
    """Run cells, those with most attacks first; the result of a failed cell says why it failed."""
    ordered = sorted(todo, key=plan.units, reverse=True)
    overall = Overall(shown=shown, name=TASK, planned={cell.name: plan.units(cell) for cell in ordered})
    overall.begin()

    def progress_of(cell: GridCell) -> Progress:
        return overall.of(cell.name)

    running = run_tasks(
        partial(measure, plan), ordered, jobs=jobs, on_cuda=_device().type == "cuda", progress=progress_of
    )
    with closing(running) as results:
        for index, result in results:
            cell = ordered[index]
            if isinstance(result, Lost):
                error = result.error
                line = str(error) if isinstance(error, FedProxyError) else str(result)
                plan.result(cell, failed=line).write(plan.out)
            overall.ended(cell.name)
    overall.done()


def _read(plan: Plan, cell: GridCell) -> CellResult:
    """Return a cell's result with the findings of the attacks that this call asks for."""
    result = CellResult.read(plan.out, cell.name) or plan.result(cell, failed="did not finish")
    names = {a.name for a in plan.attacks}
    kept = tuple(f for f in result.findings if f.attack in names)
    return plan.result(cell, seconds=result.seconds, failed=result.failed, findings=kept)


def _every() -> dict[str, Attack]:
    from attacks.registry import every

    return every()


def _device() -> torch.device:
    from fedproxy_secure.models.llm import pick_device

    return pick_device()


def _absolute(model: str) -> str:
    """Return a path that is valid in any working directory; names of models stay as they are."""
    from fedproxy_secure.models.packaged import PACKAGED

    return model if model == "demo" or model in PACKAGED else str(Path(model).absolute())
