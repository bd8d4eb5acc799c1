"""Plug-back: put what the proxy learnt into the LLM (Eq. 15), without training.

Two ways, both in weight space. `overwrite` puts the merged proxy blocks at the plan's places: correct
only while the proxy's blocks are exact copies. `add` adds the lifted difference to the LLM's own
blocks: correct always, and for exact copies equal bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from fedproxy_secure.errors import ModelError
from fedproxy_secure.llm import blocks_of

Deltas = Mapping[tuple[int, str], torch.Tensor]


class Plan(Protocol):
    """The part of a block plan that plug-back needs."""

    def lift(self, tensors: Deltas) -> dict[tuple[int, str], torch.Tensor]:
        """Proxy blocks' tensors under their LLM blocks' indices."""
        ...


@torch.no_grad()
def add_deltas(model: nn.Module, deltas: Deltas) -> nn.Module:
    """A copy of `model` with `deltas[block, weight name]` added to its blocks' weights.

    The sum is taken in float32 and rounded once to the weight's dtype.
    """
    fused = copy.deepcopy(model)
    blocks = blocks_of(fused)
    for (index, name), delta in deltas.items():
        weight = _weight(blocks, index, name)
        weight.copy_(weight.float() + delta.to(weight.device))
    return fused


def plug_back(llm: nn.Module, plan: Plan, deltas: Deltas) -> nn.Module:
    """The fused LLM: `llm` plus the proxy's difference, lifted to the LLM's blocks (Eq. 15).

    Args:
        llm: the owner's LLM; not changed.
        plan: which LLM block each proxy block is a copy of.
        deltas: what tuning added to the proxy, `(proxy block, weight name) -> float32 tensor`.
    """
    return add_deltas(llm, plan.lift(deltas))


@torch.no_grad()
def overwrite(llm: nn.Module, plan: Plan, proxy: nn.Module) -> nn.Module:
    """The paper's stage 3: a copy of `llm` whose blocks at the plan's places are the merged `proxy`'s.

    Guarantees: equal to `plug_back` bit for bit if the proxy's blocks were exact copies. Wrong, and not
    detectable here, if the proxy was healed, quantised or pruned in width.
    """
    fused = copy.deepcopy(llm)
    blocks = blocks_of(fused)
    merged = {
        (i, name): p for i, block in enumerate(blocks_of(proxy)) for name, p in block.named_parameters()
    }
    for (index, name), value in plan.lift(merged).items():
        _weight(blocks, index, name).copy_(value)
    return fused


def _weight(blocks: nn.ModuleList, index: int, name: str) -> torch.Tensor:
    try:
        return blocks[index].get_parameter(name)
    except (AttributeError, IndexError) as error:
        raise ModelError(f"block {index}: has no weight {name!r} to plug back into") from error
