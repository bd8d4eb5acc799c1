"""`model.dtype: mixed`: float32 numbers, and the large products of blocks in bfloat16.

A processor with AMX multiplies bfloat16 several times faster than float32, but sums, norms and narrow
products in bfloat16 gain nothing and lose digits. So weights, adapters, gradients and the states that
blocks pass on stay float32. Only in products with a block's frozen weights are both operands rounded to
bfloat16: in packed rows (`models.packing`), and, less selectively, while a proxy is healed.

Not guaranteed: any speed. A processor without AMX is slower than in float32. All other passes stay float32
throughout: padded rows, differential privacy's clipping, attacks on gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_MARK = "mixed_products"  # on every module, so that copies and models of the same blocks have it, too


def mix_products(model: nn.Module) -> None:
    """Let the blocks of a model multiply in bfloat16 if that is implemented, in place."""
    for module in model.modules():
        module.__dict__[_MARK] = True


def is_mixed(module: nn.Module) -> bool:
    """Return whether a module, or a part of it, belongs to a model with `mix_products`."""
    return any(_MARK in part.__dict__ for part in module.modules())


@contextmanager
def all_products_mixed(model: nn.Module) -> Iterator[None]:
    """Let torch multiply float32 matrices in bfloat16 inside a `with` block, if `model` is mixed.

    This affects the whole process, and products of any model.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if is_mixed(model) else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def has_amx() -> bool:
    """Return whether this processor multiplies bfloat16 matrices in hardware, which `mixed` is for."""
    supported: Any = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(supported())
