"""Attention within the rows of a pack, as transformers calls it: any model's own projections around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedproxy_secure.models.packing.packs import Pack, additive_mask

LONGEST_DENSE = 512  # tokens of a row up to which attention's scores are kept, on the CPU
# features of attention beside a causal mask that are not supported here
_NOT_DONE = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Pack,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; transformers' signature, query [1, heads, tokens, d], keys of fewer heads.

    Raises `NotImplementedError` for attention that is more than causal.
    """
    unsupported = [name for name in _NOT_DONE if others.get(name) is not None]
    if unsupported or attention_mask is not None:
        raise NotImplementedError(f"packed attention: has no {', '.join(unsupported) or 'mask'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (_rows_of(x, packing) for x in (query, key, value))
    dense = query.device.type == "cpu" and packing.shape[1] <= LONGEST_DENSE
    rows = (_dense if dense else _fused)(q, k, v, packing, scale, dropout)
    out: torch.Tensor = _Repack.apply(rows, packing.places)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


def _rows_of(x: torch.Tensor, pack: Pack) -> torch.Tensor:
    out: torch.Tensor = _Unpack.apply(x, pack.padded, pack.places)  # type: ignore[no-untyped-call]
    return out


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack, scale: float, dropout: float
) -> torch.Tensor:
    """Attend with plain matrix products, which for short rows on a CPU are faster than the fused kernel.

    Query heads that share a key head are rows of one product. [1, heads, rows * longest, d] in and out.
    """
    (rows, longest), heads, keys, d = pack.shape, q.shape[1], k.shape[1], q.shape[3]
    group = heads // keys
    q = q.view(keys, group, rows, longest, d).transpose(1, 2).reshape(keys * rows, group * longest, d)
    k, v = k.reshape(keys * rows, longest, d), v.reshape(keys * rows, longest, d)
    mask = additive_mask(pack, q.dtype)
    if mask.dim() == 2:
        scores = torch.baddbmm(mask.repeat(group, 1), q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.baddbmm(mask.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        scores.view(keys, rows, group, longest, longest).add_(mask[:, None])
    shares = nn.functional.dropout(scores.softmax(-1), dropout)
    out = torch.bmm(shares, v).view(keys, rows, group, longest, d)
    return out.transpose(1, 2).reshape(1, heads, rows * longest, d)


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pack: Pack, scale: float, dropout: float
) -> torch.Tensor:
    """Attend with torch's fused kernel: [1, heads, rows * longest, d] in and out."""
    rows, longest = pack.shape

    def heads_second(x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[1], rows, longest, x.shape[3]).transpose(0, 1)

    out = nn.functional.scaled_dot_product_attention(
        heads_second(q),
        heads_second(k),
        heads_second(v),
        attn_mask=None if pack.visible is None else pack.visible[:, None],
        is_causal=pack.visible is None,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(0, 1).reshape(1, q.shape[1], rows * longest, q.shape[3])


class _Unpack(torch.autograd.Function):
    """[1, heads, tokens, d] -> [1, heads, rows * longest, d]; padding holds token 0 and gets no gradient.

    Every token has one place, so the gradient is a selection too. Autograd would add it up place by place.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, padded: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return x.index_select(2, padded)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(2, places), None, None


class _Repack(torch.autograd.Function):
    """[1, heads, rows * longest, d] -> [1, heads, tokens, d]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.size = x.shape[2]
        return x.index_select(2, places)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        heads, d = gradient.shape[1], gradient.shape[3]
        padded = gradient.new_zeros((1, heads, ctx.size, d))
        return padded.index_copy_(2, places, gradient), None
