"""The grid of the attack benchmark: its worlds, its cells, and its version.

There are two worlds. In `coded`, clients learn the answers to short records; in `notes` they learn whole
texts, and models remember details of these. Each world has a base cell under masking. Other cells differ
from it in the protection, the adapter, the optimiser, or the number of clients. Last come rounds of one
step of SGD on 4 records, as in the literature, with masking and without protection.

A change of this file, or of a setting that cells share, gives another benchmark id. `VERSION` grows with
each change that is made on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from fedproxy_secure.config import AdapterKind, Config, parse_config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.nearest import nearest

VERSION = 2
SECONDS = 120.0  # the most that one attack may take from one view, controls included
SEED = 0  # of every run, and of the attacks' randomness
PASSIVE = ("server", "client")
EVERYBODY = (*PASSIVE, "active_server", "server_with_clients", "api_user")


@dataclass(frozen=True, kw_only=True)
class World:
    """Tasks of the embedded world, and the common settings of all cells with these tasks.

    Args:
        tasks: the tasks; clients take them in turn.
        records: training records of one client, no two clients' the same; half of them are set aside.
        test_records: test records of one client.
        canaries: how often made-up secrets are repeated in a client's training records.
        rounds: rounds of the federation.
        rank: rank of adapters; their alpha is twice that.
        learning_rates: by optimiser.
    """

    tasks: tuple[str, ...]
    records: int
    test_records: int
    canaries: tuple[int, ...]
    rounds: int
    rank: int
    learning_rates: Mapping[str, float]

    def clients(self, count: int) -> list[dict[str, Any]]:
        """Return the settings of `count` clients, which take parts of the tasks in turn."""
        settings = []
        for number in range(count):
            task, part = self.tasks[number % len(self.tasks)], number // len(self.tasks)
            settings.append(
                {
                    "name": f"{task}-{part}",
                    "task": task,
                    "train_split": f"train[{part * self.records}:{(part + 1) * self.records}]",
                    "test_records": self.test_records,
                }
            )
        return settings


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One configuration of the grid.

    Args:
        world: name of its world.
        adapter, optimizer: of the clients.
        steps, batch: steps of a client in a round, and records of a step.
        clients: number of clients, all of which take part in every round.
        protection: how updates travel.
        epsilon: of record-level differential privacy over all rounds; None: without.
        views: names of the threat models whose views are attacked.
        quick: whether the quick part of the grid has it.
    """

    world: str
    adapter: AdapterKind = "lora"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    steps: int
    batch: int
    clients: int = 4
    protection: Literal["unsafe_plaintext", "masking"] = "masking"
    epsilon: float | None = None
    views: tuple[str, ...] = PASSIVE
    quick: bool = False

    @property
    def name(self) -> str:
        """The name of the cell: its place on every axis."""
        private = "" if self.epsilon is None else f"-dp{self.epsilon:g}"
        scheme = self.protection.removeprefix("unsafe_") + private
        work = f"{self.optimizer}-{self.steps}x{self.batch}"
        return f"{self.world}-{self.adapter}-{work}-{self.clients}clients-{scheme}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of a benchmark, and the worlds that they name."""

    version: int
    worlds: Mapping[str, World]
    cells: tuple[GridCell, ...]


def config_of(grid: Grid, cell: GridCell, *, model: str) -> Config:
    """Return the settings of a cell's run, on the LLM at the path `model`.

    Raises `ConfigError` if they contradict each other.
    """
    world = grid.worlds[cell.world]
    private = {
        "unit": "record",
        "target_epsilon": cell.epsilon,
        "clip_norm": 0.5,
        "randomness": "unsafe_simulated",  # a repeated benchmark has the same noise
    }
    return parse_config(
        {
            "name": cell.name,
            "seeds": [SEED],
            "model": {"path": model, "dtype": "float32"},
            "data": {"clients": world.clients(cell.clients)},
            "compress": {"remove_ratio": 0.5},
            "adapter": {"kind": cell.adapter, "rank": world.rank, "alpha": 2 * world.rank},
            "local": {
                "optimizer": cell.optimizer,
                "steps": cell.steps,
                "batch_size": cell.batch,
                "learning_rate": world.learning_rates[cell.optimizer],
            },
            "fusion": {"rule": "fedavg"},
            "federate": {"rounds": world.rounds},
            "protect": {"scheme": cell.protection},
            "privacy": {"unit": "none"} if cell.epsilon is None else private,
            "audit": {"record": True, "holdout": 0.5, "canaries": list(world.canaries)},
            "attacks": {"suite": "none"},
            "track": [],
        }
    )


def chosen(grid: Grid, *, quick: bool = False, patterns: Sequence[str] = ()) -> tuple[GridCell, ...]:
    """Return the requested cells, in the grid's order.

    Args:
        grid: the grid.
        quick: whether only the quick part of the grid is requested.
        patterns: names of cells, in which `*` stands for any text; empty: all.

    Raises `ConfigError` for a pattern that names no cell, with the nearest name.
    """
    names = [cell.name for cell in grid.cells]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"--cells {pattern}: names no cell; {nearest(pattern, names)}")
    cells = tuple(
        cell
        for cell in grid.cells
        if (cell.quick or not quick)
        and (not patterns or any(fnmatchcase(cell.name, pattern) for pattern in patterns))
    )
    if not cells:
        raise ConfigError(
            f"--quick --cells {' --cells '.join(patterns)}: no cell matches both; leave out one option"
        )
    return cells


def _around(
    *,
    world: str,
    steps: int,
    batch: int,
    views: tuple[str, ...] = PASSIVE,
    quick: Literal["base", "once"],
) -> Iterable[GridCell]:
    """Yield the base cell of a world, attacked from `views`, and those that differ from it.

    `quick`: `base` or `once`, the cell that the quick part has: the base cell, or the unprotected round of
    one step.
    """
    base: dict[str, Any] = {"world": world, "steps": steps, "batch": batch}
    once: dict[str, Any] = {"world": world, "optimizer": "sgd", "steps": 1, "batch": 4}
    yield GridCell(**base, views=views, quick=quick == "base")
    yield GridCell(**base, protection="unsafe_plaintext")
    yield GridCell(**base, epsilon=8.0)
    yield GridCell(**base, adapter="ffa")
    yield GridCell(**base, adapter="core")
    yield GridCell(**base, optimizer="sgd")
    yield GridCell(**base, clients=16)
    yield GridCell(**once)
    yield GridCell(**once, protection="unsafe_plaintext", quick=quick == "once")


GRID = Grid(
    version=VERSION,
    worlds={
        "coded": World(
            tasks=("clinic", "bank", "insurer", "council"),
            records=200,
            test_records=50,
            canaries=(1, 4, 16),
            rounds=4,
            rank=16,
            learning_rates={"adamw": 3e-3, "sgd": 0.1},
        ),
        "notes": World(
            tasks=("discharge_note", "bank_letter", "claim_letter", "petition"),
            records=96,  # four clients of a task then have all of its 384 names
            test_records=50,
            canaries=(1, 4),
            rounds=4,
            rank=64,
            learning_rates={"adamw": 3e-3, "sgd": 0.1},
        ),
    },
    cells=(
        *_around(world="coded", steps=10, batch=16, views=EVERYBODY, quick="once"),
        *_around(world="notes", steps=40, batch=20, quick="base"),
    ),
)
