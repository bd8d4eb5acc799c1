"""Plug-back: put what the proxy learnt into the LLM (Eq. 15), without training.

The lifted difference is added to the LLM's own blocks. If the proxy's blocks are exact copies, the result
equals, bit for bit, the LLM with those blocks replaced by the tuned ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import blocks_of, sharing_copy

Deltas = Mapping[tuple[int, str], torch.Tensor]


class Lifts(Protocol):
    """A proxy or its block plan: it can lift a difference to the blocks of the LLM."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The LLM block whose hidden states each proxy block passes on; () if it passes on other states."""
        ...

    def lift(self, tensors: Deltas) -> dict[tuple[int, str], torch.Tensor]:
        """Return what to add to the LLM's blocks for these differences of the proxy's blocks."""
        ...


@torch.no_grad()
def add_deltas(model: nn.Module, deltas: Deltas) -> nn.Module:
    """Return a model like `model` with `deltas[block, weight name]` added to its blocks' weights.

    The sum is taken in float32 and rounded once to the weight's dtype. `model` is unchanged; weights that
    get no difference are the same tensors in both.

    Raises `ModelError` for a weight that the model lacks, or a difference of another shape.
    """
    fused = sharing_copy(model)
    blocks = blocks_of(fused)
    for (index, name), delta in deltas.items():
        weight = _weight(blocks, index, name)
        if delta.shape != weight.shape:
            raise ModelError(
                f"block {index}, {name}: a difference of shape {tuple(delta.shape)}: must be of the "
                f"weight's shape, {tuple(weight.shape)}"
            )
        _set_weight(blocks, index, name, (weight.float() + delta.to(weight.device)).to(weight.dtype))
    return fused


def times(deltas: Deltas, scale: float) -> Deltas:
    """Return differences multiplied by a factor; the same object for a factor of 1."""
    return deltas if scale == 1 else {place: scale * delta for place, delta in deltas.items()}


def plug_back(llm: nn.Module, proxy: Lifts, deltas: Deltas) -> nn.Module:
    """Return the fused LLM: `llm` plus the proxy's difference, lifted to the LLM's blocks (Eq. 15).

    Args:
        llm: the owner's LLM; not changed.
        proxy: lifts a difference of the proxy's blocks to one of the LLM's: a proxy, or its block plan.
        deltas: what tuning added to the proxy, `(proxy block, weight name) -> float32 tensor`.

    Raises `ModelError` if a lifted difference is for a weight that the LLM lacks, or of another shape.
    """
    return add_deltas(llm, proxy.lift(deltas))


def _weight(blocks: nn.ModuleList, index: int, name: str) -> torch.Tensor:
    try:
        return blocks[index].get_parameter(name)
    except (AttributeError, IndexError) as error:
        raise ModelError(f"block {index}: has no weight {name!r} to plug back into") from error


def _set_weight(blocks: nn.ModuleList, index: int, name: str, value: torch.Tensor) -> None:
    """Replace a block's weight by a new parameter, so that no other model shares it."""
    owner, _, leaf = name.rpartition(".")
    module = blocks[index].get_submodule(owner)
    module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
