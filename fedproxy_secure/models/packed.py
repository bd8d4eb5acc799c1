"""Several sequences in one row of tokens: a model reads real tokens alone, no padding.

A batch that is padded to its longest sequence spends a third of its time on padding. Here the tokens of all
sequences stand one after the other, [1, tokens]. Positions begin anew with each sequence, and attention,
the only part of a transformer in which tokens meet, keeps sequences apart: queries, keys and values are
laid out in padded rows for attention alone.

A row may end in several branches: continuations of one trunk that do not see each other. The answers to a
question are branches, so that the question is read once.

    pack = pack_rows([Row(trunk=prompt, branches=(first, second))])
    logits = packed_logits(model, pack, keep)   # [len(keep), V]

Guarantees: `packed_logits` gives what the model gives for each sequence alone, up to rounding, for a model
of which `can_pack` is true: it has been tried on made-up tokens. Not guaranteed for a model that was made
to tell the trial from other inputs, so nothing that must hold against such a model may rest on this:
differentially private training runs each record alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

ATTENTION = "fedproxy_packed"  # our name among transformers' implementations of attention
LONGEST_DENSE = 512  # tokens of a row up to which attention's scores are kept, on the CPU
# what attention may be asked for beside a causal mask, and is not done here
_NOT_DONE = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")
_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens that are read once, and the continuations that follow them, each without the others."""

    trunk: Sequence[int]
    branches: Sequence[Sequence[int]] = ()

    @property
    def tokens(self) -> int:
        """The number of tokens, trunk and branches together."""
        return len(self.trunk) + sum(len(b) for b in self.branches)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows in one sequence of tokens, and where each token lies in padded rows.

    Args:
        ids: int64 [1, tokens]; row after row, in each its trunk and then its branches.
        positions: int64 [1, tokens]; of a token in its own sequence, from 0.
        starts: where each row begins among the tokens.
        shape: the padded rows' number and length.
        padded: int64 [rows * longest]; the token at each place of the padded rows, token 0 for padding.
        places: int64 [tokens]; the place of each token in the padded rows, flattened.
        visible: bool [rows, longest, longest]: whether a token sees another; None where every token sees
        all
            earlier ones of its row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: tuple[int, ...]
    shape: tuple[int, int]
    padded: torch.Tensor
    places: torch.Tensor
    visible: torch.Tensor | None


def pack_rows(rows: Sequence[Row], device: torch.device | str = "cpu") -> Pack:
    """Return rows as one sequence of tokens on `device`."""
    lengths = [row.tokens for row in rows]
    longest = max(lengths)
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    padded = torch.zeros((len(rows), longest), dtype=torch.int64)
    places = torch.cat([torch.arange(n) + r * longest for r, n in enumerate(lengths)])
    for r, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        padded[r, :length] = torch.arange(start, start + length)
    return Pack(
        ids=torch.tensor([token for row in rows for part in (row.trunk, *row.branches) for token in part])[
            None
        ].to(device),
        positions=torch.cat([_positions(row) for row in rows])[None].to(device),
        starts=tuple(starts),
        shape=(len(rows), longest),
        padded=padded.flatten().to(device),
        places=places.to(device),
        visible=_visible(rows, longest, device),
    )


def _positions(row: Row) -> torch.Tensor:
    trunk = len(row.trunk)
    return torch.cat(
        [torch.arange(trunk), *(torch.arange(trunk, trunk + len(branch)) for branch in row.branches)]
    )


def _visible(rows: Sequence[Row], longest: int, device: torch.device | str) -> torch.Tensor | None:
    """Return which token of a row sees which, or None if no row has more than one branch."""
    if all(len(row.branches) < 2 for row in rows):
        return None
    part = torch.full((len(rows), longest), -1)  # 0: the trunk, or padding behind it
    for r, row in enumerate(rows):
        sizes = [len(row.trunk), *(len(b) for b in row.branches)]
        part[r, : sum(sizes)] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    seen, seeing = part[:, None, :], part[:, :, None]
    earlier = torch.ones(longest, longest, dtype=torch.bool).tril()
    return (earlier & ((seen == seeing) | (seen == 0))).to(device)


def packed_logits(model: nn.Module, pack: Pack, keep: torch.Tensor) -> torch.Tensor:
    """Return the logits, [len(keep), V], after the tokens at `keep`, int64, of the packed sequence."""
    with _attending_packed(model):
        output = model(
            input_ids=pack.ids,
            position_ids=pack.positions,
            use_cache=False,
            logits_to_keep=keep,
            packing=pack,
        )
    return cast(torch.Tensor, output.logits[0])


def can_pack(model: nn.Module) -> bool:
    """Return whether the model gives the same logits for packed sequences as for each alone.

    It is tried once for each model, on made-up tokens.
    """
    known = _TRIED.get(model)
    if known is None:
        known = _TRIED[model] = _config(model).__dict__.get("sliding_window") is None and _agrees(model)
    return known


@torch.no_grad()
def _agrees(model: nn.Module) -> bool:
    device = next(model.parameters()).device
    tokens = torch.arange(5, 36) * 7 % min(200, _config(model).vocab_size)
    first, second, trunk, one, other = (part.tolist() for part in tokens.split([9, 5, 8, 6, 3]))
    training = model.training
    model.eval()
    try:
        rows = [Row(trunk=first), Row(trunk=second), Row(trunk=trunk, branches=(one, other))]
        pack = pack_rows(rows, device)
        together = packed_logits(model, pack, torch.arange(len(tokens), device=device)).float()
        alone = [
            model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float()
            for ids in (first, second, [*trunk, *one], [*trunk, *other])
        ]
    except Exception:  # whatever a model raises for what it does not know
        return False
    finally:
        model.train(training)
    alone[3] = alone[3][len(trunk) :]
    expected = torch.cat(alone)
    allowed = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.05
    return float((together - expected).abs().max()) <= allowed * max(1.0, float(expected.abs().max()))


def _config(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).config


@contextmanager
def _attending_packed(model: nn.Module) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    config = _config(model)
    before = config._attn_implementation
    config._attn_implementation = ATTENTION  # a name without a mask of its own: transformers makes none
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
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
    asked = [name for name in _NOT_DONE if others.get(name) is not None]
    if asked or attention_mask is not None:
        raise NotImplementedError(f"packed attention: has no {', '.join(asked) or 'mask'}")
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
    mask = _additive(pack, q.dtype)
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


def _additive(pack: Pack, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to scores: 0 where a token is seen, else -inf: [(rows,) longest, longest]."""
    visible = pack.visible
    if visible is None:
        visible = torch.ones(pack.shape[1], pack.shape[1], dtype=torch.bool).tril()
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))


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
