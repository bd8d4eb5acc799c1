"""What a compression is: how the LLM becomes a proxy, and how what the proxy learns returns to the LLM.

`compress.kind` names the compression of a run. To add one, subclass `Compression` and register an instance
under the entry point group `fedproxy_secure.compressions`; `examples/own_compression.py` is an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fedproxy_secure.config import CompressConfig, HealConfig
from fedproxy_secure.config.kinds import COMPRESSIONS
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedproxy_secure.compress.proxy import Proxy


class Compression(ABC):
    """A way from the LLM to a proxy and back.

    Args:
        name: its name in settings, and in reports under `compression`.
        title: its name in tables and lists.
        options: names of the settings in `compress.options` that it reads.
        needs_healing: whether its proxies are of no use before they are healed.
        own_states: whether all its proxies have `Proxy.own_states`: hidden states in other coordinates than
            the LLM's, so that the fused LLM is not aligned.

    Guarantees: clients get the proxy's folder, written from `Proxy.model`; nothing else of what `build`
    returns leaves the server.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    needs_healing: ClassVar[bool] = False
    own_states: ClassVar[bool] = False

    def check_settings(self, compress: CompressConfig) -> None:
        """Raise `ConfigError` for settings that this compression cannot work with.

        It is called before anything is loaded. Override it to check the values of options.
        """
        for option in compress.options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise ConfigError(
                    f"compress.options.{option}: is no option of compress.kind={self.name}; it has: {known}"
                )

    def whole(self, compress: CompressConfig) -> str:
        """Return how clients hold the whole LLM, in words for a report's stamp; "" if a part is missing.

        The words complete `every client holds the whole LLM`, such as `with weights of 4 bits`. Override it
        for a compression that can leave everything in the proxy.
        """
        return ""

    @abstractmethod
    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        """Return the proxy of `llm`.

        Args:
            llm: the server's causal LM in evaluation mode; leave it unchanged.
            compress: the settings; `remove_ratio` is the share of the LLM to remove, [0, 1).
            windows: token ids of public text, int64 [n, tokens], to calibrate on; never clients' records.
            seed: seed of all random choices, so that the same seed gives the same proxy.

        Raises `ConfigError` if the LLM cannot be compressed as the settings say.
        """


def compression_of(compress: CompressConfig, heal: HealConfig | None = None) -> Compression:
    """Return the compression that the settings name, after it has checked them.

    Args:
        compress: the settings of the section `compress`.
        heal: the settings of healing; None leaves them unchecked.

    Raises `ConfigError` for an unknown name, for settings that the compression refuses, or for no healing
    steps where its proxies need healing.
    """
    compression = COMPRESSIONS.get(compress.kind, setting="compress.kind")
    compression.check_settings(compress)
    if heal is not None and compression.needs_healing and not heal.steps:
        raise ConfigError(
            f"heal.steps=0: must be > 0 with compress.kind={compress.kind}, whose proxies need healing"
        )
    return compression
