"""Healed proxies of a comparison or a matrix, each made once and used by all cells that start from it.

proxies/NAME/healing.safetensors   the healed weights, until no missing cell needs them
proxies/NAME/proxy.json            in a comparison how like the LLM it is, and how healing went; a matrix's
                                   cells say it themselves

Healing takes minutes, and a proxy depends on compression, remove ratio and seed alone. Without healing
nothing is prepared: the proxy's blocks are exact copies, which every cell makes at once. Of a comparison
the first cell that has made one then writes the record.
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

BEFORE = "before_healing"
HEALING_NUMBERS = ("kl_before", "kl_after", "tokens", "seconds")  # what a report says of how healing went


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
        """What it is called in lines of progress."""
        return f"proxy {self.name}"

    def folder(self, out: Path) -> Path:
        """Return its folder below that of the comparison or matrix."""
        return out / PROXIES / self.name

    def prepare(
        self, out: Path, *, progress: Progress | None = None, measured: bool = False
    ) -> Mapping[str, Any]:
        """Make it on one thread and write it, go on with one that was interrupted, or find it finished.

        Returns how it came about, as plain values, and if `measured` how like the LLM it is before and
        after healing. Raises what `exact_proxy` and `heal_proxy` raise.
        """
        from fedproxy_secure.compress.fidelity import fidelity_record
        from fedproxy_secure.experiments.stages import exact_proxy, heal_proxy, prepare

        shown = progress or NoProgress()
        found: dict[str, Any] = {}
        shown.start(WORK, 0)
        units = healing_units(self.config, remove_ratio=self.remove_ratio)
        with one_thread():
            materials = prepare(self.config, seed=self.seed)
            proxy = exact_proxy(self.config, materials, seed=self.seed, remove_ratio=self.remove_ratio)
            if measured:
                found = {BEFORE: fidelity_record(materials.llm, proxy, materials.fidelity_windows)}
            proxy = heal_proxy(
                self.config,
                materials,
                proxy,
                seed=self.seed,
                folder=self.folder(out),
                progress=Weighed(shown=shown, units=units),
            )
            if measured:
                found |= fidelity_record(materials.llm, proxy, materials.fidelity_windows)
        return {**proxy.details, **found}

    def measure(self, out: Path, origin: Origin, materials: Materials, proxy: Proxy) -> None:
        """Write how like the LLM it is, untuned, unless that is written.

        A cell is not lost by this: what cannot be measured or written gives a warning.
        """
        from fedproxy_secure.compress.fidelity import fidelity_record

        try:
            record = self.read_record(out)
        except RunFolderError:  # damaged: made again
            record = None
        if record is not None and made_with(record, origin):
            return
        try:
            found = fidelity_record(materials.llm, proxy, materials.fidelity_windows)
            self.write_record(out, {**proxy.details, **found}, origin)
        except FedProxyError as error:  # a broken proxy has no finite perplexity
            log.warning("proxy %s: how like the LLM it is was not measured: %s", self.name, error)

    def write_record(self, out: Path, details: Mapping[str, Any], origin: Origin) -> None:
        """Write how it came about, which stays when its weights go, and what it was made with."""
        record = {"remove_ratio": self.remove_ratio, "seed": self.seed, **details}
        RunFolder(path=self.folder(out)).write_json(PROXY_RECORD, {**record, "made_with": asdict(origin)})

    def read_record(self, out: Path) -> dict[str, Any] | None:
        """Read what `write_record` wrote; None if there is none.

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
                fidelity_of({self.seed: part}, self.name)  # that it can be read
            for key in HEALING_NUMBERS if "healing" in record else ():
                float(record["healing"][key])
            return dict(record)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, DataError) as error:
            raise RunFolderError(f"{path}: is damaged: {error}; delete it") from error

    def link_into(self, out: Path, folder: Path) -> None:
        """Let `folder` have the healed weights too, on the same disk space where the file system can."""
        source, place = self.folder(out) / HEALING, folder / HEALING
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


def made_with(record: Mapping[str, Any], origin: Origin) -> bool:
    """Return whether a proxy's record says that it was made with what `origin` names."""
    made = record.get("made_with")
    keys = ("settings", "llm", "public_text")  # a proxy sees no records
    return isinstance(made, Mapping) and all(made.get(key) == getattr(origin, key) for key in keys)


def records_of(
    config: Config, out: Path, ratios: Iterable[float], origin: Origin
) -> dict[float, dict[int, dict[str, Any]]]:
    """Read the records of a comparison's proxies by remove ratio and seed: those of these settings alone.

    `origin`: what cells with a proxy were made with; a proxy's record is of the same settings, LLM and
    public text, or left out.
    Raises `RunFolderError` for a record that is damaged.
    """
    found: dict[float, dict[int, dict[str, Any]]] = {}
    for ratio in ratios:
        of_ratio = found.setdefault(ratio, {})
        for seed in config.seeds:
            proxy = PreparedProxy(remove_ratio=ratio, seed=seed, config=config)
            record = proxy.read_record(out)
            if record is not None and made_with(record, origin):
                of_ratio[seed] = record
    return found


def forget_weights(out: Path, needed: Collection[PreparedProxy]) -> None:
    """Delete the weights of all proxies below `out` but those of `needed`; records stay."""
    kept = {proxy.folder(out) for proxy in needed}
    with suppress(OSError):  # they only take room
        for folder in sorted((out / PROXIES).glob("*/")):
            if folder not in kept:
                for file in (folder / HEALING, unfinished(folder / HEALING)):
                    file.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
        if not kept and not any((out / PROXIES).iterdir()):
            (out / PROXIES).rmdir()
