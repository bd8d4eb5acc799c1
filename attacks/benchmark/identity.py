"""The benchmark id: what two results must share before their numbers are compared.

It is a digest of the grid's version and the settings of all its cells, of the worlds' records and public
text, of the LLM's files, and of how the attacks ran. Cells and attacks that a call leaves out do not change
it, nor does the order of cells, where the model lies, or the output folder. Versions of packages and of
attacks are not in it: the benchmark compares them, and the results name them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from attacks.benchmark.grid import SECONDS, SEED, Grid, config_of
from fedproxy_secure.config import Config
from fedproxy_secure.config.sections import NO_EFFECT, OWN, SWEEP
from fedproxy_secure.config.settings import without_nulls
from fedproxy_secure.errors import ModelError
from fedproxy_secure.evidence.finding import Profile

DIGITS = 12  # of an id, hex
STORIES = 256  # public stories that the world's digest reads
_NOT_OF_A_RUN = ("compare",)  # sections that no run reads


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The parts of a benchmark id.

    Args:
        version: version of the grid.
        settings_sha256: digest of the settings of all cells and of the views that are attacked, hex.
        world_sha256: digest of all records and of the public text, hex.
        model_sha256: digest of the LLM's files, hex.
        profile: how much the attacks spend.
        seconds: the most that one attack may take from one view.
        seed: seed of the runs and of the attacks.
    """

    version: int
    settings_sha256: str
    world_sha256: str
    model_sha256: str
    profile: Profile
    seconds: float
    seed: int

    @property
    def id(self) -> str:
        """The benchmark id: 12 hex digits."""
        return self.sha256()[:DIGITS]

    def sha256(self) -> str:
        """Return the hex digest of all parts; an output folder belongs to one."""
        return _digest(asdict(self))

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the parts as plain values, as an output folder keeps them; `mode` changes nothing."""
        return asdict(self)

    def counted(self) -> dict[str, Any]:
        """Return all parts as plain values: each of them can change a number."""
        return asdict(self)

    def other_parts(self, other: Identity) -> list[str]:
        """Return the names of the parts in which two identities differ."""
        own_parts, other_values = asdict(self), asdict(other)
        return [name.removesuffix("_sha256") for name in own_parts if own_parts[name] != other_values[name]]


def identity_of(grid: Grid, *, model: str, profile: Profile) -> Identity:
    """Return the identity of a grid on the LLM at the path `model`.

    Raises `ModelError` for a model without files that can be read, `ConfigError` or `DataError` for a cell
    that cannot run.
    """
    configs = {cell.name: config_of(grid, cell, model=model) for cell in grid.cells}
    views = {cell.name: list(cell.views) for cell in grid.cells}
    settings = {name: [run_settings(config), views[name]] for name, config in configs.items()}
    return Identity(
        version=grid.version,
        settings_sha256=_digest(settings),
        world_sha256=world_sha256(configs.values()),
        model_sha256=model_sha256(model),
        profile=profile,
        seconds=SECONDS,
        seed=SEED,
    )


def run_settings(config: Config) -> Any:
    """Return the settings that can change a cell's numbers, without the model's path, as plain values.

    Settings that are None are left out, and those marked `LATER` that have their default, so that a setting
    which a later version adds changes no id.
    """
    raw = config.without(NO_EFFECT, OWN, SWEEP, said_only=True)
    raw["model"].pop("path")
    return without_nulls({name: value for name, value in raw.items() if name not in _NOT_OF_A_RUN})


def world_sha256(configs: Iterable[Config]) -> str:
    """Return the hex digest of all records that clients of these settings have, and of the public text.

    The digest does not depend on the order of the settings, nor on how often they name a client.
    """
    from fedproxy_secure.data.tasks import load_task
    from fedproxy_secure.data.worlds.demo_tasks import PUBLIC_SEED
    from fedproxy_secure.world.stories import stories

    parts: dict[str, str] = {"public text": _digest(list(islice(stories(PUBLIC_SEED), STORIES)))}
    for config in configs:
        for client in config.data.clients:
            key = client.model_dump_json(exclude={"part"} if client.part is None else None)
            if key not in parts:
                task = load_task(client, root=config.data.root)
                parts[key] = _digest([[asdict(r) for r in part] for part in (task.train, task.test)])
    return _digest(parts)


def model_sha256(path: str) -> str:
    """Return the digest of an LLM's files, hex, as `llm_sha256` takes it.

    Files are read as they are on the disk, so the digest depends on no library's version, nor on the names
    of folders.

    Raises `ModelError` in one line for a path that is no GGUF file and no folder with weights.
    """
    from fedproxy_secure.models.llm import llm_folder, llm_sha256
    from fedproxy_secure.models.packaged import PACKAGED

    one_file = path in PACKAGED or path.lower().endswith(".gguf")
    if not one_file and not any(llm_folder(path).glob("*.safetensors")):
        raise ModelError(
            f"--model {path}: has no weights; must be demo, smollm2, a .gguf file, or a folder with "
            ".safetensors files"
        )
    return llm_sha256(path)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
