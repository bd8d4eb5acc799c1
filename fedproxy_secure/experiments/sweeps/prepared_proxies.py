"""Healed proxies of a comparison or a matrix, each prepared once for all cells that start from it.

proxies/NAME/healing.safetensors   the healed weights, until no missing cell needs them
proxies/NAME/proxy.json            in a comparison the proxy's fidelity and how healing went; the cells of a
                                   matrix record this themselves

Healing takes minutes, and a proxy depends only on compression, remove ratio and seed. Without healing
nothing is prepared: the proxy's blocks are exact copies, which every cell builds quickly. In a comparison
the first cell that has built the proxy then writes its record.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedproxy_secure.config import Config
from fedproxy_secure.errors import DataError, FedProxyError, RunFolderError
from fedproxy_secure.experiments.sweeps.cell_progress import healing_units
from fedproxy_secure.experiments.sweeps.method_cells import Origin, one_thread
from fedproxy_secure.report.measured.proxies import fidelity_of
from fedproxy_secure.runtime.artifacts import RunFolder
from fedproxy_secure.runtime.files.names import HEALING, PROXIES, PROXY_RECORD
from fedproxy_secure.runtime.files.whole import replacing, unfinished
from fedproxy_secure.runtime.progress import WORK, NoProgress, Progress, Weighed
from fedproxy_secure.runtime.untrusted import read_json

if TYPE_CHECKING:
    from fedproxy_secure.compress.proxy import Proxy
    from fedproxy_secure.experiments.stages import Materials

log = logging.getLogger(__name__)

VERSION = 2  # of how blocks are chosen and fidelity is measured; a record of another one does not count
BEFORE = "before_healing"
HEALING_NUMBERS = ("kl_before", "kl_after", "tokens", "seconds")  # numbers of healing that a report shows


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
        """The name of its folder."""
        return f"{self.compression}{'-' * bool(self.compression)}{self.remove_ratio:g}-seed{self.seed}"

    @property
    def title(self) -> str:
        """Its name in lines of progress."""
        return f"proxy {self.name}"

    def folder(self, out: Path) -> Path:
        """Return its folder below that of the comparison or matrix."""
        return out / PROXIES / self.name

    def prepare(
        self, out: Path, *, progress: Progress | None = None, measured: bool = False
    ) -> Mapping[str, Any]:
        """Make and write the proxy on one thread; go on with an interrupted one or load a finished one.

        Returns the proxy's details as plain values, and if `measured` its fidelity before and after
        healing. Raises the errors of `exact_proxy` and `heal_proxy`.
        """
        from fedproxy_secure.compress.fidelity import fidelity_record
        from fedproxy_secure.experiments.stages import exact_proxy, heal_proxy, prepare

        display = progress or NoProgress()
        fidelity: dict[str, Any] = {}
        display.start(WORK, 0)
        units = healing_units(self.config, remove_ratio=self.remove_ratio)
        with one_thread():
            materials = prepare(self.config, seed=self.seed)
            proxy = exact_proxy(self.config, materials, seed=self.seed, remove_ratio=self.remove_ratio)
            if measured:
                fidelity = {BEFORE: fidelity_record(materials.llm, proxy, materials.fidelity_windows)}
            proxy = heal_proxy(
                self.config,
                materials,
                proxy,
                seed=self.seed,
                folder=self.folder(out),
                progress=Weighed(shown=display, units=units),
            )
            if measured:
                fidelity |= fidelity_record(materials.llm, proxy, materials.fidelity_windows)
        return {**proxy.details, **fidelity}

    def measure(self, out: Path, origin: Origin, materials: Materials, proxy: Proxy) -> None:
        """Write the fidelity of the untuned proxy, unless it is on disk already.

        If it cannot be measured or written, a warning is logged and the cell goes on.
        """
        from fedproxy_secure.compress.fidelity import fidelity_record

        try:
            record = self.read_record(out)
        except RunFolderError:  # a damaged record is replaced
            record = None
        if record is not None and made_with(record, origin):
            return
        try:
            fidelity = fidelity_record(materials.llm, proxy, materials.fidelity_windows)
            self.write_record(out, {**proxy.details, **fidelity}, origin)
        except FedProxyError as error:  # a broken proxy has no finite perplexity
            log.warning("proxy %s: how like the LLM it is was not measured: %s", self.name, error)

    def write_record(self, out: Path, details: Mapping[str, Any], origin: Origin) -> None:
        """Write the proxy's details and origin, which stay after its weights are deleted."""
        record = {"version": VERSION, "remove_ratio": self.remove_ratio, "seed": self.seed, **details}
        RunFolder(path=self.folder(out)).write_json(PROXY_RECORD, {**record, "made_with": asdict(origin)})

    def read_record(self, out: Path) -> dict[str, Any] | None:
        """Read the record that `write_record` wrote; None if there is none.

        Raises `RunFolderError` if it is damaged.
        """
        path = self.folder(out) / PROXY_RECORD
        if not path.exists():
            return None
        try:
            record = read_json(path)
            if (record["remove_ratio"], record["seed"]) != (self.remove_ratio, self.seed):
                raise ValueError("is the record of another proxy")
            for part in (p for p in (record, record.get(BEFORE)) if p):
                fidelity_of({self.seed: part}, self.name)  # raises if unreadable
            for key in HEALING_NUMBERS if "healing" in record else ():
                float(record["healing"][key])
            return dict(record)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, DataError) as error:
            raise RunFolderError(f"{path}: is damaged: {error}; delete it") from error

    def link_into(self, out: Path, folder: Path) -> None:
        """Link the healed weights into `folder`, or copy them if the file system has no hard links."""
        source, place = self.folder(out) / HEALING, folder / HEALING
        if place.exists() or not source.exists():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, place)  # safe: the file is replaced as a whole, never written in place
            except OSError:
                with replacing(place, private=True) as partial:
                    shutil.copyfile(source, partial)
        except OSError as error:
            raise RunFolderError(f"{place}: cannot be written: {error.strerror}") from error


