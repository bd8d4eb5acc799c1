"""A Llama block in one step on the CPU, with gradients only for its input and its LoRA adapters.

A block that runs operation by operation spends half its time outside the large matrix products: in passes
over memory, in narrow products, and in attention over padding. Here sums are part of matrix products, the
adapters of maps that share an input are joined, and the backward pass recomputes element-wise results
instead of storing them.

A map may also have its weight in bfloat16 (`LinearMap.half`). Its large products then read and return
bfloat16 numbers, which a processor with AMX multiplies several times faster. Everything else stays float32:
the sums that blocks pass on, norms, attention, and all products with A and B.

Guarantees: outputs and gradients are the block's own up to rounding; weights, biases and norms get no
gradient. Gradients cannot be differentiated again: that raises `RuntimeError`. With `half`, a product has
eight significant bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.models.packing.row_attention import RowLayout, attend, attend_back, rotate, rotate_back

Gradients = list[torch.Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearMap:
    """A linear map: W [out, in] and optionally a bias [out] and LoRA's A [r, in], B [out, r].

    The map is `W x + bias + scale * B A x`. `half` is W in bfloat16; with None, `W x` is float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor | None
    b: torch.Tensor | None
    scale: float
    half: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """An RMSNorm: its weight [h], and the epsilon that is added to the mean square."""

    weight: torch.Tensor
    epsilon: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaBlock:
    """The parameters of a block, and the positions and layout of its tokens.

    Args:
        maps: the maps of queries, keys, values, attention's output, gate, up and down.
        norms: the norms before attention and before the MLP.
        cos: cosines for the tokens' positions, [tokens, d].
        sin: the sines, of the same shape.
        layout: the order of the tokens' heads for attention.
        scaling: the factor of attention's scores.
        only: int64, distinct; the tokens whose output is needed; that of other tokens is 0. None: all.
    """

    maps: tuple[LinearMap, ...]
    norms: tuple[Norm, Norm]
    cos: torch.Tensor
    sin: torch.Tensor
    layout: RowLayout
    scaling: float
    only: torch.Tensor | None = None


def block_output(x: torch.Tensor, block: LlamaBlock) -> torch.Tensor:
    """Return the block's output, float32 [tokens, h], for x of that shape."""
    if not torch.is_grad_enabled():
        return _run(x, block)[0]
    adapters = [t for m in block.maps for t in (m.a, m.b)]
    return cast(torch.Tensor, cast(Any, _Block).apply(x, block, *adapters))


class _Block(torch.autograd.Function):
    """`_run` with gradients for x and for every A and B, which are also passed directly, for autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, block: LlamaBlock, *adapters: torch.Tensor | None
    ) -> torch.Tensor:
        out, saved = _run(x, block)
        # autograd refuses the backward pass if one of these has been written to since
        frozen = [t for m in block.maps for t in (m.weight, m.bias)] + [n.weight for n in block.norms]
        ctx.save_for_backward(*saved, *adapters, *frozen)
        ctx.block, ctx.kept = block, len(saved)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph; what is computed below is no part of a graph
            raise RuntimeError(
                "create_graph: the gradient of a block in one step cannot be differentiated; "
                "run the model outside fast_blocks"
            )
        wants_x, _, *wants = ctx.needs_input_grad
        of_x, of_adapters = _back(gradient, ctx.block, ctx.saved_tensors[: ctx.kept], wants_x, wants)
        return of_x, None, *of_adapters


def _run(x: torch.Tensor, block: LlamaBlock) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Return the block's output, and the tensors that `_back` needs."""
    q, k, v, o, gate, up, down = block.maps
    first, second = block.norms

    rms = _inverse_rms(x, first)
    qkv = x.new_empty(len(x), sum(len(m.weight) for m in (q, k, v)))
    inner_qkv = _add_products(_normed(x, rms, first), (q, k, v), _parts(qkv, block), beta=0)
    rotate(_turned(qkv, block), block.cos, block.sin)
    mixed, (heads, shares) = attend(qkv, block.layout, block.scaling)
    if block.only is None:
        middle = x.clone()
    else:
        mixed, middle = mixed.index_select(0, block.only), x.index_select(0, block.only)
    inner_o = _add_products(mixed, (o,), (middle,))

    middle_rms = _inverse_rms(middle, second)
    gated, raised = (x.new_empty(len(middle), len(m.weight)) for m in (gate, up))
    inner_gate = _add_products(_normed(middle, middle_rms, second), (gate, up), (gated, raised), beta=0)
    out = middle.clone()
    inner_down = _add_products(nn.functional.silu(gated).mul_(raised), (down,), (out,))
    if block.only is not None:
        out = torch.zeros_like(x).index_copy_(0, block.only, out)
    inners = inner_qkv, inner_o, inner_gate, inner_down
    return out, (x, rms, heads, shares, mixed, middle, middle_rms, gated, raised, *inners)


