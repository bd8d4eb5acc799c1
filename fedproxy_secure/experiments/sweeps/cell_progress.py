"""How much work a cell is, and the progress line of a whole sweep, which moves while its cells run.

The unit is the forward pass of one record through the whole LLM. Cells differ a lot: one that trains the
LLM takes many times the work of one that only evaluates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from fedproxy_secure.compress.base import compression_of
from fedproxy_secure.config import Config
from fedproxy_secure.experiments.method import STEP_PASSES, Method, method_of, trained_steps
from fedproxy_secure.experiments.sweeps.method_cells import Cell
from fedproxy_secure.runtime.progress import Named, Progress

PARTS = 100_000
TESTED = ("LLM", "proxy", "tuned proxy", "fused LLM")  # stages with a task for each client
FACTORS = 5  # factors that a line search tries, on average: at least 3, at most 7
WINDOW = 5  # duration of a window of public text, in records, with SmolLM2-135M on a CPU


def cell_units(config: Config, cell: Cell, *, tests: int) -> int:
    """Return the estimated work of a comparison's cell, at least 1.

    Args:
        tests: test records of all clients together.
    """
    method = method_of(cell.method)
    size = 1.0 - (cell.remove_ratio or 0.0)  # size of the trained model, relative to the LLM
    units = tests * (1 + size * method.needs_ratio)  # the owner's model, and the clients' if it is another
    if method.trains:
        units += trained_records(config) * STEP_PASSES * size
    if cell.remove_ratio is not None:
        units += plug_backs(config, method) * plug_back_units(config, remove_ratio=cell.remove_ratio)
    return max(1, round(units))


def stage_units(config: Config, *, tests: int, healed: bool) -> dict[str, float]:
    """Return the estimated work of one task of each stage of a matrix's cell, by the stage's name.

    A stage has one task, or one for each client, named `STAGE: CLIENT`. The cost of attacks is not known
    beforehand. They count as much as all other stages together, which is about right for the demo.

    Args:
        config: the cell's own settings.
        tests: test records of all clients together.
        healed: whether the cell starts from a proxy that was healed before.
    """
    ratio = config.compress.remove_ratio
    size, client_tests = 1.0 - ratio, tests / len(config.data.clients)
    units = {
        "LLM": client_tests,
        "proxy": size * client_tests,
        "tuned proxy": size * client_tests,
        "fused LLM": client_tests,
        "heal": 0.0 if healed else healing_units(config, remove_ratio=ratio),
        "federate": trained_records(config) * STEP_PASSES * size,
        "align": plug_back_units(config, remove_ratio=ratio),
    }
    if config.attacks.suite != "none":
        units[f"{config.attacks.suite} suite"] = all_units(config, units)
    return units


def all_units(config: Config, units: Mapping[str, float]) -> int:
    """Return the work of all tasks of the stages together, at least 1."""
    clients = len(config.data.clients)
    return max(1, round(sum(u * (clients if stage in TESTED else 1) for stage, u in units.items())))


def plug_backs(config: Config, method: Method) -> int:
    """Return how many times a method plugs back as the section `plug_back` says."""
    if not method.trains or not method.settings_proxy:
        return 0
    return len(config.data.clients) if method.alone else 1


def healing_units(config: Config, *, remove_ratio: float) -> int:
    """Return the estimated work of healing a proxy.

    The fit runs the proxy's blocks twice and sums up a regression, which for a window is about as much work
    as a step.
    """
    windows = (config.heal.fit_windows or 0) + config.heal.steps * config.heal.batch_size
    return round(windows * step_units(remove_ratio=remove_ratio))


def plug_back_units(config: Config, *, remove_ratio: float) -> int:
    """Return the estimated work of the line search for a factor and of alignment; 0 without either.

    Each factor takes a forward pass of the LLM and of the proxy. An alignment takes one of the LLM, of the
    fused LLM, and of the proxy before and after tuning. Besides, for each block of the proxy, one block of
    the fused LLM runs twice more and a regression is summed up.
    """
    from fedproxy_secure.fuse.line_search import MOST_WINDOWS

    settings, searched = config.plug_back, 0
    if settings.scale == "public_text":
        searched = FACTORS * min(MOST_WINDOWS, config.compress.calibration_sequences)
    windows = settings.align_windows or 0
    if compression_of(config.compress).own_states:  # the fused LLM is not aligned
        windows = 0
    aligned = windows * (2 + (2 + 2 + 1) * (1 - remove_ratio))
    return round(WINDOW * (searched * (2 - remove_ratio) + aligned))


def step_units(*, remove_ratio: float) -> float:
    """Return the estimated work of a window in a step of healing: LLM forward, proxy trained."""
    return WINDOW * (1 + (STEP_PASSES + 1) * (1 - remove_ratio))


def trained_records(config: Config) -> int:
    """Return how many records every method trains on, repeats included."""
    return trained_steps(config) * config.local.batch_size


@dataclass(kw_only=True)
class Overall:
    """The line of a whole sweep, which counts `PARTS` of all the work, and a line for each running piece.

    Args:
        shown: where lines are shown.
        name: the name of the sweep's line.
        planned: the units of every remaining piece, by name.
    """

    shown: Progress
    name: str
    planned: Mapping[str, int]
    _counted: dict[str, int] = field(default_factory=dict)
    _parts: int = 0
    _ended: int = 0

    def begin(self) -> None:
        """Start the sweep's line at 0 parts of the remaining work; call it before any piece begins.

        Cells that were finished before are not counted, so that they do not skew the time left.
        """
        self.shown.start(self.name, PARTS)

    def of(self, piece: str, *, hidden: frozenset[str] = frozenset()) -> Progress:
        """Return the progress of a piece, which is shown under its name and counted in the sweep's line.

        `hidden`: tasks that are not shown.
        """
        return Named(shown=self.shown, name=piece, hidden=hidden, on_work=partial(self._count, piece))

    def ended(self, piece: str) -> None:
        """Count all of a piece's planned units, because the plan was an estimate."""
        self._ended += 1
        note = f"{self._ended} of {len(self.planned)} done, last {piece}"
        self._count(piece, self.planned[piece], note=note)

    def done(self) -> None:
        """End the line."""
        self.shown.done(self.name)

    def _count(self, piece: str, units: int, *, note: str = "") -> None:
        counted = self._counted.get(piece, 0) + units
        self._counted[piece] = min(counted, self.planned[piece])  # at most as planned
        parts = PARTS * sum(self._counted.values()) // sum(self.planned.values()) - self._parts
        self._parts += parts
        if parts or note:
            self.shown.advance(self.name, parts, note)
