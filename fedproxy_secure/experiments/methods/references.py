"""References: the LLM and its proxy without training, trained on pooled records, and each client alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedproxy_secure.experiments.method import Method
from fedproxy_secure.experiments.results import MethodResult

if TYPE_CHECKING:
    from fedproxy_secure.experiments.inputs import Inputs
    from fedproxy_secure.experiments.results import Score

POOLED_VERSION = 2  # version of pooled training: the same share of every task


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Method):
    """The LLM without training."""

    def run(self, inputs: Inputs) -> MethodResult:
        return MethodResult(fused=inputs.evaluate(inputs.llm))


@dataclass(frozen=True, kw_only=True)
class ZeroShotProxy(Method):
    """The proxy without training."""

    def run(self, inputs: Inputs) -> MethodResult:
        scores = inputs.evaluate(inputs.proxy().model)
        return MethodResult(fused=scores, tuned=scores)


@dataclass(frozen=True, kw_only=True)
class CentralisedLlm(Method):
    """The LLM, tuned on all clients' records together."""

    def run(self, inputs: Inputs) -> MethodResult:
        return MethodResult(fused=inputs.evaluate(inputs.train_pooled(inputs.llm)))


@dataclass(frozen=True, kw_only=True)
class CentralisedProxy(Method):
    """The proxy, tuned on all clients' records together, and plugged back."""

    def run(self, inputs: Inputs) -> MethodResult:
        proxy = inputs.proxy()
        return inputs.plugged_back(proxy, inputs.train_pooled(proxy.model))


@dataclass(frozen=True, kw_only=True)
class LocalOnly(Method):
    """Every client tunes the proxy alone; each task is evaluated on its own client's model."""

    def run(self, inputs: Inputs) -> MethodResult:
        from fedproxy_secure.models.llm import sharing_copy

        fused: dict[str, Score] = {}
        tuned: dict[str, Score] = {}
        proxy = inputs.proxy()
        for client in inputs.each_task():
            outcome = client.plugged_back(proxy, client.train_pooled(sharing_copy(proxy.model)))
            fused |= outcome.fused
            tuned |= outcome.tuned or {}
        return MethodResult(fused=fused, tuned=tuned)


ZERO_SHOT = ZeroShot(
    name="zero_shot",
    title="the LLM without training",
    needs_ratio=False,
    trains=False,
    end="floor",
)
ZERO_SHOT_PROXY = ZeroShotProxy(name="zero_shot_proxy", title="the proxy without training", trains=False)
CENTRALISED_LLM = CentralisedLlm(
    name="centralised_llm",
    title="the LLM, trained on pooled records",
    needs_ratio=False,
    long=True,
    end="ceiling",
    version=POOLED_VERSION,
)
CENTRALISED_PROXY = CentralisedProxy(
    name="centralised_proxy",
    title="the proxy, trained on pooled records",
    end="pooled_proxy",
    version=POOLED_VERSION,
)
LOCAL_ONLY = LocalOnly(
    name="local_only",
    title="the proxy, trained by each client alone",
    alone=True,
    note="local_only is judged on each client's own task, with the model that client tuned alone; where "
    "`plug_back.scale` is searched for, every client has a factor of its own, and none is reported.",
)