def _back(
    gradient: torch.Tensor, block: LlamaBlock, saved: Sequence[Any], wants_x: bool, wants: Sequence[bool]
) -> tuple[torch.Tensor | None, Gradients]:
    """Return the needed gradients of x and of A and B of each map; stop if no earlier one is needed."""
    q, k, v, o, gate, up, down = block.maps
    first, second = block.norms
    x, rms, heads, shares, mixed, middle, middle_rms, gated, raised, *inners = saved
    inner_qkv, inner_o, inner_gate, inner_down = inners
    wants_qkv = wants_x or any(wants[:6])
    wants_attention = wants_qkv or any(wants[6:8])
    wants_mlp = wants_attention or any(wants[8:12])
    if block.only is not None:
        gradient = gradient.index_select(0, block.only)
    gradients: Gradients = [None] * len(wants)

    active = nn.functional.silu(gated)
    of_active, gradients[12:] = _products_back(
        active * raised, inner_down, (down,), (gradient,), wants_mlp, wants[12:]
    )
    if of_active is None:
        return None, gradients
    of_raised = active.mul_(of_active)
    of_gated = torch.ops.aten.silu_backward(of_active.mul_(raised), gated)
    normed = _normed(middle, middle_rms, second)
    of_normed, gradients[8:12] = _products_back(
        normed, inner_gate, (gate, up), (of_gated, of_raised), wants_attention, wants[8:12]
    )
    if of_normed is None:
        return None, gradients
    of_middle = _add_norm_back(gradient, of_normed, middle, middle_rms, second)

    of_mixed, gradients[6:8] = _products_back(mixed, inner_o, (o,), (of_middle,), wants_qkv, wants[6:8])
    if of_mixed is None:
        return None, gradients
    if block.only is not None:
        of_mixed, of_middle = (
            t.new_zeros(len(x), t.shape[1]).index_copy_(0, block.only, t) for t in (of_mixed, of_middle)
        )
    of_qkv = attend_back(of_mixed, (heads, shares), block.layout, block.scaling)
    rotate_back(_turned(of_qkv, block), block.cos, block.sin)
    normed = _normed(x, rms, first)
    of_normed, gradients[:6] = _products_back(
        normed, inner_qkv, (q, k, v), _parts(of_qkv, block), wants_x, wants[:6]
    )
    return None if of_normed is None else _add_norm_back(of_middle, of_normed, x, rms, first), gradients


def _add_products(
    rows: torch.Tensor, maps: Sequence[LinearMap], outs: Sequence[torch.Tensor], *, beta: int = 1
) -> torch.Tensor | None:
    """Make each of `outs` beta times itself plus its map of `rows`; return `rows` times all A."""
    adapted = [m.a for m in maps if m.a is not None]
    inner = rows @ torch.cat(adapted).T if adapted else None
    parts = iter(() if inner is None else inner.split([len(a) for a in adapted], dim=1))
    half_rows = _half(rows, maps)
    for m, out in zip(maps, outs, strict=True):
        if m.half is None:
            out.addmm_(rows, m.weight.T, beta=beta)
        elif beta:
            out.add_(half_rows @ m.half.T)
        else:
            out.copy_(half_rows @ m.half.T)
        if m.bias is not None:
            out.add_(m.bias)
        if m.b is not None:
            out.addmm_(next(parts), m.b.T, alpha=m.scale)
    return inner


