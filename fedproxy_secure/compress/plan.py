"""The block plan: which LLM block each proxy block is a copy of, and the way back.

Stage 3 of FedProxy (Eq. 15) puts tuned proxy blocks at the places that the plan names. `lift` does the
same for differences, which stays correct if the proxy's blocks are not exact copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fedproxy_secure.errors import ConfigError

BlockTensors = Mapping[tuple[int, str], torch.Tensor]  # (block, name inside the block) -> tensor


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """A block plan: proxy block i is LLM block `kept[i]`.

    >>> plan = BlockPlan(llm_blocks=4, kept=(0, 3))
    >>> plan.to_llm(1), plan.dropped
    (3, (1, 2))
    """

    llm_blocks: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.kept:
            raise ConfigError("block plan: must keep at least one block")
        if list(self.kept) != sorted(set(self.kept)):
            raise ConfigError(f"block plan {list(self.kept)}: must be increasing, without repeats")
        if self.kept[0] < 0 or self.kept[-1] >= self.llm_blocks:
            raise ConfigError(
                f"block plan {list(self.kept)}: must lie in 0..{self.llm_blocks - 1}, the LLM's blocks"
            )

    @property
    def dropped(self) -> tuple[int, ...]:
        """The LLM blocks that the proxy lacks."""
        return tuple(i for i in range(self.llm_blocks) if i not in self.kept)

    @property
    def before_gaps(self) -> tuple[int, ...]:
        """The proxy blocks after which the LLM has blocks that the proxy lacks.

        None precedes blocks that are missing at the front.

        >>> BlockPlan(llm_blocks=6, kept=(0, 3, 4)).before_gaps
        (0, 2)
        >>> BlockPlan(llm_blocks=6, kept=(2, 3, 4, 5)).before_gaps
        ()
        """
        following = (*self.kept[1:], self.llm_blocks)
        return tuple(
            i for i, (at, after) in enumerate(zip(self.kept, following, strict=True)) if after > at + 1
        )

    def to_llm(self, proxy_block: int) -> int:
        """Return the LLM block that `proxy_block` is a copy of."""
        return self.kept[proxy_block]

    def lift(self, tensors: BlockTensors) -> dict[tuple[int, str], torch.Tensor]:
        """Return tensors of proxy blocks (weights or differences) under their LLM blocks' indices."""
        return {(self.to_llm(block), name): value for (block, name), value in tensors.items()}


def blocks_to_remove(llm_blocks: int, remove_ratio: float) -> int:
    """Return how many of `llm_blocks` a `remove_ratio` removes.

    Raises `ConfigError` if no block would stay, or if a ratio above 0 would remove none.

    >>> blocks_to_remove(8, 0.25), blocks_to_remove(8, 0.5)
    (2, 4)
    """
    removed = round(remove_ratio * llm_blocks)
    if removed >= llm_blocks:
        raise ConfigError(
            f"compress.remove_ratio={remove_ratio}: removes all {llm_blocks} blocks; at least one must stay"
        )
    if removed == 0 and remove_ratio > 0:
        raise ConfigError(
            f"compress.remove_ratio={remove_ratio}: removes none of {llm_blocks} blocks; must be 0, or "
            f"above {0.5 / llm_blocks:g}"
        )
    return removed


def plan_by_importance(importance: Sequence[float], remove_ratio: float) -> BlockPlan:
    """Keep the most important blocks in their original order; ties keep the earlier block."""
    blocks = len(importance)
    keep = blocks - blocks_to_remove(blocks, remove_ratio)
    ranked = sorted(range(blocks), key=lambda i: (-importance[i], i))
    return BlockPlan(llm_blocks=blocks, kept=tuple(sorted(ranked[:keep])))


def plan_uniform(blocks: int, remove_ratio: float) -> BlockPlan:
    """Keep blocks at even distances, including the first and the last (Offsite-Tuning's emulator)."""
    keep = blocks - blocks_to_remove(blocks, remove_ratio)
    if keep == 1:
        return BlockPlan(llm_blocks=blocks, kept=(0,))
    kept = tuple(round(i * (blocks - 1) / (keep - 1)) for i in range(keep))
    return BlockPlan(llm_blocks=blocks, kept=kept)
