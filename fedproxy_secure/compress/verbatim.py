"""How much of an LLM a proxy holds bit for bit, counted by tensors and by the rows and columns of matrices.

A narrower proxy holds rows of the LLM's matrices, possibly in another order; a traced proxy holds all rows
of the embedding matrix but a few. Counting only whole tensors would miss these weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.models.llm import blocks_of


def verbatim_share(llm: nn.Module, proxy: nn.Module, plan: BlockPlan | None) -> float:
    """Return the share of the LLM's parameters that the proxy holds bit for bit, [0, 1].

    With a plan, blocks are compared with their originals and everything else by name. Without one, an LLM
    tensor is compared with every tensor of the proxy. Tied tensors count once. For a matrix that is not
    held whole, the rows (or columns, whichever are more) that the other matrix has anywhere count.

    Not guaranteed: that a small share means little is revealed. Numbers that differ in the last digit, or
    that are rotated, are not held verbatim but reveal as much.
    """
    tensors = {id(p): p for p in llm.parameters()}
    pairs = _all_pairs(llm, proxy) if plan is None else _pairs_in_place(llm, proxy, plan)
    held: dict[int, int] = {}
    for q, p in pairs:
        held[id(p)] = max(held.get(id(p), 0), numbers_held(q.detach(), p.detach()))
    return sum(held.values()) / sum(p.numel() for p in tensors.values())


def numbers_held(tensor: torch.Tensor, original: torch.Tensor) -> int:
    """Return how many numbers of a tensor are in another one, whole or by rows or columns.

    >>> whole = torch.arange(6.).view(3, 2)
    >>> numbers_held(whole, whole), numbers_held(whole[[2, 0]], whole), numbers_held(whole[:, 1:], whole)
    (6, 4, 3)
    """
    if tensor.dtype != original.dtype:
        return 0
    if torch.equal(tensor, original):
        return original.numel()
    if tensor.dim() != 2 or original.dim() != 2:
        return 0
    rows, columns = original.shape
    counts = [0]
    if tensor.shape[1] == columns:
        counts.append(_rows_held(tensor, original) * columns)
    if tensor.shape[0] == rows:
        counts.append(_rows_held(tensor.T, original.T) * rows)
    return max(counts)


def _rows_held(matrix: torch.Tensor, original: torch.Tensor) -> int:
    """Return how many rows of `original` are rows of `matrix`; both have rows of the same length."""
    return int(np.isin(_as_keys(original), _as_keys(matrix)).sum())


def _as_keys(matrix: torch.Tensor) -> np.ndarray:
    """Return one 64-bit hash of each row's bytes, uint64 [rows]; equal rows have equal hashes."""
    words = matrix.cpu().contiguous().view(torch.uint8).numpy()
    words = np.pad(words, ((0, 0), (0, -words.shape[1] % 8))).view(np.uint64)
    # a sum of products with fixed odd numbers, modulo 2^64: rows that differ collide once in 2^63
    factors = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64) * 2 + 1
    keys: np.ndarray = (words * factors).sum(axis=1, dtype=np.uint64)
    return keys


def _pairs_in_place(
    llm: nn.Module, proxy: nn.Module, plan: BlockPlan
) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return pairs of the proxy's and the LLM's tensor of the same place, if both have one."""
    by_name = dict(proxy.named_parameters())
    blocks, originals = blocks_of(proxy), blocks_of(llm)
    in_blocks = {id(p) for block in originals for p in block.parameters()}
    pairs = [
        (dict(blocks[i].named_parameters()).get(name), p)
        for i, at in enumerate(plan.kept)
        for name, p in originals[at].named_parameters()
    ]
    pairs += [(by_name.get(name), p) for name, p in llm.named_parameters() if id(p) not in in_blocks]
    return [(q, p) for q, p in pairs if q is not None]


def _all_pairs(llm: nn.Module, proxy: nn.Module) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
    tensors = list(proxy.parameters())
    return ((q, p) for p in llm.parameters() for q in tensors if q.dim() == p.dim())
