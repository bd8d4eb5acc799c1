"""Gradients of single records from one padded pass over many: fast, and for measuring only.

Private training takes each record in a pass of its own, because a model can be made to let the records of a
batch touch each other. Where model and records are ours, this is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from fedproxy_secure.models.adapters import ADAPTER, CoreMap, trained_parameters


class RecordGradients:
    """Gradients of single records from one padded pass, caught at the maps that are trained.

    Holds for models that keep the rows of a batch apart. `core` adapters get a pass in the dtype of the
    weights that they stand beside, until `close`.
    """

    def __init__(self, tuned: nn.Module) -> None:
        self._parameters = trained_parameters(tuned)
        self._caught: dict[int, torch.Tensor] = {}
        self._undo: list[Callable[[], object]] = []
        cores = set()
        for module in tuned.modules():
            if isinstance(module, LoraLayer) and isinstance(module.lora_B[ADAPTER], CoreMap):
                cores.add(module.lora_B[ADAPTER].core)
                self._replace_pass(module)
        for module in tuned.modules():
            if isinstance(module, nn.Linear) and module.weight.requires_grad and module not in cores:
                self._undo.append(module.register_forward_hook(self._watch).remove)

    def of(self, sum_of_losses: torch.Tensor) -> list[torch.Tensor]:
        """Return for each trained parameter its gradients, float32 [records, *shape]."""
        self._caught = {}
        torch.autograd.grad(sum_of_losses, self._parameters)
        return [self._caught[id(p)] for p in self._parameters]

    def close(self) -> None:
        """Give the model its own passes back."""
        for undo in self._undo:
            undo()

    def _watch(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._catch(module.weight, inputs[0].detach(), output)

    def _catch(self, weight: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        def keep(gradient: torch.Tensor) -> None:
            self._caught[id(weight)] = torch.einsum("bto,bti->boi", gradient.float(), x.float())

        if output.requires_grad:
            output.register_hook(keep)

    def _replace_pass(self, layer: Any) -> None:
        base, core = layer.get_base_layer(), layer.lora_B[ADAPTER]
        dtype, scale = base.weight.dtype, layer.scaling[ADAPTER]
        a, b = layer.lora_A[ADAPTER].weight.detach().to(dtype), core.outer.detach().to(dtype)

        def forward(x: torch.Tensor) -> torch.Tensor:
            inner = nn.functional.linear(x, a)
            turned = nn.functional.linear(inner, core.core.weight.to(dtype))
            self._catch(core.core.weight, inner.detach(), turned)
            out: torch.Tensor = base(x).add_(nn.functional.linear(turned, b), alpha=scale)
            return out

        layer.forward = forward
        self._undo.append(lambda: layer.__dict__.pop("forward"))
