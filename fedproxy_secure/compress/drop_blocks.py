"""`drop_blocks`: leave out the LLM's least important blocks (the paper's stage 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedproxy_secure.compress.base import Compression
from fedproxy_secure.config import CompressConfig, Importance

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedproxy_secure.compress.proxy import Proxy


class DropBlocks(Compression):
    """A proxy of the most important blocks, as exact copies; differences are added to their originals."""

    name = "drop_blocks"
    title = "blocks dropped"

    def whole(self, compress: CompressConfig) -> str:
        return "" if compress.remove_ratio else "as it is"

    def build(self, llm: nn.Module, compress: CompressConfig, *, windows: torch.Tensor, seed: int) -> Proxy:
        return build_proxy(
            llm,
            remove_ratio=compress.remove_ratio,
            importance=compress.importance,
            windows=windows,
            seed=seed,
            share=True,
        )


def build_proxy(
    llm: nn.Module,
    *,
    remove_ratio: float,
    importance: Importance,
    windows: torch.Tensor,
    seed: int = 0,
    share: bool = False,
) -> Proxy:
    """Drop the share `remove_ratio` of the blocks of `llm`, the least important ones; `llm` is unchanged.

    Args:
        llm: causal LM.
        remove_ratio: share of the blocks to drop, [0, 1).
        importance: `block_influence` (the paper's), `divergence`, `gradient_fidelity`, `uniform` or
            `random`. The second and third take minutes for a large LLM, once: their result is kept in the
            cache folder.
        windows: public token ids, int64 [n, tokens]; not read by `uniform` and `random`.
        seed: seed of the importance `random`.
        share: whether the proxy shares the LLM's memory; its weights must then not be changed in place.

    Guarantees: the proxy's blocks, embeddings, norm and head are exact copies. So a client holds that
    share of the LLM's weights verbatim; nothing here hides them.

    Raises `ConfigError` if no block would be left.
    """
    from fedproxy_secure.compress.importance import (
        block_influence,
        greedy_divergence,
        greedy_gradient_fidelity,
    )
    from fedproxy_secure.compress.importance_memo import remembered
    from fedproxy_secure.compress.plan import blocks_to_remove, plan_by_importance, plan_uniform
    from fedproxy_secure.compress.proxy import Proxy
    from fedproxy_secure.models.llm import blocks_of, with_blocks
    from fedproxy_secure.runtime.randomness import stream

    blocks = len(blocks_of(llm))
    scores: list[float] = []
    keep = blocks - blocks_to_remove(blocks, remove_ratio)
    if importance == "uniform":
        plan = plan_uniform(blocks, remove_ratio)
    else:
        if importance == "block_influence":
            scores = block_influence(llm, windows)
        elif importance == "divergence":
            scores = remembered(greedy_divergence, llm, windows, keep)
        elif importance == "gradient_fidelity":
            scores = remembered(greedy_gradient_fidelity, llm, windows, keep)
        else:
            scores = stream(seed, "importance").random(blocks).tolist()
        plan = plan_by_importance(scores, remove_ratio)
    return Proxy(
        model=with_blocks(llm, list(plan.kept), share=share).eval(), plan=plan, importance=tuple(scores)
    )


DROP_BLOCKS = DropBlocks()
