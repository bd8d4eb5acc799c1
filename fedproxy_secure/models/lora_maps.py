"""LoRA on a linear map with only matrix products: `y = W x + s B A x` without passes between them.

PEFT multiplies by the scale s, adds the two terms, and in the backward pass adds two gradients. On a CPU
these passes over large arrays take a tenth of a training step. Here every sum is part of a matrix product.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer on a linear map, with a faster pass if only A and B are used.

    Dropout, merged weights, a switched-off adapter, a B that is no plain matrix, weights of another dtype
    and function transforms take PEFT's own pass.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the map's output, [..., out], for x [..., in]."""
        parts = self._parts(x)
        if parts is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        return cast(torch.Tensor, _LoraProduct.apply(x, *parts))  # type: ignore[no-untyped-call]

    def _parts(self, x: torch.Tensor) -> tuple[Any, ...] | None:
        """Return W, bias, A, B and s, or None if another pass is needed."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        a, b, base = self.lora_A[name], self.lora_B[name], self.get_base_layer()
        plain = type(a) is type(b) is type(base) is nn.Linear and a.bias is b.bias is None
        if not plain or not isinstance(self.lora_dropout[name], nn.Identity) or name in self.lora_variant:
            return None
        if not x.dtype == base.weight.dtype == a.weight.dtype == b.weight.dtype:
            return None
        if torch.is_autocast_enabled(x.device.type) or torch._C._are_functorch_transforms_active():
            return None
        return base.weight, base.bias, a.weight, b.weight, self.scaling[name]


class _LoraProduct(torch.autograd.Function):
    """`x W^T + bias + s (x A^T) B^T`, with gradients for x, A and B; W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.T
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        out = nn.functional.linear(rows, weight, bias)
        return out.addmm_(inner, b.T, alpha=scale).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        rows, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        if torch.is_grad_enabled():  # for a second derivative, as the saved product is not in a graph
            inner = rows @ a.T
        wants_x, _, _, wants_a, wants_b, _ = ctx.needs_input_grad
        of_inner = (gradient @ b).mul_(ctx.scale) if wants_x or wants_a else None
        of_x = of_a = of_b = None
        if wants_x:
            of_x = (gradient @ weight).addmm_(of_inner, a).view(x.shape)
        if wants_a:
            assert of_inner is not None
            of_a = of_inner.T @ rows
        if wants_b:
            of_b = (gradient.T @ inner).mul_(ctx.scale)
        return of_x, None, None, of_a, of_b, None
