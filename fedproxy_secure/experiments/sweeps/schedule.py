"""The order in which a comparison or a matrix runs its cells: each after the healed proxy it needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy
from fedproxy_secure.runtime.progress import Progress
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
