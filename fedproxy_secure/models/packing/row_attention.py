"""Causal attention within the rows of a pack, each at its own length, with its gradient: CPU, short rows.

For a row that is padded to the longest, attention costs the square of the longest. Here the heads of a row
are adjacent in memory, so that each row is a few matrix products without padding. Query heads that share a
key head are rows of one product.

    layout = row_layout(pack, heads, keys)
    out, kept = attend(qkv, layout, scaling)
    of_qkv = attend_back(of_out, kept, layout, scaling)

`qkv` is [tokens, (heads + 2 * keys) * d]: each token's queries, keys and values, positions already in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedproxy_secure.models.packing.packs import Pack, additive_mask

Kept = tuple[torch.Tensor, torch.Tensor]  # reordered heads, and the shares of attention


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """The order of heads for attention: all queries row by row, then the keys, then the values.

    A row's queries are [heads, length, d], its keys and values [keys, length, d].

    Args:
        lengths: lengths of the rows, in tokens.
        heads: number of query heads.
        keys: number of key heads; divides `heads`.
        masks: float32 [length, length] for each row, added to its scores.
        order: int64; the head of [tokens, heads + 2 * keys] at each place; `order_back` is its inverse.
        queries: int64; the same for only queries, of [tokens, heads]; `queries_back` is its inverse.
    """

    lengths: tuple[int, ...]
    heads: int
    keys: int
    masks: tuple[torch.Tensor, ...]
    order: torch.Tensor
    order_back: torch.Tensor
    queries: torch.Tensor
    queries_back: torch.Tensor


def row_layout(pack: Pack, heads: int, keys: int) -> RowLayout:
    """Return the layout of a pack's rows for attention of `heads` query heads and `keys` key heads."""
    tokens = pack.ids.shape[1]
    ends = (*pack.starts[1:], tokens)
    lengths = tuple(end - start for start, end in zip(pack.starts, ends, strict=True))
    mask = additive_mask(pack, torch.float32)
    order = _order(lengths, (heads, keys, keys))
    queries = _order(lengths, (heads,))
    return RowLayout(
        lengths=lengths,
        heads=heads,
        keys=keys,
        masks=tuple((mask if mask.dim() == 2 else mask[r])[:n, :n] for r, n in enumerate(lengths)),
        order=order,
        order_back=order.argsort(),
        queries=queries,
        queries_back=queries.argsort(),
    )


def _order(lengths: tuple[int, ...], parts: tuple[int, ...]) -> torch.Tensor:
    tokens = sum(lengths)
    places = torch.arange(tokens * sum(parts)).view(tokens, -1)
    return torch.cat([row.T.flatten() for p in places.split(parts, dim=1) for row in p.split(lengths)])


def attend(qkv: torch.Tensor, layout: RowLayout, scaling: float) -> tuple[torch.Tensor, Kept]:
    """Return attention's output, [tokens, heads * d], and the tensors that its gradient needs."""
    lengths, heads = layout.lengths, layout.heads
    ordered = qkv.view(len(layout.order), -1).index_select(0, layout.order)
    shares = ordered.new_empty(heads * sum(n * n for n in lengths))
    out = ordered.new_empty(heads * sum(lengths), ordered.shape[1])
    rows = zip(
        _rows(ordered, layout), _scores(shares, layout), _queries(out, layout), layout.masks, strict=True
    )
    for (q, k, v), scores, of_row, mask in rows:
        scores.baddbmm_(q, k.transpose(1, 2), beta=0, alpha=scaling)
        scores.view(heads, *mask.shape).add_(mask)
        torch.softmax(scores, -1, out=scores)
        torch.bmm(scores, v, out=of_row)
    return out.index_select(0, layout.queries_back).view(sum(lengths), -1), (ordered, shares)


def attend_back(of_out: torch.Tensor, kept: Kept, layout: RowLayout, scaling: float) -> torch.Tensor:
    """Return the gradient of `qkv`, given that of attention's output."""
    ordered, shares = kept
    of_laid = torch.empty_like(ordered)
    of_out = of_out.view(len(layout.queries), -1).index_select(0, layout.queries)
    rows = zip(
        _rows(ordered, layout),
        _rows(of_laid, layout),
        _scores(shares, layout),
        _queries(of_out, layout),
        strict=True,
    )
    for (q, k, v), (of_q, of_k, of_v), share, of_row in rows:
        torch.bmm(share.transpose(1, 2), of_row, out=of_v)
        of_share = torch.bmm(of_row, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_share, share, -1, share.dtype)
        of_q.baddbmm_(of_scores, k, beta=0, alpha=scaling)
        of_k.baddbmm_(of_scores.transpose(1, 2), q, beta=0, alpha=scaling)
    return of_laid.index_select(0, layout.order_back).view(sum(layout.lengths), -1)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate heads, [tokens, heads, d], by their positions, in place; cos and sin are [tokens, d].

    The two numbers of a pair are d / 2 apart, as in transformers' Llama.
    """
    half = heads.shape[2] // 2
    (low, high), (low_cos, high_cos), (low_sin, high_sin) = (
        t.split(half, dim=-1) for t in (heads, cos[:, None], sin[:, None])
    )
    before = low.clone()
    low.mul_(low_cos).addcmul_(high, low_sin, value=-1)
    high.mul_(high_cos).addcmul_(before, high_sin)


def rotate_back(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate the gradient of rotated heads back into that of the original heads, in place."""
    rotate(heads, cos, -sin.roll(sin.shape[1] // 2, dims=1))


def _rows(ordered: torch.Tensor, layout: RowLayout) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each row's queries, [keys, heads / keys * length, d], keys and values, [keys, length, d]."""
    sizes = [heads * n for heads in (layout.heads, layout.keys, layout.keys) for n in layout.lengths]
    parts = [part.view(layout.keys, -1, ordered.shape[1]) for part in ordered.split(sizes)]
    rows = len(layout.lengths)
    return zip(parts[:rows], parts[rows : 2 * rows], parts[2 * rows :], strict=True)


def _queries(out: torch.Tensor, layout: RowLayout) -> Iterator[torch.Tensor]:
    """Yield the part of [heads * tokens, d] that belongs to each row, shaped as its queries."""
    for part in out.split([layout.heads * n for n in layout.lengths]):
        yield part.view(layout.keys, -1, out.shape[1])


def _scores(shares: torch.Tensor, layout: RowLayout) -> Iterator[torch.Tensor]:
    """Yield each row's part of a flat tensor of scores, as [keys, heads / keys * length, length]."""
    sizes = [layout.heads * n * n for n in layout.lengths]
    for part, n in zip(shares.split(sizes), layout.lengths, strict=True):
        yield part.view(layout.keys, -1, n)
