"""What a method is: one way to a tuned model that `compare` runs beside the others.

`compare.methods` names them. Subclass `Method` and register an instance under the entry point group
`fedproxy_secure.methods`. `examples/own_method.py` is a whole one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedproxy_secure.config import Config
from fedproxy_secure.config.kinds import METHODS
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.results import MethodResult
from fedproxy_secure.protect.base import protection_of

if TYPE_CHECKING:
    from fedproxy_secure.experiments.inputs import Inputs

STEP_PASSES = 2.5  # forward passes that a training step on a record takes as long as; measured on a CPU


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to a tuned model; a row of a comparison.

    Every method takes the same records, the same number of training sequences and the same adapter
    settings: `rounds x steps x batch_size` sequences for each client that a round asks; those that train
    without a federation see as many in all (`trained_steps`), and the same share of every task.

    Args:
        name: in settings, on reports and in file names.
        title: for people, in lists.
        needs_ratio: whether it works on a proxy, and so runs once for each remove ratio.
        settings_proxy: whether that is the settings' proxy, `Inputs.proxy`. If that is healed, a comparison
            makes it once for all cells that start from it.
        trains: whether it trains anything.
        alone: whether every client has a model of its own, which is plugged back by itself.
        long: whether it takes much longer than others; it is then begun first.
        end: of the scale of `gap_closed`: `floor` counts as 0, `ceiling` as 1.
            `pooled_proxy` is the tuned proxy that federated ones are held against, to tell what is lost
            where. One method for each.
        note: what a reader must know before believing its row.
        version: of what it does; a higher one refuses cells that were made under a lower one.
    """

    name: str
    title: str
    needs_ratio: bool = True
    settings_proxy: bool = True
    trains: bool = True
    alone: bool = False
    long: bool = False
    end: Literal["floor", "ceiling", "pooled_proxy"] | None = None
    note: str = ""
    version: int = 1

    def federation(self, config: Config) -> Config | None:
        """Return the settings under which its clients send updates, or None if they send none."""
        return None

    def check_settings(self, config: Config) -> None:
        """Raise `ConfigError` if it cannot run, or not be protected, as the settings ask."""
        settings = self.federation(config)
        if settings is None:
            return
        try:
            settings.check_protection()
        except ConfigError as error:
            raise ConfigError(f"method {self.name}: {error}") from error

    def check_installed(self, config: Config) -> None:
        """Raise `ConfigError` where a library that its protection needs is missing."""
        settings = self.federation(config)
        if settings is not None:
            protection_of(settings.protect).check_installed()

    @abstractmethod
    def run(self, inputs: Inputs) -> MethodResult:
        """Train and evaluate from scratch with one seed."""


def trained_steps(config: Config) -> int:
    """Return how many training steps every method takes: those of all clients in all rounds."""
    return config.federate.rounds * config.local.steps * config.cohort


def method_of(name: str, *, where: str = "") -> Method:
    """Return the method that settings name. Raises `ConfigError` for a name that is not known.

    Args:
        where: the setting that has the name, such as `compare.methods`.
    """
    method: Method = METHODS.get(name, where=where)
    return method
