"""How far a proxy is from its LLM on a batch of text: the loss of healing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from fedproxy_secure.compress.block_states import predictions_and_states
from fedproxy_secure.compress.plan import BlockPlan


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Sums over tokens, scalar tensors.

    Args:
        kl: KL(LLM || proxy) of next-token distributions, nats.
        states: relative error of hidden states, averaged over the proxy's blocks: the squared distance of
            a block's output from the LLM's hidden state at the same place, divided by the latter's squared
            length. The place is the input of the next proxy block's original; for the last block it is the
            LLM's end. 0 if the two models' states cannot be compared.
    """

    kl: torch.Tensor
    states: torch.Tensor


def distance(
    proxy: nn.Module,
    llm: nn.Module,
    plan: BlockPlan | None,
    ids: torch.Tensor,
    *,
    checkpointing: bool = False,
) -> Distance:
    """Compare `proxy` with `llm`, which gets no gradients.

    Args:
        plan: which LLM block each proxy block stands for; with None, states are not compared.
        ids: token ids, int64 [n, tokens], without padding.
        checkpointing: whether a backward pass runs the proxy's blocks once more (`checkpointed_blocks`).
    """
    ids = ids.to(next(llm.parameters()).device)
    with torch.no_grad():
        llm_predictions, llm_states = predictions_and_states(llm, ids)
    predictions, states = predictions_and_states(proxy, ids, checkpointing=checkpointing)
    kl = nn.functional.kl_div(predictions, llm_predictions, reduction="sum", log_target=True)
    if plan is None or states[0].shape != llm_states[0].shape:
        return Distance(kl=kl, states=torch.zeros_like(kl))
    targets = [llm_states[after - 1] for _, after in pairwise((*plan.kept, plan.llm_blocks))]
    return Distance(kl=kl, states=_relative_error(states, targets))


def _relative_error(states: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ||state - target||^2 / ||target||^2, summed over tokens and averaged over blocks; a scalar."""
    errors = [
        ((state - target).square().sum(-1) / target.square().sum(-1)).sum()
        for state, target in zip(states, targets, strict=True)
    ]
    return torch.stack(errors).mean()
