"""`matrix`: protection x remove ratio x fusion x adapter x seed, each run, attacked and measured.

    baselines/cells/NAME.json   the centralised LLM, for every seed: the ceiling of `gap_closed`
    cells/NAME/                 a run folder, recorded, with its findings in `attacks/`
    cells/NAME/cell.json        written last: the cell is done
    cells/NAME/failed.json      why it is not
    report.json, report.html .. all cells together, signed over audit.jsonl, which has the heads of theirs

Every cell has a process of its own, so that one which fails, or is killed, loses nothing of the rest. A
stopped matrix goes on with `resume=True`: finished cells are kept, unfinished ones go on after their last
round, failed ones are tried again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from fedproxy_secure.artifacts import RunFolder, environment
from fedproxy_secure.attacked import attack_run
from fedproxy_secure.audit.keys import own_key_file
from fedproxy_secure.audit.witness import Witness
from fedproxy_secure.comparison import Cell, cell_file, cell_to_json, read_cell, run_cell
from fedproxy_secure.config import Config, Fusion, Protection, parse_config
from fedproxy_secure.errors import ConfigError, FedProxyError, RunFolderError
from fedproxy_secure.preload import end_with_parent, warm_up
from fedproxy_secure.progress import NoProgress, Progress
from fedproxy_secure.report.composition import Training
from fedproxy_secure.report.estimate import Bits
from fedproxy_secure.report.finding import FOLDER, RESULTS, Outcome
from fedproxy_secure.report.measured import ATTACKED, SeedRun, configuration_of, cost_against, read_seed
from fedproxy_secure.report.publish import publish
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.spending import guarantees_of, total, unfinished_training
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.untrusted import read_json

BASELINES, CELLS, DONE, FAILED = "baselines", "cells", "cell.json", "failed.json"
CELLS_NEED = (
    "fedproxy_secure.runs",
    "fedproxy_secure.federate.client",
    "fedproxy_secure.flower.client_app",
    "fedproxy_secure.flower.recording",
    "peft",
    "transformers.models.llama.modeling_llama",
    "opacus",
)
EPSILONS: Mapping[str, float] = {"masking_dp8": 8.0, "masking_dp3": 3.0, "masking_dp1": 1.0}
CEILING_NOT_COUNTED = (
    "Not counted: the centralised LLM behind `gap closed`, which trains on the same records without "
    "differential privacy. Its accuracy is told; its weights are not kept."
)
FUSIONS: Mapping[Fusion, tuple[str, str]] = {
    "fedavg": ("fedavg", "block"),
    "h_ties": ("h_ties", "block"),
    "h_ties_coordinate": ("h_ties", "coordinate"),
}


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """One configuration with one seed."""

    protection: Protection
    remove_ratio: float
    fusion: Fusion
    adapter: str
    seed: int

    @property
    def key(self) -> str:
        """Of its configuration: the same for all seeds."""
        return f"{self.protection}-{self.remove_ratio:g}-{self.fusion}-{self.adapter}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.key}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, str]:
        """What was swept, as texts."""
        return {
            "protection": self.protection,
            "remove_ratio": f"{self.remove_ratio:g}",
            "fusion": self.fusion,
            "adapter": self.adapter,
        }


def cells_of(config: Config) -> tuple[list[MatrixCell], list[str]]:
    """Cells that can run, the longest first; and for configurations that cannot, one line why."""
    swept = config.matrix
    cells, refused = [], []
    for protection, ratio, fusion, adapter in product(
        swept.protections, swept.remove_ratios, swept.fusions, swept.adapters
    ):
        made = [
            MatrixCell(protection=protection, remove_ratio=ratio, fusion=fusion, adapter=adapter, seed=s)
            for s in config.seeds
        ]
        try:
            cell_config(config, made[0]).check_protection()
            cells += made
        except ConfigError as error:
            refused.append(f"{made[0].key}: {error}")
    if not cells:
        raise ConfigError(f"matrix: no configuration can run; {refused[0]}")
    return sorted(cells, key=lambda c: (c.protection not in EPSILONS, c.seed)), refused


def cell_config(config: Config, cell: MatrixCell) -> Config:
    """The settings of one cell: those of the matrix with the cell's own in their place."""
    rule, granularity = FUSIONS[cell.fusion]
    raw = config.model_dump(mode="json")
    raw["name"] = cell.key
    raw["seeds"] = [cell.seed]
    raw["compress"]["remove_ratio"] = cell.remove_ratio
    raw["adapter"]["kind"] = cell.adapter
    raw["fusion"]["rule"] = rule
    raw["protect"]["granularity"] = granularity
    scheme = "masking" if cell.protection in EPSILONS else cell.protection
    raw["protect"]["scheme"] = scheme
    if cell.protection in EPSILONS:
        raw["privacy"] |= {"unit": "record", "target_epsilon": EPSILONS[cell.protection]}
    else:
        raw["privacy"]["unit"] = "none"
    raw["audit"]["record"] = config.matrix.suite != "none"
    return parse_config(raw)


