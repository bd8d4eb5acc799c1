"""What each kind of proxy gives away and what it costs: `make bench-ip`.

The embedded demo LLM by `configs/demo_proxies.yaml`. `python -m tests.bench.ip real` does the same for a
real LLM by `configs/real_proxies.yaml`; further words `KIND` measure these compressions alone. Every proxy
is healed, tuned and plugged back as a matrix does it; the thief holds the tuned proxy and asks the fused
LLM. Runs and tables are kept in build/bench/ip, so that a measurement that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from attacks.base import Budget
from attacks.extraction.table import BEST, HEALED, PROXY, extraction_table
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.config import ANSWERS, Answers, Config, load_config
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Profile
from fedproxy_secure.experiments.matrix import matrix
from fedproxy_secure.experiments.sweeps.matrix_cells import (
    cells_of,
    is_done,
    title_of,
    why_failed,
)
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.progress import NoProgress
from fedproxy_secure.runtime.workers import Lost, run_tasks
from tests.bench.rows import FOLDER, Row, publish

COMMAND = "make bench-ip"
KEPT = FOLDER / "ip"
Line = dict[str, Any]  # of a table, as JSON has it
# settings, numbers of queries, what APIs tell, the most seconds for one table, its profile;
# with fewer seconds than it needs attacks are weaker
SIZES: Mapping[str, tuple[str, tuple[int, ...], tuple[Answers, ...], float, Profile]] = {
    # so many seconds that trainings are never cut: the table is the same on a slower machine
    "demo": ("configs/demo_proxies.yaml", (0, 64, 1024), ("text", "logits"), 36_000, "standard"),
    "real": ("configs/real_proxies.yaml", (0, 64, 256), ("logits",), 7200, "standard"),
}
VERSION = 3  # of the attacks: tables of another one are measured anew
EXACT = "drop_blocks"  # what the others are compared with
MEASURES = ("gap_closed", "accuracy_fused", "owners_edge", "verbatim_share", "proxy_kl_nats")
# the target: so many times the KL that the exact proxy leaves, and of its R; of its gap closed; held
TWICE, HALF, POINTS, VERBATIM = 2.0, 0.5, 0.03, 0.10


def main() -> None:
    """Measure the named LLM's proxies, the demo's without a name; print, write."""
    torch.set_num_threads(1)
    llm = sys.argv[1] if len(sys.argv) > 1 else "demo"
    file, grid, answers, seconds, profile = SIZES[llm]
    config = load_config(file, ["attacks.suite=none"])
    config = _only(config, sys.argv[2:])
    out = KEPT / llm
    began = time.perf_counter()
    found = {c.name: c for c in matrix(config, out, resume=True, command=COMMAND).configurations}
    done = []
    for cell in cells_of(config)[0]:
        if is_done(out, cell):
            done.append(cell)
        else:
            print(f"{cell.compression}: {why_failed(out / cell.folder)}", file=sys.stderr, flush=True)
    tasks = [
        _Task(
            name=str(cell.compression),
            run=out / cell.folder / f"seed-{cell.seed}",
            file=out / f"{cell.compression}.json",
            grid=grid,
            answers=answers,
            profile=profile,
            seconds=seconds,
        )
        for cell in done
    ]
    tables = {}
    for index, lines in run_tasks(_kept, tasks, jobs=0, on_cuda=torch.cuda.is_available()):
        if isinstance(lines, Lost):
            lines.reraise(tasks[index].name)
        tables[tasks[index].name] = (found[title_of(done[index], config)], lines)
    tables = {task.name: tables[task.name] for task in tasks}
    rows = [row for name, pair in tables.items() for row in _rows(f"{llm}, {name}", *pair)]
    rows += _targets(llm, tables, max(grid))
    rows.append(_plain(f"{llm}: this command; what was kept takes none", time.perf_counter() - began, "s"))
    publish(f"ip_{llm}", rows)
    print("\n".join(_summary(tables)))


def _only(config: Config, kinds: Sequence[str]) -> Config:
    """Return the settings with these compressions alone; all of them where none is named."""
    swept = config.matrix.compressions
    chosen = tuple(c for c in swept if c.name in kinds) if kinds else swept
    if len(chosen) < len(kinds):
        raise SystemExit(f"compressions {' '.join(kinds)}: must be of {' '.join(c.name for c in swept)}")
    return config.model_copy(update={"matrix": config.matrix.model_copy(update={"compressions": chosen})})


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A table to measure: the proxy's name, its run, where the table is kept, and how it is measured."""

    name: str
    run: Path
    file: Path
    grid: tuple[int, ...]
    answers: tuple[Answers, ...]
    profile: Profile
    seconds: float


def _kept(task: _Task) -> list[Line]:
    """Return a proxy's table of attacks, from its file if it was measured on these models and sizes."""
    models = {name: _digest(task.run / name) for name in ("proxy", "adapter", "fused")}
    sizes = [VERSION, list(task.grid), list(task.answers), task.profile, task.seconds, models]
    if task.file.exists():
        kept = json.loads(task.file.read_text())
        if kept["sizes"] == sizes:
            lines: list[Line] = kept["lines"]
            return lines
    torch.set_num_threads(1)
    proxy, tokenizer = load_llm(task.run / "proxy", dtype="float32")
    tuned: Any = PeftModel.from_pretrained(cast(Any, proxy), task.run / "adapter")
    held = task.file.with_suffix("")  # what a client holds at the end
    save_model(tuned.merge_and_unload(), tokenizer, held)
    made = extraction_table(
        held,
        task.run / "fused",
        grid=task.grid,
        answers=task.answers,
        budget=Budget(profile=task.profile, seconds=task.seconds),
        progress=Lines(task.name),
    )
    lines = [asdict(row) for row in made]
    task.file.write_text(json.dumps({"sizes": sizes, "lines": lines}) + "\n")
    return lines


