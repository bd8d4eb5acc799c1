"""Checks of a proxy's weights: marks of a proxy that was made to leak rather than to be trained.

A server that makes a proxy leak needs numbers of an update that only chosen records move (Fowl et al. 2022,
arXiv 2110.13057; PEFTLeak, arXiv 2506.04453). The simplest way there is to silence everything else: zero
embeddings, blocks of zeros, one row that outweighs all others, a direction that one token has to itself.

    rows        tokens whose embedding is zero, next to zero, or equal to another token's
    outliers    the longest row of each matrix, over the median row
    blocks      the root mean square of a matrix, compared between blocks
    leverage    how much of a direction of the embedding space one token has to itself

Measured on honest proxies, and refused above (`python -m tests.bench.trapped_proxy`):

                                     rows     outliers   blocks   leverage
    embedded LLM, 2 to 8 blocks      0        2.4        2.0      .45
    SmolLM2-135M, 8 to 30 blocks     .0002    9.7        6.2      .05
    random Llama of the tests        .004     1.7        1.1      .08
    refused above                    .05      100        100      .9

Guarantees: none of these marks is above its bound. Not guaranteed: that the proxy is an honest one. Who
knows the bounds can stay below them: a trap in an MLP's neurons does, and reads every token (attack A10).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import Tokenizer, block_list_name
from fedproxy_secure.runtime.quoting import quoted

MOST_ROWS_ALIKE = 0.05  # of the tokenizer's tokens; published models reserve less than 1 % of theirs
NEXT_TO_ZERO = 0.01  # of the median row's length
MOST_OUTLIER = 100.0
MOST_BETWEEN_BLOCKS = 100.0
MOST_LEVERAGE = 0.9  # of 1, which is a direction that no other token has any part in
LEAST_TOKENS = 2  # times the embedding's width; below, tokens have directions to themselves by nature
_PIECE = 2**14  # rows taken in one go


def check_weights(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Check a proxy's weights, on the CPU, for marks of one that was made to leak.

    Every weight must be finite. Takes some 0.01 s for the embedded LLM's proxies and 2 s for SmolLM2-135M.

    Raises `ModelError` for a mark above its bound.
    """
    embedding = cast(Any, model).get_input_embeddings().weight.detach()
    tokens = embedding[: max(tokenizer.get_vocab().values()) + 1]
    alike = rows_alike(tokens)
    if not alike <= MOST_ROWS_ALIKE:
        raise ModelError(
            f"proxy: {alike:.0%} of its tokens have a zero embedding or another token's embedding; must be "
            f"at most {MOST_ROWS_ALIKE:.0%}, or updates would reveal which other tokens are in records"
        )
    largest, where = max(outliers(model), default=(0.0, ""))
    if not largest <= MOST_OUTLIER:
        raise ModelError(
            f"proxy: {quoted(where)} has a row {largest:.3g} times as long as its median row; must be at "
            f"most {MOST_OUTLIER:g} times, or few numbers decide what it computes"
        )
    ratio, where = max(between_blocks(model), default=(0.0, ""))
    if not ratio <= MOST_BETWEEN_BLOCKS:
        raise ModelError(
            f"proxy: {quoted(where)} is {ratio:.3g} times as large in one block as in another; must be at "
            f"most {MOST_BETWEEN_BLOCKS:g} times, as in the blocks of one LLM"
        )
    if len(tokens) >= LEAST_TOKENS * tokens.shape[1]:
        highest = float(leverage(tokens).max())
        if not highest <= MOST_LEVERAGE:
            raise ModelError(
                f"proxy: one token has leverage {highest:.1%} on a direction of the embeddings; must be at "
                f"most {MOST_LEVERAGE:.0%}, or updates would reveal whether it is in records"
            )


def rows_alike(rows: torch.Tensor) -> float:
    """Return the share of rows [n, h], from 0 to 1, that are nearly zero or repeat an earlier row."""
    lengths = _lengths(rows)
    small = lengths <= NEXT_TO_ZERO * lengths.median()
    kept = rows[~small].float().numpy()
    distinct = len({hashlib.sha256(row).digest() for row in kept})
    return 1.0 - distinct / len(rows)


def outliers(model: nn.Module) -> Iterator[tuple[float, str]]:
    """Yield for each matrix the length of its longest row over that of its median row, and its name."""
    for name, matrix in _matrices(model):
        lengths = _lengths(matrix)
        longest, median = float(lengths.max()), float(lengths.median())
        if longest > 0:
            yield _ratio(longest, median), name


def between_blocks(model: nn.Module) -> Iterator[tuple[float, str]]:
    """Yield for each matrix of a block its largest root mean square over the smallest, and its name."""
    blocks = f"{block_list_name(model)}."
    sizes: dict[str, list[float]] = {}
    for name, matrix in _matrices(model):
        if name.startswith(blocks):
            within = name.removeprefix(blocks).partition(".")[2]
            sizes.setdefault(within, []).append(float(_lengths(matrix).square().mean().sqrt()))
    for within, found in sizes.items():
        if max(found) > 0:
            yield _ratio(max(found), min(found)), within


def leverage(rows: torch.Tensor) -> torch.Tensor:
    """Return each row's leverage, float32 [n] from 0 to 1, of rows [n, h] brought to unit length.

    That is the largest share, over all directions, that a row has of the sum of squares along a direction;
    of n rows it is h/n on average. Rows of zeros have 0.
    """
    width = rows.shape[1]
    products = torch.zeros(width, width, dtype=torch.float64)
    for piece in _unit(rows):
        products += (piece.T @ piece).double()
    values, vectors = torch.linalg.eigh(products)
    # what rounding leaves of directions that no row has; they are nobody's
    kept = values > values.max() * width * torch.finfo(torch.float32).eps
    whiten = (vectors[:, kept] / values[kept].sqrt()).float()
    return torch.cat([(piece @ whiten).square().sum(dim=1) for piece in _unit(rows)])


def _ratio(larger: float, smaller: float) -> float:
    """Return the ratio, infinite if the smaller is zero or the larger too large to square."""
    return larger / smaller if smaller > 0 and math.isfinite(larger) else math.inf


def _unit(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    for piece in rows.split(_PIECE):
        yield nn.functional.normalize(piece.float(), dim=1)


def _matrices(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and parameter.numel():
            yield name, parameter.detach().flatten(end_dim=-2)


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    """Return the lengths of rows [n, h], float64 [n], without overflow."""
    return torch.cat([torch.linalg.vector_norm(p.double(), dim=1) for p in rows.split(_PIECE)])
