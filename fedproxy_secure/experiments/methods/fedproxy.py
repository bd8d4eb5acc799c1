"""FedProxy and its variants: clients tune the proxy, the server fuses their updates and plugs them back.

Settings that a variant does not fix (rho, r0, delta, keep_ratio) come from the section `fusion`; settings
that only a variant has come from the section `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedproxy_secure.config import CompareConfig, Config, ProtectConfig
from fedproxy_secure.experiments.method import Method
from fedproxy_secure.experiments.results import MethodResult

if TYPE_CHECKING:
    from fedproxy_secure.experiments.inputs import Inputs

PLAIN = {"rule": "fedavg", "server_learning_rate": 1.0, "pcr_lambda": 0.0, "prox_mu": 0.0}
Fixes = Callable[[CompareConfig], Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class FedProxy(Method):
    """Compress, federate, fuse, with updates in the clear.

    Args:
        fixes: which settings of `fusion` differ from plain federated averaging.
        exact: whether the proxy's blocks are exact copies and their difference is added unchanged, as in
            the paper, regardless of `compress.kind`, `heal` and `plug_back`.
    """

    fixes: Fixes
    exact: bool = False

    def federation(self, config: Config) -> Config:
        fusion = config.fusion.model_copy(update={**PLAIN, **self.fixes(config.compare)})
        return config.model_copy(update={"fusion": fusion, "protect": self.protect(config)})

    def protect(self, config: Config) -> ProtectConfig:
        """Return the settings of how updates are protected."""
        return ProtectConfig(scheme="unsafe_plaintext")

    def run(self, inputs: Inputs) -> MethodResult:
        proxy = inputs.exact_proxy() if self.exact else inputs.proxy()
        tuned, upload_bytes = inputs.federate(proxy.model, self.federation(inputs.config))
        scale = 1.0 if self.exact else None
        return inputs.plugged_back(proxy, tuned, upload_bytes=upload_bytes, scale=scale)


FEDPROXY_FEDAVG = FedProxy(
    name="fedproxy_fedavg", title="FedProxy, updates averaged", fixes=lambda compare: {}
)
FEDPROXY_FEDAVG_LR = FedProxy(
    name="fedproxy_fedavg_lr",
    title="FedProxy, updates averaged, with a server learning rate",
    fixes=lambda compare: {"server_learning_rate": compare.server_learning_rate},
)
FEDPROXY_FEDADAM = FedProxy(
    name="fedproxy_fedadam",
    title="FedProxy, FedAdam on the server",
    fixes=lambda compare: {"rule": "fedadam", "server_learning_rate": compare.fedadam_learning_rate},
)
FEDPROXY_FEDPROX = FedProxy(
    name="fedproxy_fedprox",
    title="FedProxy, clients held near the last adapter (FedProx)",
    fixes=lambda compare: {"prox_mu": compare.prox_mu},
)
FEDPROXY_TIES = FedProxy(
    name="fedproxy_ties", title="FedProxy, TIES merging", fixes=lambda compare: {"rule": "ties"}
)
FEDPROXY_H_TIES = FedProxy(
    name="fedproxy_h_ties",
    title="FedProxy, H-TIES (the paper's fusion)",
    fixes=lambda compare: {"rule": "h_ties"},
)
FEDPROXY_H_TIES_PCR = FedProxy(
    name="fedproxy_h_ties_pcr",
    title="FedProxy, H-TIES and conflict regularisation (the paper's)",
    fixes=lambda compare: {"rule": "h_ties", "pcr_lambda": compare.pcr_lambda},
)
EXACT_FEDAVG_LR = FedProxy(
    name="exact_fedavg_lr",
    title="FedProxy on exact copies, updates averaged, with a server learning rate",
    fixes=FEDPROXY_FEDAVG_LR.fixes,
    settings_proxy=False,
    exact=True,
)
EXACT_H_TIES = FedProxy(
    name="exact_h_ties",
    title="FedProxy on exact copies, H-TIES",
    fixes=FEDPROXY_H_TIES.fixes,
    settings_proxy=False,
    exact=True,
)
EXACT_H_TIES_PCR = FedProxy(
    name="exact_h_ties_pcr",
    title="FedProxy on exact copies, H-TIES and conflict regularisation (the paper's recipe)",
    fixes=FEDPROXY_H_TIES_PCR.fixes,
    settings_proxy=False,
    exact=True,
)
