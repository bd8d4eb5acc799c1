"""What a method is: one way to a tuned model, which `compare` runs beside other methods.

`compare.methods` names them. To add one, subclass `Method` and register an instance under the entry point
group `fedproxy_secure.methods`; `examples/own_method.py` is an example.
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

STEP_PASSES = 2.5  # duration of a training step on a record, in forward passes; measured on a CPU


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to a tuned model; a row of a comparison.

    Every method uses the same records, the same number of training sequences and the same adapter settings:
    `rounds x steps x batch_size` sequences for each client of a round's cohort. Methods that train without
    a federation see as many in total (`trained_steps`), and the same share of every task.

    Args:
        name: its name in settings, in reports and in file names.
        title: its name in lists.
        needs_ratio: whether it works on a proxy, and so runs once for each remove ratio.
        settings_proxy: whether that proxy is the settings' proxy, `Inputs.proxy`. If it is healed, a
            comparison prepares it once for all cells that start from it.
        trains: whether it trains anything.
        alone: whether every client has a model of its own, which is plugged back by itself.
        long: whether it takes much longer than others; it then starts first.
        end: which end of the scale of `gap_closed` it is: `floor` counts as 0, `ceiling` as 1.
            `pooled_proxy` is the tuned proxy that federated proxies are compared with, to separate the
            effects of size and of federation. Each value belongs to one method.
        note: what a reader must know to interpret its row.
        version: version of its algorithm; cells of another version are refused.
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
        """Return the settings under which its clients send updates; None if they send none."""
        return None

    def check_settings(self, config: Config) -> None:
        """Raise `ConfigError` if it cannot run or cannot be protected as the settings ask."""
        settings = self.federation(config)
        if settings is None:
            return
        try:
            settings.check_protection()
        except ConfigError as error:
            raise ConfigError(f"method {self.name}: {error}") from error

    def check_installed(self, config: Config) -> None:
        """Raise `ConfigError` if a library that its protection needs is missing."""
        settings = self.federation(config)
        if settings is not None:
            protection_of(settings.protect).check_installed()

    @abstractmethod
    def run(self, inputs: Inputs) -> MethodResult:
        """Train and evaluate from scratch with one seed."""


def trained_steps(config: Config) -> int:
    """Return how many training steps every method takes: those of all clients in all rounds."""
    return config.federate.rounds * config.local.steps * config.cohort


def method_of(name: str, *, setting: str = "") -> Method:
    """Return the method of this name; raises `ConfigError` for an unknown name.

    Args:
        setting: the setting that has the name, such as `compare.methods`.
    """
    return METHODS.get(name, setting=setting)