def made_with(record: Mapping[str, Any], origin: Origin) -> bool:
    """Return whether a proxy's record is of `VERSION` and has the settings, LLM and text of `origin`."""
    source = record.get("made_with")
    keys = ("settings", "llm", "public_text")  # a proxy depends on no records
    if record.get("version") != VERSION or not isinstance(source, Mapping):
        return False
    return all(source.get(key) == getattr(origin, key) for key in keys)


def records_of(
    config: Config, out: Path, ratios: Iterable[float], origin: Origin
) -> dict[float, dict[int, dict[str, Any]]]:
    """Read the records of a comparison's proxies, by remove ratio and seed.

    Records of other settings, LLM or public text than `origin`, that of cells with a proxy, and of another
    `VERSION` are left out.

    Raises `RunFolderError` for a damaged record.
    """
    records: dict[float, dict[int, dict[str, Any]]] = {}
    for ratio in ratios:
        of_ratio = records.setdefault(ratio, {})
        for seed in config.seeds:
            proxy = PreparedProxy(remove_ratio=ratio, seed=seed, config=config)
            record = proxy.read_record(out)
            if record is not None and made_with(record, origin):
                of_ratio[seed] = record
    return records


def forget_weights(out: Path, needed: Collection[PreparedProxy]) -> None:
    """Delete the weights of all proxies below `out` except those of `needed`; records stay."""
    needed_folders = {proxy.folder(out) for proxy in needed}
    with suppress(OSError):  # unneeded weights only take disk space
        for folder in sorted((out / PROXIES).glob("*/")):
            if folder not in needed_folders:
                for file in (folder / HEALING, unfinished(folder / HEALING)):
                    file.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
        if not needed_folders and not any((out / PROXIES).iterdir()):
            (out / PROXIES).rmdir()
