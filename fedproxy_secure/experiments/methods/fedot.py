"""FedOT: Offsite-Tuning (Xiao et al. 2023), federated.

Clients hold the LLM's first and last blocks, which they train, around an emulator of the middle: uniformly
chosen blocks, which are frozen. Trained blocks are plugged back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedproxy_secure.config import AdapterConfig, Config
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.experiments.method import Method
from fedproxy_secure.experiments.methods.whole_llm import averaged_in_the_clear
from fedproxy_secure.experiments.results import MethodResult

if TYPE_CHECKING:
    from torch import nn

    from fedproxy_secure.compress.plan import BlockPlan
    from fedproxy_secure.compress.proxy import Proxy
    from fedproxy_secure.experiments.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class FedOT(Method):
    """Federated Offsite-Tuning.

    Args:
        equal_bytes: whether the rank of the trained blocks' adapters is raised until a client sends about
            as many bytes as with adapters of the settings' rank on the settings' proxy.
        with_rate: whether the server's learning rate is that of `fedproxy_fedavg_lr`, else 1.
    """

    equal_bytes: bool = False
    with_rate: bool = False
    settings_proxy: bool = False

    def federation(self, config: Config) -> Config:
        return averaged_in_the_clear(config, with_rate=self.with_rate)

    def run(self, inputs: Inputs) -> MethodResult:
        from fedproxy_secure.compress.proxy import Proxy
        from fedproxy_secure.models.adapters import size_without_attaching
        from fedproxy_secure.models.llm import blocks_of, with_blocks

        plan, trained = offsite_tuning_plan(len(blocks_of(inputs.llm)), inputs.remove_ratio)
        proxy = Proxy(model=with_blocks(inputs.llm, list(plan.kept), share=True), plan=plan)
        settings = self.federation(inputs.config)
        if self.equal_bytes:
            held = size_without_attaching(_same_size(inputs, proxy), settings.adapter)  # FedProxy's
            own = size_without_attaching(proxy.model, settings.adapter, blocks=trained)
            adapter = widened(settings.adapter, held, own)
            settings = settings.model_copy(update={"adapter": adapter})
        tuned, upload_bytes = inputs.federate(proxy.model, settings, blocks=trained)
        return inputs.plugged_back(proxy, tuned, upload_bytes=upload_bytes, scale=1.0)


def _same_size(inputs: Inputs, proxy: Proxy) -> nn.Module:
    """Return a model whose blocks have the sizes of those of the settings' proxy.

    Where blocks are only dropped, FedOT's own has, and no importance needs to be computed. Other kinds of
    compression may keep all blocks, or narrow them.
    """
    from fedproxy_secure.experiments.stages import exact_proxy

    if inputs.config.compress.kind == "drop_blocks":
        return proxy.model
    return (
        exact_proxy(inputs.config, inputs.materials, seed=inputs.seed, remove_ratio=inputs.remove_ratio)
        .finished()
        .model
    )


def widened(adapter: AdapterConfig, held: int, own: int) -> AdapterConfig:
    """Return an adapter of about `held` numbers where `adapter` has `own`.

    Its scale, alpha / rank, is the same. The numbers of `lora` and `ffa` grow with the rank, those of
    `core` with its square.
    """
    factor = math.sqrt(held / own) if adapter.kind == "core" else held / own
    rank, scale = max(1, round(adapter.rank * factor)), adapter.alpha / adapter.rank
    return adapter.model_copy(update={"rank": rank, "alpha": max(1, round(rank * scale))})


def offsite_tuning_plan(llm_blocks: int, remove_ratio: float) -> tuple[BlockPlan, tuple[int, ...]]:
    """Return Offsite-Tuning's plan: the first and last blocks are adapters, the middle uniformly dropped.

    Clients hold as many blocks as in a proxy of the same ratio. On each side an eighth of them, rounded
    down, but at least one, is trained.

    Returns the plan of the model that clients hold, and which of *its* blocks are trained.

    Raises `ConfigError` if no block is left for the emulator.
    """
    from fedproxy_secure.compress.plan import BlockPlan, blocks_to_remove, plan_uniform

    keep = llm_blocks - blocks_to_remove(llm_blocks, remove_ratio)
    side = max(1, keep // 8)
    if keep < 2 * side + 1:
        raise ConfigError(
            f"remove_ratio={remove_ratio}: leaves {keep} of {llm_blocks} blocks; FedOT needs at least "
            f"{2 * side + 1}: adapters at both ends and an emulator between"
        )
    middle = llm_blocks - 2 * side
    emulator = plan_uniform(middle, 1 - (keep - 2 * side) / middle).kept
    kept = (
        *range(side),
        *(side + i for i in emulator),
        *range(llm_blocks - side, llm_blocks),
    )
    trained = (*range(side), *range(keep - side, keep))
    return BlockPlan(llm_blocks=llm_blocks, kept=kept), trained


_NOTE = "{} starts from unhealed blocks, whatever `heal` says, and is plugged back with factor 1{}."
_RATE = "; its server learning rate is 1"

FEDOT = FedOT(name="fedot", title="Offsite-Tuning, federated", note=_NOTE.format("fedot", _RATE))
FEDOT_EQUAL_BYTES = FedOT(
    name="fedot_equal_bytes",
    title="Offsite-Tuning, federated, with as many bytes uploaded as FedProxy",
    equal_bytes=True,
    note=_NOTE.format("fedot_equal_bytes", _RATE),
)
FEDOT_EQUAL_BYTES_LR = FedOT(
    name="fedot_equal_bytes_lr",
    title="Offsite-Tuning, federated, with as many bytes as FedProxy and a server learning rate",
    equal_bytes=True,
    with_rate=True,
    note=_NOTE.format("fedot_equal_bytes_lr", ""),
)
