"""Print a comparison by task: accuracy beside a constant answer's, owner's edge, and gap closed.

    python -m tests.bench.by_task DATA CELLS...

CELLS are files of finished cells of `paper_small` under one seed, among them `zero_shot` and
`centralised_llm`; DATA is the folder of its records. A mean over tasks hides that on some of them no model
learns anything. `most frequent` is the answer that training records have most often, given to every test
record. A task counts as learned where the ceiling lies above that and above the LLM before tuning, beyond
both intervals; `gap closed` is told over all tasks, and over those.
"""

from __future__ import annotations

import operator
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from fedproxy_secure.cli.options import find_config
from fedproxy_secure.config import load_config
from fedproxy_secure.data.tasks import load_task
from fedproxy_secure.evidence.answers import Bits, gap_closed, has_gap, over_seeds_or_records
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.experiments.sweeps.method_cells import Cell, CellResult, read_cell
from fedproxy_secure.runtime.untrusted import read_json

FLOOR, CEILING = "zero_shot", "centralised_llm"


def main(arguments: list[str]) -> int:
    """Print accuracies and owner's edges by task, and the gap closed over all and over learned tasks."""
    if len(arguments) < 3:
        print("usage: python -m tests.bench.by_task DATA CELLS...", file=sys.stderr)
        return 2
    data, *files = arguments
    cells = [_read(Path(file)) for file in files]
    by_method = {cell.cell.method: cell for cell in cells}
    if missing := [name for name in (FLOOR, CEILING) if name not in by_method]:
        print(f"error: no cell of {missing[0]}; both ends of the scale must be given", file=sys.stderr)
        return 2
    constant = most_frequent(data)
    floor, ceiling = by_method[FLOOR].fused, by_method[CEILING].fused
    learned = [t for t in constant if _is_learned(constant[t], floor[t], ceiling[t])]
    tasks = list(constant)
    print(_line("accuracy, %", *tasks))
    print(_line("most frequent answer", *(f"{100 * np.mean(constant[t]):.1f}" for t in tasks)))
    for name, cell in zip(files, cells, strict=True):
        print(_line(_title(name, cell), *(f"{100 * np.mean(cell.fused[t]):.1f}" for t in tasks)))
    print("\n" + _line("owner's edge, points", *tasks))
    for name, cell in zip(files, cells, strict=True):
        if cell.tuned is not None:
            print(_line(_title(name, cell), *(_points(_edge(cell, cell.tuned, t)) for t in tasks)))
    print("\n" + _line("gap closed, %", "all tasks", f"learned: {', '.join(learned)}"))
    for name, cell in zip(files, cells, strict=True):
        if cell.cell.method not in (FLOOR, CEILING):
            made = [_gap(cell.fused, floor, ceiling, of) for of in (tasks, learned)]
            print(_line(_title(name, cell), *made))
    return 0


def _read(file: Path) -> CellResult:
    raw = read_json(file)
    cell = Cell(method=raw["method"], remove_ratio=raw["remove_ratio"], seed=raw["seed"])
    return read_cell(file.parents[1], cell)


def most_frequent(data: str) -> dict[str, list[bool]]:
    """Return, by client, for which test records the answer that its training has most often is right."""
    config = load_config(find_config("paper_small"), [f"data.root={data}"])
    found = {}
    for client in config.data.clients:
        task = load_task(client, root=data)
        ((label, _),) = Counter(record.label for record in task.train).most_common(1)
        found[client.name] = [record.label == label for record in task.test]
    return found


def _is_learned(constant: list[bool], floor: list[bool], ceiling: list[bool]) -> bool:
    above = [
        over_seeds_or_records({0: ({"": ceiling}, {"": x})}, operator.sub, "") for x in (constant, floor)
    ]
    return all(one.low is not None and one.low > 0 for one in above)


def _edge(cell: CellResult, tuned: Bits, task: str) -> Estimate:
    pair = ({task: cell.fused[task]}, {task: tuned[task]})
    return over_seeds_or_records({cell.cell.seed: pair}, operator.sub, "edge")


def _gap(fused: Bits, floor: Bits, ceiling: Bits, tasks: list[str]) -> str:
    """Return the gap closed over some tasks, in the order of the cells, as the command itself does."""
    of = [{t: bits[t] for t in bits if t in tasks} for bits in (fused, floor, ceiling)]
    if not tasks or not has_gap(of[1], of[2]):
        return "none"
    return _points(over_seeds_or_records({0: of}, gap_closed, "gap closed"))


def _points(made: Estimate) -> str:
    assert made.low is not None
    assert made.high is not None
    return f"{100 * made.value:.1f} [{100 * made.low:.1f}, {100 * made.high:.1f}]"


def _title(file: str, cell: CellResult) -> str:
    return f"{Path(file).parents[1].name}, {cell.cell.method}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
