"""One cell of the benchmark: a recorded run, as `run` makes it, and the attacks' findings on it.

runs/NAME/         the run's folder with its models, transcript, report, and findings in `attacks/`
cells/NAME.json    the findings; written last, when the cell is done

A killed cell resumes after the last whole round, and after the last attack that ended. An attack whose code
has changed since is run again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from attacks.benchmark.grid import Grid, GridCell, config_of
from attacks.benchmark.identity import Identity
from attacks.benchmark.providers import AttackEntry
from attacks.benchmark.results import CellResult
from fedproxy_secure.evidence.finding import Finding
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import ATTACKS, SETTINGS_FILE
from fedproxy_secure.runtime.only_one import only_run_in
from fedproxy_secure.runtime.progress import WORK, Progress

RUNS = "runs"
CODE = "code.json"  # beside the findings: the digest of each attack's code when it ran
RUN_UNITS = 10  # work of a run, in attacks from one view, for the benchmark's progress


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The common inputs of all cells of one call.

    Args:
        grid: the grid.
        identity: the benchmark's identity.
        model: path of the LLM.
        attacks: the attacks that run.
        out: the benchmark's folder.
    """

    grid: Grid
    identity: Identity
    model: str
    attacks: tuple[AttackEntry, ...]
    out: Path

    def units(self, cell: GridCell) -> int:
        """Return the approximate work of a cell: its run and its attacks, in attacks from one view."""
        return RUN_UNITS + len(cell.views) * len(self.attacks)

    def command(self, cell: GridCell) -> str:
        """Return the command for only the cell's run, from the benchmark's folder."""
        return f"fedproxy-secure run {RUNS}/{cell.name}/{SETTINGS_FILE} --record"

    def result(
        self,
        cell: GridCell,
        *,
        seconds: float = 0.0,
        failed: str | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> CellResult:
        """Return the result of a cell."""
        return CellResult(
            benchmark_id=self.identity.id,
            name=cell.name,
            world=cell.world,
            adapter=cell.adapter,
            optimizer=cell.optimizer,
            steps=cell.steps,
            batch=cell.batch,
            clients=cell.clients,
            protection=cell.protection,
            epsilon=cell.epsilon,
            views=cell.views,
            attacks=self.attacks,
            seconds=seconds,
            failed=failed,
            findings=findings,
        )


def measure(plan: Plan, cell: GridCell, *, progress: Progress) -> None:
    """Run one cell on one thread, attack it, and write its result.

    Raises `FedProxyError` in one line if the run or its folder fails; an attack that fails is a finding.
    """
    from attacks.registry import get as attack_of
    from attacks.suite import run_suite
    from fedproxy_secure.experiments.run import run
    from fedproxy_secure.experiments.sweeps.method_cells import one_thread
    from threat_models import get as threat_model

    began = time.perf_counter()
    config = config_of(plan.grid, cell, model=plan.model)
    folder = plan.out / RUNS / cell.name
    progress.start(WORK, 0)
    with one_thread():
        run(config, folder, resume=True, progress=progress, command=plan.command(cell), in_cell=True)
        progress.advance(WORK, RUN_UNITS)
        with only_run_in(folder):
            forget_changed(folder, plan.attacks)
            findings = run_suite(
                folder,
                attacks=[attack_of(a.name) for a in plan.attacks],
                threat_models=[threat_model(view) for view in cell.views],
                profile=plan.identity.profile,
                seconds=plan.identity.seconds,
                seed=plan.identity.seed,
                resume=True,
                llm=config.model.path,
                progress=progress,
                on_result=lambda _: progress.advance(WORK),
            )
    shown = tuple(f.without_scores() for f in findings)
    plan.result(cell, seconds=time.perf_counter() - began, findings=shown).write(plan.out)


def forget_changed(folder: Path, attacks: tuple[AttackEntry, ...]) -> None:
    """Drop the findings of attacks whose code has changed, and note the current code."""
    from fedproxy_secure.evidence.kept import forget_events

    place = RunFolder(path=folder / ATTACKS)
    before = _earlier_code(place.path / CODE)
    current = {a.name: f"{a.provider_version} {a.code_sha256}" for a in attacks}
    changed = {name for name in current if before.get(name, current[name]) != current[name]}
    if changed:
        forget_events(folder, lambda line: str(line.get("attack")) in changed)
    place.write_json(CODE, before | current)


def _earlier_code(path: Path) -> dict[str, str]:
    try:
        digests = json.loads(path.read_bytes())
        return digests if isinstance(digests, dict) else {}
    except (OSError, ValueError):
        return {}
