"""One configuration of a matrix with one seed: its settings, its names, and how it is run.

cells/NAME/               a run folder, recorded if a suite attacks it, with findings in `attacks/`
cells/NAME/cell.json      written last: the cell is done
cells/NAME/failed.json    why the cell failed
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import (
    Config,
    PrivacyConfig,
    SweptCompression,
    SweptFusion,
    SweptProtection,
    parse_config,
)
from fedproxy_secure.config.kinds import COMPRESSIONS, PROTECTIONS
from fedproxy_secure.config.sections import Scalar
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.attacked import attack_run
from fedproxy_secure.experiments.sweeps.prepared_proxies import PreparedProxy
from fedproxy_secure.protect.base import protection_of
from fedproxy_secure.report.sweep import percent
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import CELL_DONE, CELL_FAILED, CELLS, SETTINGS_FILE, seed_folder
from fedproxy_secure.runtime.progress import Progress
from fedproxy_secure.runtime.untrusted import read_json

MOST_NAME = 200  # characters of a folder's name; file systems take 255


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """One configuration with one seed; `compression` None means that of the section `compress`."""

    protection: SweptProtection
    compression: SweptCompression | None
    remove_ratio: float
    fusion: SweptFusion
    adapter: str
    seed: int

    @property
    def key(self) -> str:
        """The name of its configuration, the same for all seeds."""
        compression = "" if self.compression is None else f"{self.compression}-"
        return f"{self.protection}-{compression}{self.remove_ratio:g}-{self.fusion}-{self.adapter}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.key}-seed{self.seed}"

    @property
    def folder(self) -> str:
        """The path of its folder, relative to the matrix's."""
        return f"{CELLS}/{self.name}"

    @property
    def command(self) -> str:
        """The command that runs this cell alone, from the matrix's folder."""
        return f"fedproxy-secure run {self.folder}/{SETTINGS_FILE} --record"


def cells_of(config: Config, out: Path | None = None) -> tuple[list[MatrixCell], list[str]]:
    """Return the cells that can run, private ones first, and why other configurations cannot.

    Private cells train longest. `out`: the matrix's folder; a cell that is done there needs no library.
    With None, no cell is done.

    Raises `ConfigError` if there is no cell, or a name is too long for a folder.
    """
    swept = config.matrix
    if all(protection.epsilon is None for protection in swept.protections):
        config.check_epsilon()
    cells, refused = [], []
    for protection, compression, ratio, fusion, adapter in product(
        swept.protections, swept.compressions or (None,), swept.remove_ratios, swept.fusions, swept.adapters
    ):
        alike = [
            MatrixCell(
                protection=protection,
                compression=compression,
                remove_ratio=ratio,
                fusion=fusion,
                adapter=adapter,
                seed=seed,
            )
            for seed in config.seeds
        ]
        if (long := max(len(cell.name) for cell in alike)) > MOST_NAME:
            raise ConfigError(
                f"matrix: the name of a cell's folder has {long} characters; must have at most "
                f"{MOST_NAME}; shorten `recipe` or options"
            )
        try:
            cell_settings = cell_config(config, alike[0])
            cell_settings.check_epsilon()
            compression_of(cell_settings.compress, cell_settings.heal)
        except ConfigError as error:
            refused.append(f"{alike[0].key}: {error}")
            continue
        done = [] if out is None else [cell for cell in alike if is_done(out, cell)]
        try:
            if len(done) < len(alike):
                protection_of(cell_settings.protect).check_installed()
            cells += alike
        except ConfigError as error:
            cells += done
            refused.append(f"{alike[0].key}: {error}")
    if not cells:
        raise ConfigError(f"matrix: no configuration can run; {refused[0]}")
    return sorted(cells, key=lambda c: (c.protection.epsilon is None, c.seed)), refused


def cell_config(config: Config, cell: MatrixCell) -> Config:
    """Return the settings of one cell: the matrix's settings, overridden by the cell's.

    Raises `ConfigError` if they contradict each other, or cannot be protected as they ask.
    """
    raw = config.model_dump(mode="json")
    raw |= {"name": cell.key, "seeds": [cell.seed]}
    raw["compress"]["remove_ratio"] = cell.remove_ratio
    if cell.compression is not None:
        raw["compress"] |= cell.compression.model_dump(mode="json")
    raw["adapter"]["kind"] = cell.adapter
    fusion, protection = cell.fusion, cell.protection
    raw["fusion"] |= _with_options("rule", fusion.rule, fusion.options, config.fusion.rule)
    raw["protect"] |= _with_options("scheme", protection.scheme, protection.options, config.protect.scheme)
    raw["protect"]["granularity"] = fusion.granularity
    raw["privacy"] |= _privacy(cell.protection)
    # attacks read the transcript in the cell's own folder
    raw["audit"] |= {"record": config.attacks.suite != "none", "folder": None}
    for section, changed in cell.protection.settings.items():
        raw[section] |= changed
    return parse_config(raw)


