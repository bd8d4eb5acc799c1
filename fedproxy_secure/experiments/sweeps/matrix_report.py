"""The report of a matrix: its cells' results, joined over seeds into configurations.

baselines/cells/NAME.json   the centralised LLM, for every seed: the ceiling of `gap_closed`
cells/NAME/                 a run folder for each cell (`matrix_cells`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedproxy_secure.config import Config, SweptProtection
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.evidence.measures.cost import SECONDS_OVER_UNPROTECTED, UPLOAD_OVER_UNPROTECTED
from fedproxy_secure.experiments.methods.references import CENTRALISED_LLM
from fedproxy_secure.experiments.results import choice_notes, cut_notes, text_clients
from fedproxy_secure.experiments.run_report import (
    aligned_windows,
    found_scales,
    plug_back_notes,
    settings_of,
)
from fedproxy_secure.experiments.sweeps.matrix_cells import (
    MatrixCell,
    cell_config,
    is_done,
    title_of,
    why_failed,
)
from fedproxy_secure.experiments.sweeps.method_cells import Cell, CellResult, cell_file, read_cell
from fedproxy_secure.report.composition import Training
from fedproxy_secure.report.measured import (
    ATTACKED,
    SeedRun,
    configuration_of,
    cost_against,
    lacking_on_some_seed,
    read_seed,
    without_gap,
    without_losses,
)
from fedproxy_secure.report.protections.side_by_side import side_by_side
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.sources import sentence
from fedproxy_secure.report.spending import (
    CEILING_NOT_COUNTED,
    guarantees_of,
    total,
    unfinished_training,
)
from fedproxy_secure.report.sweep import PLAINTEXT
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.artifacts import environment
from fedproxy_secure.runtime.files.names import BASELINES

TRAINING = ("adapter", "local", "federate", "fusion")  # sections that a protection's `settings` may replace


@dataclass(kw_only=True)
class Group:
    """The cells of one configuration, and how they ended."""

    cells: list[MatrixCell] = field(default_factory=list)
    seeds: list[SeedRun] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    besides: list[Training] = field(default_factory=list)  # epsilon spent by cells that did not finish


def ceilings_of(config: Config) -> list[Cell]:
    """Return the cells of the centralised LLM, one for each seed."""
    return [Cell(method=CENTRALISED_LLM.name, remove_ratio=None, seed=seed) for seed in config.seeds]


def todo_of(config: Config, out: Path, cells: Sequence[MatrixCell]) -> list[MatrixCell | Cell]:
    """Return the ceilings and cells that are not done, in the order in which to begin them.

    Ceilings come first, because they train the whole LLM on one core, while the attacks of the last cell
    can use all cores.
    """
    ceilings = [c for c in ceilings_of(config) if not cell_file(out / BASELINES, c).exists()]
    return [*ceilings, *(c for c in cells if not is_done(out, c))]


def matrix_report(
    config: Config,
    out: Path,
    cells: Sequence[MatrixCell],
    refused: Sequence[str],
    *,
    truncated: int,
    audit_head: str,
    command: str,
) -> Report:
    """Return the report of all cells together, finished or not.

    Args:
        refused: the configurations that cannot run.
        truncated: how many prompts were cut to `data.max_tokens`.
        audit_head: the last hash of the matrix's audit log, hex.
    """
    from fedproxy_secure.models.llm import pick_device

    missing = no_ceiling(config, out)
    groups = groups_of(config, out, cells)
    configurations, differences = side_by_side(configurations_of(config, groups))
    together = total(configurations, same_records=True)
    return Report(
        name=config.name,
        command=command or "fedproxy_secure.matrix(...)",
        config_sha256=config.sha256(),
        environment=environment(str(pick_device(config.model.device))),
        seeds=config.seeds,
        configurations=configurations,
        attack_differences=differences,
        total_epsilon=together.epsilon,
        composition=(*together.says, *((CEILING_NOT_COUNTED,) if together.says else ())),
        notes=(
            config.api.says,
            *cut_notes(truncated, config),
            *choice_notes(config),
            *plug_back_notes(
                config,
                scales_of(config, groups),
                aligned_windows(s for group in groups.values() for s in group.seeds),
            ),
        ),
        not_measured=(
            *refused,
            *missing,
            *without_gap(configurations),
            *without_losses(configurations, text_clients(config), ceiling=not missing),
            *lacking_on_some_seed(configurations),
            *without_costs_beside(config, groups),
            *not_measured(config, configurations, cells=len(cells)),
        ),
        audit_head=audit_head,
    )


def configurations_of(config: Config, groups: Mapping[str, Group]) -> list[Configuration]:
    """Return each configuration's measures over its finished seeds, in the order of the settings.

    Costs are compared with those of the unprotected configuration that trains in the same way, if there is
    one. The epsilon of a cell that did not finish is counted with its configuration's.
    """
    configurations = []
    for group in groups.values():
        first = group.cells[0]
        settings = cell_config(config, first)
        trainings = [s.training(settings) for s in group.seeds] + group.besides
        configuration = configuration_of(
            group.seeds,
            settings,
            name=title_of(first, config),
            settings=settings_of(settings)
            | {"protection": first.protection.name, "fusion": first.fusion.name}
            | ({} if first.compression is None else {"compression": first.compression.name}),
            recipe=_recipe(first.protection),
            guarantees=guarantees_of(settings, trainings) if group.seeds else (),
            failed=group.failed,
            besides=group.besides,
            commands=tuple(cell.command for cell in group.cells),
        )
        if not _is_unprotected(first.protection):
            beside = cost_against(group.seeds, _unprotected(config, first, groups))
            configuration = replace(configuration, measures=(*configuration.measures, *beside))
        configurations.append(configuration)
    return configurations


def without_costs_beside(config: Config, groups: Mapping[str, Group]) -> list[str]:
    """Return a line for each finished configuration whose own settings no unprotected one has.

    Its costs would be compared with those of another training.
    """
    keys = f"{UPLOAD_OVER_UNPROTECTED.key}, {SECONDS_OVER_UNPROTECTED.key}"
    return [
        f"{keys} of {title_of(cell, config)}: no finished unprotected configuration trains with the same "
        "settings; add one with these `settings` to matrix.protections"
        for cell, seeds in ((g.cells[0], g.seeds) for g in groups.values())
        if seeds and cell.protection.settings and not _is_unprotected(cell.protection)
        if not _unprotected(config, cell, groups)
    ]


def _unprotected(config: Config, cell: MatrixCell, groups: Mapping[str, Group]) -> Sequence[SeedRun]:
    """Return the finished unprotected runs that otherwise equal a cell's, also in how clients train."""

    def training(of: MatrixCell) -> list[Any]:
        settings = cell_config(config, of)
        return [getattr(settings, section) for section in TRAINING]

    for protection in filter(_is_unprotected, config.matrix.protections):
        base = replace(cell, protection=protection)
        if base.key in groups and training(base) == training(cell):
            return groups[base.key].seeds
    return ()