def _products_back(
    rows: torch.Tensor,
    inner: torch.Tensor | None,
    maps: Sequence[LinearMap],
    gradients: Sequence[torch.Tensor],
    wants_rows: bool,
    wants: Sequence[bool],
) -> tuple[torch.Tensor | None, Gradients]:
    """Return the gradients of `rows` and of A and B of each map, those that are needed."""
    of_adapters: Gradients = [None] * len(wants)
    of_rows = None
    if wants_rows:
        of_rows = _times_weight(gradients[0], maps[0])
        for gradient, m in zip(gradients[1:], maps[1:], strict=True):
            if m.half is None:
                of_rows.addmm_(gradient, m.weight)
            else:
                of_rows.add_(gradient.bfloat16() @ m.half)
    if inner is None:
        return of_rows, of_adapters
    adapted = [(i, m.a, m.b, m.scale) for i, m in enumerate(maps) if m.a is not None and m.b is not None]
    of_inner, start = torch.empty_like(inner), 0
    for i, a, b, scale in adapted:
        part = slice(start, start + len(a))
        of_inner[:, part].addmm_(gradients[i], b, beta=0, alpha=scale)
        if wants[2 * i + 1]:  # this way round the product is faster, even with the copy
            of_adapters[2 * i + 1] = (inner[:, part].T @ gradients[i]).mul_(scale).T.contiguous()
        start = part.stop
    if any(wants[2 * i] for i, *_ in adapted):
        of_a = (of_inner.T @ rows).split([len(a) for _, a, _, _ in adapted])
        for (i, *_), piece in zip(adapted, of_a, strict=True):
            of_adapters[2 * i] = piece if wants[2 * i] else None
    if of_rows is not None:
        of_rows.addmm_(of_inner, torch.cat([a for _, a, _, _ in adapted]))
    return of_rows, of_adapters


def _half(rows: torch.Tensor, maps: Sequence[LinearMap]) -> torch.Tensor:
    """Return `rows` as the products with `maps` read them."""
    return rows if all(m.half is None for m in maps) else rows.bfloat16()


def _times_weight(gradient: torch.Tensor, m: LinearMap) -> torch.Tensor:
    """Return the gradient of the input of W, float32."""
    return gradient @ m.weight if m.half is None else (gradient.bfloat16() @ m.half).float()


def _inverse_rms(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return one over the root mean square of each token, [tokens, 1]."""
    squares = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
    return cast(torch.Tensor, squares.div_(x.shape[1]).add_(norm.epsilon).rsqrt_())


def _normed(x: torch.Tensor, inverse_rms: torch.Tensor, norm: Norm) -> torch.Tensor:
    return (x * inverse_rms).mul_(norm.weight)


def _add_norm_back(
    addend: torch.Tensor, gradient: torch.Tensor, x: torch.Tensor, inverse_rms: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """Return `addend` plus the gradient of a norm's input x; its output's `gradient` is overwritten."""
    gradient.mul_(norm.weight)
    along = (gradient * x).sum(1, keepdim=True).mul_(inverse_rms**3).div_(x.shape[1])
    out: torch.Tensor = torch.addcmul(addend, gradient, inverse_rms)
    return out.addcmul_(x, along, value=-1)


def _parts(qkv: torch.Tensor, block: LlamaBlock) -> tuple[torch.Tensor, ...]:
    parts: tuple[torch.Tensor, ...] = qkv.split([len(m.weight) for m in block.maps[:3]], dim=1)
    return parts


def _turned(qkv: torch.Tensor, block: LlamaBlock) -> torch.Tensor:
    """Return the heads that are rotated by their positions: queries and keys."""
    heads, keys = block.layout.heads, block.layout.keys
    return qkv.view(len(qkv), heads + 2 * keys, -1)[:, : heads + keys]