def plan_rows(config: Config) -> list[tuple[str, str]]:
    """What a matrix would run: names and formatted values, for people; nothing is loaded."""
    cells, refused = cells_of(config)
    steps = config.federate.rounds * config.local.steps * len(config.data.clients)
    return [
        ("cells", f"{len(cells)}: {len({c.key for c in cells})} configurations, {len(config.seeds)} seeds"),
        ("training", f"{steps:,} steps a cell, and as many for each of {len(config.seeds)} ceilings"),
        ("suite", f"{config.matrix.suite}, from {', '.join(config.matrix.views)}"),
        *[("left out", line) for line in refused],
    ]


def matrix(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Report:
    """Run, attack and measure every cell that `out` does not hold yet; write and return the report.

    Cells run in `matrix.jobs` processes of one torch thread each; by itself one a core, and on CUDA one in
    all. Failed cells stand in the report with their reason.

    Raises `RunFolderError` for a folder of other settings, `ConfigError` if no configuration can run.
    """
    from fedproxy_secure.llm import pick_device
    from fedproxy_secure.pipeline import cut_notes, truncated_prompts

    cells, refused = cells_of(config)
    shown = progress or NoProgress()
    signed, config = config, config.with_signing_key(None)
    folder = RunFolder.resume(out, config) if resume else RunFolder.create(out, config)
    witness = Witness.open(folder, signed, command=command)
    ceilings = [Cell(method="centralised_llm", remove_ratio=None, seed=s) for s in config.seeds]
    todo: list[MatrixCell | Cell] = [c for c in cells if not (out / CELLS / c.name / DONE).exists()]
    todo += [c for c in ceilings if not cell_file(out / BASELINES, c).exists()]
    if todo:
        warm_up(CELLS_NEED)  # imports while this process reads the records
    truncated = truncated_prompts(config)  # before any cell: unreadable records stop here
    shown.start("matrix", len(todo))
    on_cuda = pick_device(config.model.device).type == "cuda"
    jobs = config.matrix.jobs or (1 if on_cuda else os.cpu_count() or 1)
    with witness.aborts():
        key = signed.audit.signing_key or str(own_key_file(out))  # cells sign with the matrix's
        for name in _run_all(config.with_signing_key(key), out, todo, jobs, on_cuda=on_cuda):
            shown.advance("matrix", note=name)
        shown.done("matrix")
        done = [f"{CELLS}/{c.name}" for c in cells if (out / CELLS / c.name / DONE).exists()]
        for name in done:
            witness.inner(name)
        head = witness.settle(*(f"{name}/{FOLDER}/{RESULTS}" for name in done))
    configurations = tuple(configurations_of(config, out, cells))
    together = total(configurations, same_records=True)
    report = Report(
        name=config.name,
        command=command or "fedproxy_secure.matrix.matrix(...)",
        config_sha256=config.sha256(),
        environment=environment(str(pick_device(config.model.device))),
        seeds=config.seeds,
        configurations=configurations,
        total_epsilon=together.epsilon,
        composition=(*together.says, *((CEILING_NOT_COUNTED,) if together.says else ())),
        notes=cut_notes(truncated, config),
        not_measured=(*refused, *_no_ceiling(config, out), *_not_measured(config, out, cells)),
        audit_head=head,
    )
    publish(report, folder.path)
    witness.sign()
    return report


def configurations_of(config: Config, out: Path, cells: Sequence[MatrixCell]) -> list[Configuration]:
    """Each configuration's measures over its finished seeds, in the order of the settings.

    Costs are told beside those of the unprotected configuration that is alike in all else. What a cell
    spent that did not finish is counted with its configuration's.
    """
    runs: dict[str, list[SeedRun]] = {}
    failed: dict[str, list[str]] = {}
    besides: dict[str, list[Training]] = {}
    order = {key: i for i, key in enumerate(config.matrix.protections)}
    ordered = sorted(cells, key=lambda c: (c.remove_ratio, order[c.protection], c.key, c.seed))
    for cell in ordered:
        mine, place = runs.setdefault(cell.key, []), out / CELLS / cell.name
        if (place / DONE).exists():
            mine.append(read_seed(place, cell.seed, root=out, ceiling=_ceiling(out, cell.seed)))
        else:
            failed.setdefault(cell.key, []).append(f"seed {cell.seed}: {_why(place)}")
            besides.setdefault(cell.key, []).extend(
                unfinished_training(place, cell.seed, cell_config(config, cell))
            )
    made = []
    for key, mine in runs.items():
        first = next(c for c in ordered if c.key == key)
        own, lost = cell_config(config, first), besides.get(key, [])
        configuration = configuration_of(
            mine,
            own,
            name=_title(first, config),
            settings=first.settings,
            guarantees=guarantees_of(own, [s.training(own) for s in mine] + lost) if mine else (),
            failed=failed.get(key, ()),
            besides=lost,
            commands=tuple(
                f"fedproxy-secure run {CELLS}/{c.name}/config.yaml --record"
                for c in ordered
                if c.key == key
            ),
        )
        base = replace(first, protection="unsafe_plaintext").key
        if base != key:
            beside = cost_against(mine, runs.get(base, ()))
            configuration = replace(configuration, measures=(*configuration.measures, *beside))
        made.append(configuration)
    return made


def _title(cell: MatrixCell, config: Config) -> str:
    """For people: what was swept over one value only is left out."""
    words = {
        "unsafe_plaintext": "no protection",
        "masking": "masking",
        "ckks": "CKKS",
        **{name: f"masking + DP {epsilon:g}" for name, epsilon in EPSILONS.items()},
    }
    parts = [words[cell.protection], f"{cell.remove_ratio:.0%} removed"]
    parts += [cell.fusion] * (len(config.matrix.fusions) > 1)
    parts += [cell.adapter] * (len(config.matrix.adapters) > 1)
    return ", ".join(parts)


def _not_measured(config: Config, out: Path, cells: Sequence[MatrixCell]) -> list[str]:
    """What no finding says anything about, and why."""
    if config.matrix.suite == "none":
        return [ATTACKED]
    lines: dict[str, int] = {}
    for cell in cells:
        if not (out / CELLS / cell.name / DONE).exists():
            continue
        for f in read_seed(out / CELLS / cell.name, cell.seed, root=out).findings:
            if f.outcome not in (Outcome.SUCCEEDED, Outcome.RESISTED):
                line = f"{f.id} {f.attack} from {f.view}: {f.outcome}: {f.reason}"
                lines[line] = lines.get(line, 0) + 1
    made = [f"{line} ({count} of {len(cells)} cells)" for line, count in lines.items()]
    if config.matrix.suite == "smoke":
        made.append(
            "The suite `smoke` leaves out the slower attacks; `fedproxy-secure attack list` names them."
        )
    return made


def _no_ceiling(config: Config, out: Path) -> list[str]:
    """Why no gap can be told: seeds whose centralised LLM failed."""
    cells = [Cell(method="centralised_llm", remove_ratio=None, seed=seed) for seed in config.seeds]
    return [
        f"gap closed: {cell.name} failed: {_why(out / BASELINES / cell.name)}"
        for cell in cells
        if _ceiling(out, cell.seed) is None
    ]


def _ceiling(out: Path, seed: int) -> Bits | None:
    try:
        return read_cell(
            out / BASELINES, Cell(method="centralised_llm", remove_ratio=None, seed=seed)
        ).fused
    except RunFolderError:
        return None


def _why(place: Path) -> str:
    try:
        return str(read_json(place / FAILED)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "did not finish"


def _run_all(
    config: Config, out: Path, todo: Sequence[MatrixCell | Cell], jobs: int, *, on_cuda: bool
) -> Iterator[str]:
    """Names of cells as they end, well or not."""
    context: SpawnContext | ForkServerContext
    context = get_context("spawn") if on_cuda else get_context("forkserver")
    waiting: list[MatrixCell | Cell] = list(todo)
    running: dict[Any, tuple[Any, MatrixCell | Cell]] = {}  # by what tells that the process has ended
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                process = context.Process(target=_work, args=(config, cell, out), name=cell.name)
                process.start()
                running[process.sentinel] = (process, cell)
            for sentinel in wait(list(running)):
                process, cell = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    _note_failure(out, cell, f"its process ended with code {process.exitcode}", again=False)
                yield cell.name
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _work(config: Config, cell: MatrixCell | Cell, out: Path) -> None:
    """One cell, in a process of its own, which ends with its parent."""
    import torch

    end_with_parent()
    torch.set_num_threads(1)
    try:
        if isinstance(cell, Cell):
            result = run_cell(config, cell)
            RunFolder(path=out / BASELINES).write_json(f"cells/{cell.name}.json", cell_to_json(result))
        else:
            measure_cell(config, cell, out)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:  # whatever it is, the rest of the matrix goes on
        line = str(error) if isinstance(error, FedProxyError) else f"{type(error).__name__}: {error}"
        _note_failure(out, cell, line, again=True)


def measure_cell(config: Config, cell: MatrixCell, out: Path) -> None:
    """Run one cell, attack it, and mark it as done."""
    from fedproxy_secure.runs import run

    began = time.perf_counter()
    own, folder = cell_config(config, cell), out / CELLS / cell.name
    with contextlib.suppress(FileNotFoundError):
        (folder / FAILED).unlink()
    typed = f"fedproxy-secure run {CELLS}/{cell.name}/config.yaml --record"
    run(own, folder, resume=True, command=typed, page=False)
    if config.matrix.suite != "none":
        attack_run(own, folder, seed=cell.seed)
    RunFolder(path=folder).write_json(DONE, {"seconds": time.perf_counter() - began})


def _note_failure(out: Path, cell: MatrixCell | Cell, line: str, *, again: bool) -> None:
    place = out / (BASELINES if isinstance(cell, Cell) else CELLS) / cell.name
    if again or not (place / FAILED).exists():
        RunFolder(path=place).write_json(FAILED, {"error": line})
