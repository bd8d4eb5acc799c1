"""FedProxy under masking: the server learns only sums, by the settings of `protect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedproxy_secure.config import Config, ProtectConfig
from fedproxy_secure.experiments.methods.fedproxy import FedProxy


@dataclass(frozen=True, kw_only=True)
class MaskedFedProxy(FedProxy):
    """FedProxy whose clients mask their updates.

    Args:
        granularity: what a rule that elects signs learns besides the sum; see `protect.granularity`.
    """

    granularity: Literal["block", "coordinate"] = "block"

    def protect(self, config: Config) -> ProtectConfig:
        masking = {"scheme": "masking", "options": {}, "granularity": self.granularity}
        return config.protect.model_copy(update=masking)


MASKED_FEDAVG = MaskedFedProxy(
    name="masked_fedavg", title="FedProxy under masking, updates averaged", fixes=lambda compare: {}
)
MASKED_FEDAVG_LR = MaskedFedProxy(
    name="masked_fedavg_lr",
    title="FedProxy under masking, updates averaged, with a server learning rate",
    fixes=lambda compare: {"server_learning_rate": compare.server_learning_rate},
)
MASKED_H_TIES_COORDINATE = MaskedFedProxy(
    name="masked_h_ties_coordinate",
    title="FedProxy under masking, H-TIES by coordinate",
    fixes=lambda compare: {"rule": "h_ties"},
    granularity="coordinate",
)
MASKED_H_TIES_BLOCK = MaskedFedProxy(
    name="masked_h_ties_block",
    title="FedProxy under masking, H-TIES by block",
    fixes=lambda compare: {"rule": "h_ties"},
)
