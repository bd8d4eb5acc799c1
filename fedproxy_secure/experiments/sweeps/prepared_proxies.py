"""Healed proxies of a comparison or a matrix, each made once and used by all cells that start from it.

proxies/NAME/healing.safetensors   the healed weights, until no missing cell needs them
proxies/NAME/proxy.json            how healing went, in a comparison; a matrix's cells say it themselves

Healing takes minutes, and a proxy depends on compression, remove ratio and seed alone. Without healing
nothing is prepared: the proxy's blocks are exact copies, which every cell makes at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedproxy_secure.config import Config
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.experiments.sweeps.cell_progress import healing_units
from fedproxy_secure.experiments.sweeps.method_cells import one_thread
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.whole import replacing, unfinished
from fedproxy_secure.runtime.progress import WORK, NoProgress, Progress, Weighed

WEIGHTS, LEFT_OVER = "healing.safetensors", "healing.partial"  # as `compress.healing.state` has them
PROXIES = "proxies"
RECORD = "proxy.json"


@dataclass(frozen=True, kw_only=True)
class PreparedProxy:
    """A healed proxy that several cells start from.

    Args:
        compression: its name in a matrix that sweeps compressions, else "".
        config: the settings that make it; not compared.
    """

    compression: str = ""
    remove_ratio: float
    seed: int
    config: Config = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of its folder, and of its line of progress."""
        return f"{self.compression}{'-' * bool(self.compression)}{self.remove_ratio:g}-seed{self.seed}"

    def folder(self, out: Path) -> Path:
        """Return its folder below that of the comparison or matrix."""
        return out / PROXIES / self.name

    def prepare(self, out: Path, *, progress: Progress | None = None) -> Mapping[str, Any]:
        """Make it on one thread and write it, go on with one that was interrupted, or find it finished.

        Returns how it came about, as plain values. Raises what `make_proxy` raises.
        """
        from fedproxy_secure.experiments.stages import make_proxy, prepare

        shown = progress or NoProgress()
        shown.start(WORK, 0)
        units = healing_units(self.config, remove_ratio=self.remove_ratio)
        with one_thread():
            proxy = make_proxy(
                self.config,
                prepare(self.config, seed=self.seed),
                seed=self.seed,
                remove_ratio=self.remove_ratio,
                folder=self.folder(out),
                progress=Weighed(shown=shown, units=units),
            )
        return proxy.details

    def write_record(self, out: Path, details: Mapping[str, Any]) -> None:
        """Write how it came about, which stays when its weights go."""
        record = {"remove_ratio": self.remove_ratio, "seed": self.seed, **details}
        RunFolder(path=self.folder(out)).write_json(RECORD, record)

    def link_into(self, out: Path, folder: Path) -> None:
        """Let `folder` have the healed weights too, on the same disk space where the file system can."""
        source, place = self.folder(out) / WEIGHTS, folder / WEIGHTS
        if place.exists() or not source.exists():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, place)  # safe: the file is replaced whole, never written in place
            except OSError:
                with replacing(place, private=True) as partial:
                    shutil.copyfile(source, partial)
        except OSError as error:
            raise RunFolderError(f"{place}: cannot be written: {error.strerror}") from error


def forget_weights(out: Path, needed: Collection[PreparedProxy]) -> None:
    """Delete the weights of all proxies below `out` but those of `needed`; records stay."""
    kept = {proxy.folder(out) for proxy in needed}
    with suppress(OSError):  # they only take room
        for folder in sorted((out / PROXIES).glob("*/")):
            if folder not in kept:
                for file in (folder / WEIGHTS, unfinished(folder / WEIGHTS), folder / LEFT_OVER):
                    file.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
        if not kept and not any((out / PROXIES).iterdir()):
            (out / PROXIES).rmdir()
