"""What every benchmark prints and writes: rows of `metric, value, low, high, n, unit, target, ok`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fedproxy_secure.evidence.estimate import Estimate

FOLDER = Path("build/bench")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finding. `ok` is None where there is no target; False is a finding, not a failing test."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    unit: str
    target: str
    ok: bool | None
    command: str

    @classmethod
    def of(
        cls, metric: str, made: Estimate, *, command: str, target: str = "", ok: bool | None = None
    ) -> Row:
        """The row of an estimate."""
        return cls(
            metric=metric,
            value=made.value,
            low=made.low,
            high=made.high,
            n=made.n,
            unit=made.unit,
            target=target,
            ok=ok,
            command=command,
        )


def interleaved_ratio(
    work: Callable[[], object], floor: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Median, lowest and highest ratio of wall times, measured in turns after one warm-up each."""
    work(), floor()
    ratios = []
    for _ in range(repeats):
        took = [seconds(floor), seconds(work)]
        ratios.append(took[1] / took[0])
    return float(np.median(ratios)), min(ratios), max(ratios)


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def publish(name: str, rows: list[Row]) -> None:
    """Print the rows and write `build/bench/NAME.json`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    width = max(len(r.metric) for r in rows)
    for r in rows:
        interval = "" if r.low is None else f" [{r.low:.4g}, {r.high:.4g}]"
        mark = {True: "ok", False: "BELOW TARGET", None: ""}[r.ok]
        print(f"{r.metric:{width}}  {r.value:.4g}{interval} {r.unit}, n={r.n}  {r.target}  {mark}")
