"""The closed-form half of healing: the last map of each block is fitted to the LLM's hidden states.

The block before a gap should pass on what the missing blocks would have made of its output. Ridge
regression finds the part of this that is linear in what the block's last map reads (in an MLP, the down
projection). It needs no gradient; the text is read once by the LLM and twice by the proxy. ReplaceMe
(Shopkhoev et al. 2025, arXiv 2505.02819) fits one linear map for each gap in this way. Here blocks are
fitted in order, each on the output of the fitted blocks before it, so that blocks behind a gap correct the
error that remains.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

import torch
from torch import nn

from fedproxy_secure.compress.plan import BlockPlan
from fedproxy_secure.models.block_walk import BlockWalk
from fedproxy_secure.models.last_map import fit_last_map, last_map, relative_error
from fedproxy_secure.models.passes import windows_a_pass

OnBlock = Callable[[int, float], None]  # proxy block that is done, relative error of what it passes on


@torch.no_grad()
def fit_blocks(
    proxy: nn.Module,
    llm: nn.Module,
    plan: BlockPlan,
    windows: torch.Tensor,
    *,
    blocks: Collection[int],
    on_block: OnBlock | None = None,
) -> int:
    """Change the last linear map of proxy blocks so that they pass on what the LLM has at their place.

    A block's place ends at the input of the next proxy block's original; the last block's place ends at
    the LLM's end. `fedproxy_secure.models.last_map` describes how a map is fitted.

    Args:
        proxy: causal LM whose blocks have the LLM's hidden size; changed in place.
        llm: the server's LLM; unchanged.
        plan: which LLM block each proxy block stands for.
        windows: token ids of public text, int64 [n, tokens], without padding.
        blocks: indices of the proxy blocks that may be changed.
        on_block: called after each block with its relative error, as `distance` defines it.

    Returns how many blocks were changed.

    Guarantees: changing a block never increases its error on these windows. A block that already passes on
    exactly what the LLM has, or has no linear map whose output has the hidden size, is not changed. Maps of
    `low_rank` keep their rank, those of `quantised` their bits.
    """
    windows = windows.to(next(llm.parameters()).device)
    batches = windows.split(windows_a_pass(proxy, windows))
    proxy_walk, llm_walk = BlockWalk.begin(proxy, batches), BlockWalk.begin(llm, batches)
    if proxy_walk.states[0].shape != llm_walk.states[0].shape:
        return 0
    done = changed = 0
    for index, (_, after) in enumerate(pairwise((*plan.kept, plan.llm_blocks))):
        for block in range(done, after):
            llm_walk.states = llm_walk.through(block)
        done = after
        last_linear = last_map(proxy_walk, index) if index in blocks else None
        if last_linear is not None:
            proxy_walk.states, error, improved = fit_last_map(
                proxy_walk, index, last_linear, llm_walk.states
            )
            changed += improved
        else:
            proxy_walk.states = proxy_walk.through(index)
            error = relative_error(proxy_walk.states, llm_walk.states)
        if on_block is not None:
            on_block(index, error / windows.numel())
    return changed
