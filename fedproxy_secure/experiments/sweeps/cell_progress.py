"""How much work a cell is, and the line of a whole sweep, which moves while its cells run.

The unit is one record that goes forward through the whole LLM. Cells differ a lot in it: a cell that trains
the LLM is many times one that only measures it.
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
FACTORS = 5  # that a line search tries: at least 3, at most 7
WINDOW = 5  # records that a window of public text takes as long as, with SmolLM2-135M on a CPU


def cell_units(config: Config, cell: Cell, *, tests: int) -> int:
    """Return about how much work a cell of a comparison is, at least 1.

    Args:
        tests: test records of all clients together.
    """
    method = method_of(cell.method)
    size = 1.0 - (cell.remove_ratio or 0.0)  # of the model that is trained, relative to the LLM
    units = tests * (1 + size * method.needs_ratio)  # the owner's model, and the clients' if it is another
    if method.trains:
        units += trained_records(config) * STEP_PASSES * size
    if cell.remove_ratio is not None:
        units += plug_backs(config, method) * plug_back_units(config, remove_ratio=cell.remove_ratio)
    return max(1, round(units))


def stage_units(config: Config, *, tests: int, healed: bool) -> dict[str, float]:
    """Return about how much work a task of each stage of a matrix' cell is, by the stage's name.

    A stage has one task, or one for each client, named `STAGE: CLIENT`. What attacks cost is not known
    beforehand: they count as much as all the rest, as they take about in the demo.

    Args:
        config: the cell's own settings.
        tests: test records of all clients together.
        healed: the cell starts from a proxy that was healed before.
    """
    ratio = config.compress.remove_ratio
    size, each = 1.0 - ratio, tests / len(config.data.clients)
    units = {
        "LLM": each,
        "proxy": size * each,
        "tuned proxy": size * each,
        "fused LLM": each,
        "heal": 0.0 if healed else healing_units(config, remove_ratio=ratio),
        "federate": trained_records(config) * STEP_PASSES * size,
        "align": plug_back_units(config, remove_ratio=ratio),
    }
    if config.attacks.suite != "none":
        units[f"{config.attacks.suite} suite"] = all_units(config, units)
    return units


def all_units(config: Config, units: Mapping[str, float]) -> int:
    """Return how much work all tasks of the stages are together, at least 1."""
    clients = len(config.data.clients)
    return max(1, round(sum(u * (clients if stage in TESTED else 1) for stage, u in units.items())))


def plug_backs(config: Config, method: Method) -> int:
    """Return how many times a method plugs back as the section `plug_back` says."""
    if not method.trains or not method.settings_proxy:
        return 0
    return len(config.data.clients) if method.alone else 1


def healing_units(config: Config, *, remove_ratio: float) -> int:
    """Return about how much work it is to heal a proxy.

    In the fit the proxy's blocks run twice and a regression is summed up: for a window that is about as
    much as in a step.
    """
    windows = (config.heal.fit_windows or 0) + config.heal.steps * config.heal.batch_size
    return round(windows * step_units(remove_ratio=remove_ratio))


def plug_back_units(config: Config, *, remove_ratio: float) -> int:
    """Return about how much work it is to read public text for a factor and to align; 0 without either.

    For each factor the LLM and the proxy go forward. In an alignment so do the LLM, the fused one, and the
    proxy before and after tuning; for each block of the proxy one block of the fused LLM runs twice more,
    and a regression is summed up.
    """
    from fedproxy_secure.fuse.line_search import MOST_WINDOWS

    own, searched = config.plug_back, 0
    if own.scale == "public_text":
        searched = FACTORS * min(MOST_WINDOWS, config.compress.calibration_sequences)
    windows = own.align_windows or 0
    if compression_of(config.compress).own_states:  # the fused LLM is not aligned
        windows = 0
    aligned = windows * (2 + (2 + 2 + 1) * (1 - remove_ratio))
    return round(WINDOW * (searched * (2 - remove_ratio) + aligned))


def step_units(*, remove_ratio: float) -> float:
    """Return about how much work a window is in a step of healing: LLM forward, proxy trained."""
    return WINDOW * (1 + (STEP_PASSES + 1) * (1 - remove_ratio))


def trained_records(config: Config) -> int:
    """Return how many records every method trains on, repeats included."""
    return trained_steps(config) * config.local.batch_size


@dataclass(kw_only=True)
class Overall:
    """The line of a whole sweep, which counts `PARTS` of all the work, and a line for each piece that runs.

    Args:
        shown: where lines are shown.
        name: of the sweep's line.
        planned: the units of every piece that is left, by name.
    """

    shown: Progress
    name: str
    planned: Mapping[str, int]
    _counted: dict[str, int] = field(default_factory=dict)
    _parts: int = 0
    _ended: int = 0

    def begin(self) -> None:
        """Start the sweep's line, at no part of the work that is left; call it before a piece begins.

        Cells that were finished before are not counted, so that they do not skew the time left.
        """
        self.shown.start(self.name, PARTS)

    def of(self, piece: str, *, hidden: frozenset[str] = frozenset()) -> Progress:
        """Return the progress of a piece: what it does is shown under its name and counted in the whole.

        `hidden`: tasks that are not shown.
        """
        return Named(shown=self.shown, name=piece, hidden=hidden, on_work=partial(self._count, piece))

    def ended(self, piece: str) -> None:
        """Count a piece as a whole; its plan was an estimate."""
        self._ended += 1
        note = f"{self._ended} of {len(self.planned)} done, last {piece}"
        self._count(piece, self.planned[piece], note=note)

    def done(self) -> None:
        """End the line."""
        self.shown.done(self.name)

    def _count(self, piece: str, units: int, *, note: str = "") -> None:
        counted = self._counted.get(piece, 0) + units
        self._counted[piece] = min(counted, self.planned[piece])  # a piece is never more than its plan
        parts = PARTS * sum(self._counted.values()) // sum(self.planned.values()) - self._parts
        self._parts += parts
        if parts or note:
            self.shown.advance(self.name, parts, note)
