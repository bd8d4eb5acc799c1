"""Print comparisons by task: accuracy beside a constant answer's, owner's edge, and gap closed.

    python -m tests.bench.by_task DATA CELLS...

CELLS are files of finished cells of `paper_small`, among them `zero_shot` and `centralised_llm`; DATA is
the folder of its records. A cell is measured between the two ends of its own folder and seed, where that
has them, else between those of the first folder that does, if need be of another seed. A mean over tasks
hides that on some of them no model learns anything. `most frequent` is the answer that training records
have most often, given to every test record. A task counts where the ceiling of that first folder
lies above it and above the LLM before tuning, beyond both intervals; `gap closed` is told over all tasks,
and over those. A report of `compare` has the same numbers, joined over seeds.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from pathlib import Path

from fedproxy_secure.cli.options import find_config
from fedproxy_secure.config import load_config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.evidence.answers import Bits, mean_share, over_seeds_or_records, share_right
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.experiments.sweeps.method_cells import Cell, CellResult, read_cell
from fedproxy_secure.experiments.sweeps.method_rows import Ends, ends_of, gap_over
from fedproxy_secure.experiments.sweeps.method_tasks import constant_answers, task_scales, tasks_that_count
from fedproxy_secure.runtime.untrusted import read_json

Found = list[tuple[str, CellResult, Ends]]  # a cell's title, the cell, the ends it is measured between


def main(arguments: list[str]) -> int:
    """Print accuracies and owner's edges by task, and the gap closed over all and over those that count."""
    if len(arguments) < 3:
        print("usage: python -m tests.bench.by_task DATA CELLS...", file=sys.stderr)
        return 2
    data, *files = arguments
    cells = [(Path(file).parents[1].name, _read(Path(file))) for file in files]
    folders = {name: [cell for of, cell in cells if of == name] for name, _ in cells}
    ends = {name: both for name, own in folders.items() if (both := _both(own))}
    if not ends:
        print("error: no folder has cells of zero_shot and centralised_llm under one seed", file=sys.stderr)
        return 2
    first = next(iter(ends))
    constant = most_frequent(data)
    found: Found = [
        (f"{name}, {cell.cell.method}{f', seed {cell.cell.seed}' * (cell.cell.seed > 0)}", cell, between)
        for name, cell in cells
        for between in [_between(cell, ends.get(name), ends[first])]
    ]
    _accuracies(found, constant)
    print("\n" + _line("owner's edge, points", *constant))
    for title, cell, _ in found:
        if cell.tuned is not None:
            print(_line(title, *(_points(_edge(cell, cell.tuned, t)) for t in constant)))
    _gaps(found, tasks_that_count(task_scales(folders[first], constant)))
    return 0


def most_frequent(data: str) -> Bits:
    """Return, by client, for which test records the answer that its training has most often is right."""
    config = load_config(find_config("paper_small"), [f"data.root={data}"])
    return constant_answers(load_task(client, root=data) for client in config.data.clients)


def _accuracies(found: Found, constant: Bits) -> None:
    print(_line("accuracy, %", *constant, "mean by acc", "mean by acc_norm"))
    shares = {task: 100 * mean_share({task: bits}) for task, bits in constant.items()}
    print(_line("most frequent answer", *(f"{share:.1f}" for share in shares.values()), "", ""))
    for title, cell, _ in found:
        shares = {task: 100 * mean_share({task: bits}) for task, bits in cell.fused.items()}
        means = [_points(share_right({cell.cell.seed: bits}, "")) for bits in (cell.fused, cell.fused_norm)]
        print(_line(title, *(f"{shares[task]:.1f}" for task in constant), *means))


def _gaps(found: Found, tasks: list[str]) -> None:
    def over_learned(cell: CellResult) -> Bits:
        return {task: bits for task, bits in cell.fused.items() if task in tasks}

    columns: list[Callable[[CellResult], Bits]] = [
        lambda cell: cell.fused,
        lambda cell: cell.fused_norm,
        over_learned,
    ]
    names = ("all tasks", "all tasks by acc_norm", f"that count: {', '.join(tasks)}")
    print("\n" + _line("gap closed, %", *names))
    for title, cell, ends in found:
        if cell not in (*ends.floor.values(), *ends.ceiling.values()):
            made = [gap_over({cell.cell.seed: cell}, ends, of, "gap closed") for of in columns]
            print(_line(title, *("none" if gap is None else _points(gap) for gap in made)))


def _read(file: Path) -> CellResult:
    raw = read_json(file)
    cell = Cell(method=raw["method"], remove_ratio=raw["remove_ratio"], seed=raw["seed"])
    return read_cell(file.parents[1], cell)


def _both(cells: list[CellResult]) -> Ends | None:
    """Return the ends of the scale among a folder's cells, None unless it has both under one seed."""
    ends = ends_of(cells)
    return ends if set(ends.floor) & set(ends.ceiling) else None


def _between(cell: CellResult, own: Ends | None, others: Ends) -> Ends:
    """Return the ends that a cell is measured between: under its own seed where a folder has them."""
    seed = cell.cell.seed
    for ends in (own, others):
        if ends is not None and seed in ends.floor and seed in ends.ceiling:
            return ends
    there = next(s for s in others.floor if s in others.ceiling)
    return Ends(floor={seed: others.floor[there]}, ceiling={seed: others.ceiling[there]})


def _edge(cell: CellResult, tuned: Bits, task: str) -> Estimate:
    pair = ({task: cell.fused[task]}, {task: tuned[task]})
    return over_seeds_or_records({cell.cell.seed: pair}, operator.sub, "edge")


def _points(made: Estimate) -> str:
    assert made.low is not None
    assert made.high is not None
    return f"{100 * made.value:.1f} [{100 * made.low:.1f}, {100 * made.high:.1f}]"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
