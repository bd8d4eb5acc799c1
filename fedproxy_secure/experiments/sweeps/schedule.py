"""The order in which a comparison or a matrix runs its cells, and how much work a matrix' cells are.

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
        stop: whether nothing more is to begin.

    A proxy that failed counts as made: its cells try to make it themselves, and say why they cannot. The
    other arguments are those of `run_tasks`.
    """
    made: set[PreparedProxy] = set()
    begun: list[C | PreparedProxy] = []

    def tasks() -> Iterator[Any]:  # a task or None, which mypy does not see through a type variable
        for task in _in_order(cells, needs, made=made, stop=stop):
            if task is not None:
                begun.append(task)
            yield task

    running = run_tasks(work, tasks(), jobs=jobs, on_cuda=on_cuda, progress=progress)
    with closing(running) as ended:
        for index, result in ended:
            task = begun[index]
            if isinstance(task, PreparedProxy):
                made.add(task)
            yield task, result


def _in_order(
    cells: Sequence[C],
    needs: Callable[[C], PreparedProxy | None],
    *,
    made: Collection[PreparedProxy],
    stop: Callable[[], bool],
) -> Iterator[C | PreparedProxy | None]:
    """Yield the proxies that cells need and then the cells, each as soon as its proxy is in `made`.

    Yields None while all cells that are left wait for a proxy.
    """
    waiting = [(cell, needs(cell)) for cell in cells]
    for proxy in dict.fromkeys(p for _, p in waiting if p is not None):
        if stop():
            return
        yield proxy
    while waiting and not stop():
        ready = next((i for i, (_, p) in enumerate(waiting) if p is None or p in made), None)
        yield None if ready is None else waiting.pop(ready)[0]


def weighed_cell(config: Config, cell: MatrixCell, shown: Progress, *, tests: int) -> Progress:
    """Return a `Progress` for a matrix' cell that passes calls on and counts its stages as `WORK`."""
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
    """Return about how much work each piece of a matrix is that is left, by name.

    Args:
        config: the matrix' settings.
        todo: its cells and ceilings that are left.
        needs: the proxy that each starts from, by its name.
        tests: test records of all clients together.
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
            own = cell_config(config, piece)
            healed = needs[piece.name] is not None
            units[piece.name] = all_units(own, stage_units(own, tests=tests, healed=healed))
    return units
