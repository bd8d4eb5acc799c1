"""The trilemma's targets: `make bench-report`.

Runs `configs/demo_matrix.yaml` below `build/bench`, killing it twice on the way (SIGKILL, after a third and
after two thirds of the cells) and resuming it; then runs the cells that were cut anew and compares. Goes on
with what is already there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedproxy_secure.config import load_config
from fedproxy_secure.experiments.sweeps.matrix_cells import cells_of, measure_cell
from fedproxy_secure.report.html.page import write_page
from fedproxy_secure.report.report import Report
from fedproxy_secure.runtime.files.names import CELL_DONE, CELLS, REPORT_PAGE
from tests.bench.rows import FOLDER, Row, publish
from tests.support.command import run_command
from tests.support.page_walk import faults, parse

COMMAND = "make bench-report"
CONFIG = "configs/demo_matrix.yaml"
OUT = FOLDER / "demo_matrix"
TIMES = FOLDER / "demo_matrix_times.json"  # seconds of each part, and which cells were cut by a kill
POLL_S = 0.5


def main() -> None:
    """Measure everything, print, write."""
    rows = [*matrix_rows(), *page_rows(), demo_seconds()]
    publish("report", rows)


def demo_seconds() -> Row:
    """Wall time of what `make demo` runs after installation."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_command("matrix", "configs/demo_trilemma.yaml", "--out", f"{folder}/run")
        took = time.perf_counter() - began
    return _row("make demo after installation", took, 1, "s", "<= 300", took <= 300)


def matrix_rows() -> list[Row]:
    """Seconds of the whole matrix with two kills; whether a cut cell ends as an unbroken one."""
    config = load_config(CONFIG)
    cells, _ = cells_of(config)
    noted: dict[str, Any] = json.loads(TIMES.read_text()) if TIMES.exists() else {"seconds": [], "cut": []}
    for part in range(len(noted["seconds"]), 3):
        seconds, cut = _run_until(len(cells) * (part + 1) // 3, last=part == 2)
        noted["seconds"].append(seconds)
        noted["cut"] += cut
        TIMES.parent.mkdir(parents=True, exist_ok=True)
        TIMES.write_text(json.dumps(noted))
    total = sum(noted["seconds"])
    done = sum((OUT / CELLS / c.name / CELL_DONE).exists() for c in cells)
    same, compared = 0, [c for c in cells if c.name in noted["cut"]][:2]
    for cell in compared:
        with tempfile.TemporaryDirectory() as folder:
            measure_cell(config, cell, Path(folder))
            same += _result(Path(folder), cell.name, cell.seed) == _result(OUT, cell.name, cell.seed)
    return [
        _row("demo matrix, killed and resumed twice", total, 1, "s", "<= 2400", total <= 2400),
        _row("cells of it that ended", done, len(cells), "cells", f"= {len(cells)}", done == len(cells)),
        _row(
            "cells cut by a kill that ended as an unbroken one does",
            same,
            len(compared),
            "cells",
            f"= {len(compared)}",
            same == len(compared) > 0,
        ),
    ]


def page_rows() -> list[Row]:
    """Numbers on the page without n, interval, seeds and source; seconds to write it."""
    report = Report.load(OUT)
    began = time.perf_counter()
    write_page(report, OUT)
    took = time.perf_counter() - began
    bare = faults(parse((OUT / REPORT_PAGE).read_text(encoding="utf-8")))
    return [
        _row("numbers on the page without origin", len(bare), 1, "numbers", "= 0", not bare),
        _row("writing the page", took, 1, "s", "", None),
    ]


def _run_until(cells_done: int, *, last: bool) -> tuple[float, list[str]]:
    """Run the matrix until so many cells are done, then kill it; seconds, and which cells were cut."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "fedproxy_secure", "matrix", CONFIG, "--out", str(OUT), "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if not last and len(list(OUT.glob(f"{CELLS}/*/{CELL_DONE}"))) >= cells_done:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            cut = [p.name for p in OUT.glob(f"{CELLS}/*") if not (p / CELL_DONE).exists()]
            return time.perf_counter() - began, cut
        time.sleep(POLL_S)
    if process.returncode:
        sys.exit(f"the matrix ended with code {process.returncode}")
    return time.perf_counter() - began, []


def _result(out: Path, name: str, seed: int) -> dict[str, Any]:
    """A cell's result without what is timed anew, and its findings without seconds."""
    place = out / CELLS / name
    made: dict[str, Any] = json.loads((place / f"seed-{seed}" / "result.json").read_text())
    for key in ("seconds", "peak_memory_bytes"):
        made.pop(key)
    findings = json.loads((place / "attacks" / "results.json").read_text())["results"]
    return {"result": made, "findings": [{k: v for k, v in f.items() if k != "seconds"} for f in findings]}


def _row(metric: str, value: float, n: int, unit: str, target: str, ok: bool | None) -> Row:
    return Row(
        metric=metric,
        value=value,
        low=None,
        high=None,
        n=n,
        unit=unit,
        target=target,
        ok=ok,
        command=COMMAND,
    )


if __name__ == "__main__":
    main()
