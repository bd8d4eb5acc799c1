"""Embedding matrices of lower rank, for `low_rank`.

Most LLMs use one matrix E, [V, h], twice: a row is looked up for a token that is read, and all rows are
multiplied with the last hidden state to predict the next. Both uses count. E becomes E S U U^T S^-1, where
S S^T is the second moment of those hidden states and U the first directions of E S, each row weighed by how
often public text has its token. `make bench-embeddings` compares this with weighing the rows alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedproxy_secure.compress.defences.moments import last_moment

FLOOR = 0.01  # of the mean direction, for what no text used


def reduce_embeddings(llm: nn.Module, model: nn.Module, windows: torch.Tensor, rank: int) -> None:
    """Lower the rank of a model's embedding matrix and of its head, in place.

    Args:
        llm: what `model` is made from.
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
    """Return a matrix, [V, h], at a rank, in its own dtype.

    Args:
        weight: the matrix E.
        rank: at most h.
        moment: S S^T, what errors of a row cost by direction, [h, h]; scale is of no effect.
        frequency: what errors of each row cost, positive, [V].

    Guarantees: of all E P with P of that rank, it has the least sum over rows of
    frequency (e - e P) S S^T (e - e P)^T, where S S^T was given 1 % of its mean in every direction.
    """
    matrix = weight.detach().double()
    metric = moment.double() * (len(moment) / moment.diagonal().sum())
    root = torch.linalg.cholesky(metric + FLOOR * torch.eye(len(metric), device=metric.device))
    turned = matrix @ root
    _, directions = torch.linalg.eigh((turned * frequency.double()[:, None]).T @ turned)
    kept = directions[:, -rank:]
    # turned U U^T root^-1, as a solution: numbers as good as the matrix allows
    back = torch.linalg.solve_triangular(root, kept.T, upper=False, left=False)
    projected: torch.Tensor = ((turned @ kept) @ back).to(weight.dtype)
    return projected
