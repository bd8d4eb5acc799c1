"""What a model writes: greedy continuations, and how long two models write the same.

Extraction that is judged by distributions or by accuracy alone can look better than the text that a stolen
model writes (arXiv 2602.01997), because one wrong token changes all that follow. A continuation therefore
counts up to the first token that differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.base import Budget

PROMPT, WRITTEN = 16, 16  # tokens of a prompt, and of its continuation


@torch.no_grad()
def greedy(
    model: nn.Module, prompts: np.ndarray, *, tokens: int = WRITTEN, budget: Budget | None = None
) -> np.ndarray:
    """Return each prompt's continuation by the likeliest token at a time, int64 [n, tokens].

    Args:
        model: a causal LM.
        prompts: token ids, int64 [n, k], k >= 1; n may be 0.
        tokens: how many tokens to write, >= 1.
        budget: checked before each token.
    """
    from transformers import DynamicCache

    if len(prompts) == 0:
        return np.zeros((0, tokens), dtype=np.int64)
    device = next(model.parameters()).device
    last, cache, written = torch.from_numpy(prompts).to(device), DynamicCache(), []
    for _ in range(tokens):
        if budget is not None:
            budget.check()
        out: Any = model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        last = out.logits[:, -1:].argmax(-1)
        written.append(last.cpu())
    joined: np.ndarray = torch.cat(written, dim=1).numpy()
    return joined


def agreed(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the share of each continuation before the first difference, float64 [n], in [0, 1].

    Args:
        mine, theirs: int64 [n, tokens].

    >>> agreed(np.array([[1, 2, 3, 4], [9, 2, 3, 4]]), np.array([[1, 2, 0, 4], [1, 2, 3, 4]]))
    array([0.5, 0. ])
    """
    same = np.minimum.accumulate(mine == theirs, axis=1)
    shares: np.ndarray = same.mean(axis=1)
    return shares