def _is_unprotected(protection: SweptProtection) -> bool:
    return protection.scheme == PLAINTEXT and protection.epsilon is None


def _recipe(protection: SweptProtection) -> str:
    """Return a protection's options and its recipe in words; empty if it has neither."""
    options = [f"{key}={value}" for key, value in (protection.options or {}).items()]
    return " ".join([*options, *(protection.recipe or "").split("_")]).strip()


def groups_of(config: Config, out: Path, cells: Sequence[MatrixCell]) -> dict[str, Group]:
    """Return, by key, the cells of each configuration and their results on disk."""
    order = {p.name: i for i, p in enumerate(config.matrix.protections)}
    ceilings = {c.seed: ceiling_of(out, c) for c in ceilings_of(config)}
    groups: dict[str, Group] = {}
    for cell in sorted(cells, key=lambda c: (c.remove_ratio, order[c.protection.name], c.key, c.seed)):
        group, place = groups.setdefault(cell.key, Group()), out / cell.folder
        group.cells.append(cell)
        if is_done(out, cell):
            top = ceilings[cell.seed]
            bits, lost = (None, None) if top is None else (top.fused, top.fused_loss)
            group.seeds.append(read_seed(place, cell.seed, root=out, ceiling=bits, ceiling_losses=lost))
        else:
            group.failed.append(f"seed {cell.seed}: {why_failed(place)}")
            group.besides += unfinished_training(place, cell.seed, cell_config(config, cell))
    return groups


def scales_of(config: Config, groups: Mapping[str, Group]) -> dict[str, dict[int, float]]:
    """Return the factors that searches on public text found, by configuration and seed."""
    return {title_of(g.cells[0], config): found_scales(g.seeds) for g in groups.values() if g.seeds}


def not_measured(config: Config, configurations: Sequence[Configuration], *, cells: int) -> list[str]:
    """Return what the attacks did not measure, and why; `cells`: the number of all cells."""
    if config.attacks.suite == "none":
        return [ATTACKED]
    counts: dict[str, int] = {}
    for configuration in configurations:
        for f in configuration.findings:
            if f.outcome not in (Outcome.SUCCEEDED, Outcome.RESISTED):
                counts[sentence(f)] = counts.get(sentence(f), 0) + 1
    lines = [f"{line} ({count} of {cells} cells)" for line, count in counts.items()]
    if config.attacks.suite == "smoke":
        lines.append(
            "The suite `smoke` leaves out the slower attacks; `fedproxy-secure attack list` names them."
        )
    return lines


def no_ceiling(config: Config, out: Path) -> list[str]:
    """Return why no gap can be computed: the seeds whose centralised LLM failed."""
    return [
        f"gap closed: {cell.name} failed: {why_failed(out / BASELINES / cell.name)}"
        for cell in ceilings_of(config)
        if ceiling_of(out, cell) is None
    ]


def ceiling_of(out: Path, cell: Cell) -> CellResult | None:
    """Return the result of the centralised LLM, or None if it did not finish."""
    try:
        return read_cell(out / BASELINES, cell)
    except RunFolderError:
        return None