def _digest(folder: Path) -> str:
    """Return a digest of the weights in a model's folder."""
    hasher = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        hasher.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return hasher.hexdigest()


def _rows(name: str, configuration: Configuration, table: Sequence[Line]) -> list[Row]:
    """Return a proxy's measures, then R of every attack, with its seconds."""
    found = [m for key in MEASURES if (m := configuration.measure(key)) is not None]
    rows = [Row.of(f"{name}: {m.key}", m.estimate, command=COMMAND) for m in found]
    for line in table:
        what = f"{name}: R, {line['queries']} queries, {line['answers'] or 'no API'}, {line['attack']}"
        rows.append(Row.of(what, Estimate(**line["r"]), command=COMMAND))
        rows.append(Row.of(f"{what}: KL that is left", Estimate(**line["kl"]), command=COMMAND))
        rows.append(_plain(f"{what}: time", line["seconds"], "s"))
    return rows


def _summary(tables: Mapping[str, tuple[Configuration, Sequence[Line]]]) -> list[str]:
    """Return a Markdown table of what is handed in for each proxy, by kind of answer and queries.

    That is what was best on the attacker's own texts, not on those it is judged by. Each cell has R and the
    KL that is left, in nats; the first column has the KL of the proxy itself.
    """
    kinds = {(x["queries"], x["answers"]): None for _, table in tables.values() for x in table}
    asked = sorted(kinds, key=lambda kind: (ANSWERS.index(kind[1]) if kind[1] else -1, kind[0]))
    titles = ["the proxy itself", *(f"{a}, {q} queries" if q else "no query" for q, a in asked)]
    lines = [f"| kind | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]
    for name, (_, table) in tables.items():
        cells = [f"{_handed_in(table, 0, None, PROXY)['kl']['value']:.4f}"]
        for queries, answers in asked:
            r, kl = (_handed_in(table, queries, answers)[key] for key in ("r", "kl"))
            cells.append(f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f}); {kl['value']:.4f}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _targets(
    llm: str, tables: Mapping[str, tuple[Configuration, Sequence[Line]]], queries: int
) -> list[Row]:
    """Return each defence's KL that is left, and R, over the exact one's, with logits and the most queries.

    The KL that is left compares proxies. R does so only for attackers who gain something on the exact one.
    """
    if EXACT not in tables:
        return []
    exact, rows = tables[EXACT], []
    for name, (configuration, table) in tables.items():
        if name == EXACT:
            continue
        kl, exact_kl = (_reached(t, queries, "kl") for t in (table, exact[1]))
        r, exact_r = (_reached(t, queries, "r") for t in (table, exact[1]))
        lost = _value(exact[0], "gap_closed") - _value(configuration, "gap_closed")
        held = _value(configuration, "verbatim_share")
        kept = lost <= POINTS and held <= VERBATIM
        compared = [("KL left", kl / max(exact_kl, 1e-9), f">= {TWICE:g}", kl >= TWICE * exact_kl)]
        if exact_r > 0:
            compared.append(("R", max(r, 0.0) / exact_r, f"<= {HALF}", r <= HALF * exact_r))
        for what, ratio, target, reached in compared:
            rows.append(
                Row(
                    metric=f"{llm}, {name}: {what} over that of {EXACT}, {queries} queries, logits; "
                    f"gap closed lost {lost:.3f}, held {held:.3f}",
                    value=ratio,
                    n=1,
                    unit="ratio",
                    target=f"{target}, lost <= {POINTS}, held <= {VERBATIM}",
                    ok=reached and kept,
                    command=COMMAND,
                )
            )
    return rows


def _handed_in(
    table: Sequence[Line], queries: int, answers: Answers | None, attack: str | None = None
) -> Line:
    """Return a table's row: by default of what an attacker hands in, which without queries is healed."""
    name = attack or (BEST if queries else HEALED)
    (line,) = (x for x in table if (x["attack"], x["queries"], x["answers"]) == (name, queries, answers))
    return line


def _reached(table: Sequence[Line], queries: int, key: str) -> float:
    """Return a number, `r` or `kl`, of what is handed in with logits and so many queries."""
    return float(_handed_in(table, queries, "logits")[key]["value"])


def _value(configuration: Configuration, key: str) -> float:
    measure = configuration.measure(key)
    return float("nan") if measure is None else measure.estimate.value


def _plain(metric: str, value: float, unit: str) -> Row:
    return Row(metric=metric, value=value, n=1, unit=unit, target="", ok=None, command=COMMAND)


class Lines(NoProgress):
    """Prints each line of a table as it is measured: the next takes minutes."""

    def __init__(self, name: str) -> None:
        self._name, self._began = name, time.perf_counter()

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Print what was done, and how long after the start."""
        print(
            f"{self._name}: {note}, {time.perf_counter() - self._began:.0f} s", file=sys.stderr, flush=True
        )


if __name__ == "__main__":
    main()
