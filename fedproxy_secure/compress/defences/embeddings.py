"""Embedding matrices of lower rank, for `low_rank`.

Most LLMs use one matrix E, [V, h], twice: a row is looked up for each token read, and all rows are
multiplied with the last hidden state to predict the next token. Both uses count. E becomes
E S U U^T S^-1, where S S^T is the second moment of the last hidden states and U the first directions of
E S, each row weighted by how often its token occurs in public text. `make bench-embeddings` compares this
with weighting the rows alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedproxy_secure.compress.defences.moments import last_moment

FLOOR = 0.01  # share of the mean moment that every direction gets, also one that no text used


def reduce_embeddings(llm: nn.Module, model: nn.Module, windows: torch.Tensor, rank: int) -> None:
    """Lower the rank of a model's embedding matrix and of its head, in place.

    Args:
        llm: the LLM that `model` is a copy of.
        model: a copy of the LLM (`sharing_copy`), which gets matrices of its own.
        windows: token ids of public text, int64 [n, tokens].
        rank: at most h.
    """
    inner: Any = model
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    counts = torch.bincount(windows.flatten(), minlength=len(embedding.weight))
    frequency = ((counts + 1) / (counts + 1).sum() + 1 / len(counts)).to(embedding.weight.device)
    moment = last_moment(llm, windows)
    if head.weight is embedding.weight:
        embedding.weight.data = of_rank(embedding.weight, rank, moment, frequency)
        return
    plain = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    embedding.weight.data = of_rank(embedding.weight, rank, plain, frequency)
    head.weight.data = of_rank(head.weight, rank, moment, torch.ones_like(frequency))


@torch.no_grad()
def of_rank(weight: torch.Tensor, rank: int, moment: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """Return the best approximation E P of a matrix, [V, h], at a rank, in the matrix's dtype.

    Args:
        weight: the matrix E.
        rank: at most h.
        moment: S S^T, what errors of a row cost by direction, [h, h]; its scale has no effect.
        frequency: what errors of each row cost, positive, [V].

    Guarantees: no E P with P of that rank has a smaller sum over rows of
    frequency (e - e P) S S^T (e - e P)^T, where 1 % of its mean was added to S S^T in every direction.
    """
    matrix = weight.detach().double()
    metric = moment.double() * (len(moment) / moment.diagonal().sum())
    root = torch.linalg.cholesky(metric + FLOOR * torch.eye(len(metric), device=metric.device))
    turned = matrix @ root
    _, directions = torch.linalg.eigh((turned * frequency.double()[:, None]).T @ turned)
    leading = directions[:, -rank:]
    # turned U U^T root^-1; solving is more precise than multiplying with an inverse
    inverse = torch.linalg.solve_triangular(root, leading.T, upper=False, left=False)
    projected: torch.Tensor = ((turned @ leading) @ inverse).to(weight.dtype)
    return projected