def _with_options(
    key: str, name: str, options: Mapping[str, Scalar] | None, base_name: str
) -> dict[str, Any]:
    """Return the settings of a swept kind: its name under `key`, and its options.

    `options`: None leaves those of the matrix' settings if these name the same kind, `base_name`.
    """
    if options is None and name == base_name:
        return {}
    return {key: name, "options": dict(options or {})}


def _privacy(protection: SweptProtection) -> dict[str, Any]:
    if protection.epsilon is None:
        # no epsilon is left, or nobody could run the cell's settings alone
        return PrivacyConfig().model_dump(mode="json", include={"unit", "target_epsilon", "max_epsilon"})
    return {"unit": protection.unit, "target_epsilon": protection.epsilon}


def title_of(cell: MatrixCell, config: Config) -> str:
    """Return a configuration's title in the report: protection, ratio, and what else has several values."""
    swept = config.matrix
    protections = [_protection_title(p) for p in swept.protections]
    protection = _apart(_protection_title(cell.protection), cell.protection.name, protections)
    parts = [protection, f"{percent(cell.remove_ratio)}% removed"]
    if cell.compression is not None and len(swept.compressions) > 1:
        compressions = [_compression_title(c) for c in swept.compressions]
        parts.append(_apart(_compression_title(cell.compression), cell.compression.name, compressions))
    parts += [cell.fusion.name] * (len(swept.fusions) > 1)
    parts += [cell.adapter] * (len(swept.adapters) > 1)
    return ", ".join(parts)


def _apart(title: str, name: str, titles: Sequence[str]) -> str:
    """Return a title, with the name in the settings beside it if several have this title."""
    return f"{title} [{name}]" if titles.count(title) > 1 else title


def _protection_title(protection: SweptProtection) -> str:
    title = PROTECTIONS.get(protection.scheme).title
    title = " ".join([title, *(f"{key}={value}" for key, value in (protection.options or {}).items())])
    if protection.epsilon is not None:
        level = "client-level " if protection.unit == "client" else ""
        title += f" + {level}DP {protection.epsilon:g}"
    changed = [f"{s}.{k}={v}" for s, values in protection.settings.items() for k, v in values.items()]
    return f"{title} ({', '.join(changed)})" if changed else title


def _compression_title(compression: SweptCompression) -> str:
    title = COMPRESSIONS.get(compression.kind).title
    return " ".join([title, *(f"{key}={value}" for key, value in compression.options.items())])


def proxy_of(config: Config, cell: MatrixCell) -> PreparedProxy | None:
    """Return the healed proxy that a cell starts from; None without healing."""
    if not config.heal.heals:
        return None
    return PreparedProxy(
        compression="" if cell.compression is None else cell.compression.name,
        remove_ratio=cell.remove_ratio,
        seed=cell.seed,
        config=cell_config(config, cell),
    )


def measure_cell(
    config: Config,
    cell: MatrixCell,
    out: Path,
    *,
    jobs: int | Callable[[], int] = 1,
    progress: Progress | None = None,
) -> None:
    """Run one cell, attack it, and mark it as done.

    A prepared proxy is already healed when the run starts. `jobs`: as in `attack_run`.
    """
    from fedproxy_secure.experiments.run import run

    began = time.perf_counter()
    settings, folder = cell_config(config, cell), out / cell.folder
    proxy = proxy_of(config, cell)
    if proxy is not None:
        RunFolder.resume(
            folder, settings.with_signing_key(None)
        )  # as `run` does, which takes no other folder
        proxy.link_into(out, folder / seed_folder(cell.seed))
    run(settings, folder, resume=True, progress=progress, command=cell.command, in_cell=True)
    if config.attacks.suite != "none":
        attack_run(settings, folder, seed=cell.seed, jobs=jobs, progress=progress)
    RunFolder(path=folder).write_json(CELL_DONE, {"seconds": time.perf_counter() - began})


def is_done(out: Path, cell: MatrixCell) -> bool:
    """Return whether the cell has finished without failing."""
    return (out / cell.folder / CELL_DONE).exists()


def note_failure(place: Path, line: str) -> None:
    """Write the reason of a cell's failure into its folder."""
    RunFolder(path=place).write_json(CELL_FAILED, {"error": line})


def why_failed(place: Path) -> str:
    """Return what `note_failure` wrote, or `did not finish`."""
    try:
        return str(read_json(place / CELL_FAILED)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "did not finish"
