"""Federated averaging of the whole LLM: no proxy, so every client holds the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedproxy_secure.config import Config, FusionConfig, ProtectConfig
from fedproxy_secure.experiments.method import Method
from fedproxy_secure.experiments.results import MethodResult

if TYPE_CHECKING:
    from fedproxy_secure.experiments.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class FedAvgLlm(Method):
    """Clients tune the LLM itself; the server averages their updates in the clear.

    Args:
        with_rate: whether the server's learning rate is that of `fedproxy_fedavg_lr`, else 1.
    """

    with_rate: bool = False

    def federation(self, config: Config) -> Config:
        return averaged_in_the_clear(config, with_rate=self.with_rate)

    def run(self, inputs: Inputs) -> MethodResult:
        tuned, upload_bytes = inputs.federate(inputs.llm, self.federation(inputs.config))
        return MethodResult(fused=inputs.evaluate(tuned), upload_bytes=upload_bytes)


def averaged_in_the_clear(config: Config, *, with_rate: bool) -> Config:
    """Return settings under which the server reads all updates and averages them.

    `with_rate`: whether the server's learning rate is that of `fedproxy_fedavg_lr`, else 1.
    """
    plaintext = ProtectConfig(scheme="unsafe_plaintext")
    rate = config.compare.server_learning_rate if with_rate else 1.0
    fusion = FusionConfig(rule="fedavg", server_learning_rate=rate)
    return config.model_copy(update={"fusion": fusion, "protect": plaintext})


FEDAVG_LLM = FedAvgLlm(
    name="fedavg_llm", title="FedAvg of the whole LLM, which clients hold", needs_ratio=False, long=True
)
FEDAVG_LLM_LR = FedAvgLlm(
    name="fedavg_llm_lr",
    title="FedAvg of the whole LLM, which clients hold, with a server learning rate",
    needs_ratio=False,
    long=True,
    with_rate=True,
)
