"""The order in which a comparison or a matrix runs its cells, and how much work a matrix's cells are.

Each cell runs after the healed proxy it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

from fedproxy_secure.config import Config
from fedproxy_secure.experiments.sweeps.cell_progress import (
    all_units,
    cell_units,
    healing_units,
    stage_units,
)
from fedproxy_secure.experiments.sweeps.matrix_cells import MatrixCell, cell_config, proxy_of
from fedproxy_secure.experiments.sweeps.method_cells import Cell
from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy
from fedproxy_secure.runtime.progress import WORK, Progress, Weighed
from fedproxy_secure.runtime.workers import Work, run_tasks

C = TypeVar("C")


def run_cells(
    work: Work[C | PreparedProxy, Any],
    cells: Sequence[C],
    needs: Callable[[C], PreparedProxy | None],
    *,
    jobs: int,
    on_cuda: bool,
    progress: Callable[[C | PreparedProxy], Progress],
    stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[C | PreparedProxy, Any]]:
    """Yield each cell, and each proxy that cells start from, with its result or `Lost`, as it ends.

    Args:
        needs: returns the proxy that a cell starts from, None if it needs none.
        stop: returns whether no further task may begin.

    A proxy that failed counts as prepared: its cells try to make it themselves, and report why they cannot.
    The other arguments are those of `run_tasks`.
    """
    prepared: set[PreparedProxy] = set()
    begun: list[C | PreparedProxy] = []

    def tasks() -> Iterator[Any]:  # a task or None, which mypy does not see through a type variable
        for task in _in_order(cells, needs, prepared=prepared, stop=stop):
            if task is not None:
                begun.append(task)
            yield task

    running = run_tasks(work, tasks(), jobs=jobs, on_cuda=on_cuda, progress=progress)
    with closing(running) as outcomes:
        for index, result in outcomes:
            task = begun[index]
            if isinstance(task, PreparedProxy):
                prepared.add(task)
            yield task, result


def _in_order(
    cells: Sequence[C],
    needs: Callable[[C], PreparedProxy | None],
    *,
    prepared: Collection[PreparedProxy],
    stop: Callable[[], bool],
) -> Iterator[C | PreparedProxy | None]:
    """Yield the proxies that cells need and then the cells, each as soon as its proxy is in `prepared`.

    Yields None while all remaining cells wait for a proxy.
    """
    waiting = [(cell, needs(cell)) for cell in cells]
    for proxy in dict.fromkeys(p for _, p in waiting if p is not None):
        if stop():
            return
        yield proxy
    while waiting and not stop():
        ready = next((i for i, (_, p) in enumerate(waiting) if p is None or p in prepared), None)
        yield None if ready is None else waiting.pop(ready)[0]


def weighed_cell(config: Config, cell: MatrixCell, shown: Progress, *, tests: int) -> Progress:
    """Return a `Progress` for a matrix's cell that passes calls on and counts its stages as `WORK`."""
    healed = proxy_of(config, cell) is not None
    units = stage_units(cell_config(config, cell), tests=tests, healed=healed)
    shown.start(WORK, 0)
    return Weighed(shown=shown, units=lambda task: units.get(task.partition(":")[0], 0.0))


def planned_units(
    config: Config,
    todo: Sequence[MatrixCell | Cell],
    needs: Mapping[str, PreparedProxy | None],
    *,
    tests: int,
) -> dict[str, int]:
    """Return the estimated work of each remaining piece of a matrix, by name.

    Args:
        config: the matrix's settings.
        todo: its remaining cells and ceilings.
        needs: the proxy that each of these starts from, by the cell's name.
        tests: number of test records of all clients together.
    """
    units = {
        proxy.title: max(1, healing_units(config, remove_ratio=proxy.remove_ratio))
        for proxy in needs.values()
        if proxy is not None
    }
    for piece in todo:
        if isinstance(piece, Cell):
            units[piece.name] = cell_units(config, piece, tests=tests)
        else:
            settings = cell_config(config, piece)
            healed = needs[piece.name] is not None
            units[piece.name] = all_units(settings, stage_units(settings, tests=tests, healed=healed))
    return units
