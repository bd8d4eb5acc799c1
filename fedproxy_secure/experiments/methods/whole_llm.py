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
    """Clients tune the LLM itself; the server averages their updates in the clear."""

    def federation(self, config: Config) -> Config:
        plaintext = ProtectConfig(scheme="unsafe_plaintext")
        return config.model_copy(update={"fusion": FusionConfig(rule="fedavg"), "protect": plaintext})

    def run(self, inputs: Inputs) -> MethodResult:
        tuned, upload_bytes = inputs.federate(inputs.llm, self.federation(inputs.config))
        return MethodResult(fused=inputs.evaluate(tuned), upload_bytes=upload_bytes)


FEDAVG_LLM = FedAvgLlm(
    name="fedavg_llm", title="FedAvg of the whole LLM, which clients hold", needs_ratio=False, long=True
)
