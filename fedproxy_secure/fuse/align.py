"""Align the fused LLM: let its hidden states move as tuning moved those of the proxy.

The plug-back adds the difference learnt in the proxy to the LLM's blocks. Between those blocks the LLM has
blocks that the proxy lacks. They were not tuned on the shifted hidden states, and undo part of the shift.
So the server compares the proxy before and after tuning, on public text and block by block. It then fits
the last linear map of the corresponding LLM block in closed form, so that the LLM's state shifts as much:

    target state = the LLM's state + (the tuned proxy's state - the proxy's state).

The paper's plug-back has no such step (Eq. 15 alone). It runs on the server alone and uses no record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fedproxy_secure.models.block_walk import BlockWalk
from fedproxy_secure.models.last_map import fit_last_map, last_map
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.passes import windows_a_pass

OnBlock = Callable[[int], None]  # LLM block that the walk has passed


@torch.no_grad()
def align(
    fused: nn.Module,
    llm: nn.Module,
    tuned: Any,
    kept: Sequence[int],
    windows: torch.Tensor,
    *,
    on_block: OnBlock | None = None,
) -> int:
    """Change the last maps of the fused LLM's blocks so that its hidden states move as the proxy's did.

    Args:
        fused: the LLM with the lifted difference; changed in place.
        llm: the owner's LLM; unchanged.
        tuned: the tuned proxy as a PEFT model; with its adapter off it is the proxy that clients got. Its
            hidden states are in the LLM's coordinates.
        kept: the LLM block that each proxy block stands for, in increasing order.
        windows: token ids of public text, int64 [n, tokens], without padding.
        on_block: called with each LLM block's index after it is done.

    Returns how many blocks were changed; 0 where hidden sizes differ.

    Guarantees: changing a block never takes its output further from the target state on these windows. Not
    guaranteed: that the LLM answers clients' tasks better, or stays close to what it was on other text.
    """
    windows = windows.to(next(llm.parameters()).device)
    batches = windows.split(windows_a_pass(llm, windows))
    llm_walk, fused_walk = BlockWalk.begin(llm, batches), BlockWalk.begin(fused, batches)
    proxy = tuned.get_base_model()
    tuned_walk, base_walk = BlockWalk.begin(proxy, batches), BlockWalk.begin(proxy, batches)
    if tuned_walk.states[0].shape != llm_walk.states[0].shape:
        return 0
    changed = done = 0
    for index, (_, end) in enumerate(pairwise((*kept, len(blocks_of(llm))))):
        tuned_walk.states = tuned_walk.through(index)
        with tuned.disable_adapter():
            base_walk.states = base_walk.through(index)
        for block in range(done, end):
            llm_walk.states = llm_walk.through(block)
            last_linear = last_map(fused_walk, block) if block == end - 1 else None
            if last_linear is None:
                fused_walk.states = fused_walk.through(block)
            else:
                shifts = zip(llm_walk.states, tuned_walk.states, base_walk.states, strict=True)
                targets = [state + (new - old) for state, new, old in shifts]
                fused_walk.states, _, improved = fit_last_map(fused_walk, block, last_linear, targets)
                changed += improved
            if on_block is not None:
                on_block(block)
        done = end
    return changed
