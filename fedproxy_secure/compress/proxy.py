"""Choose the blocks, build the proxy, save it as an ordinary Hugging Face model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedproxy_secure.compress.importance import block_influence, greedy_gradient_fidelity
from fedproxy_secure.compress.plan import (
    BlockPlan,
    blocks_to_remove,
    plan_by_importance,
    plan_uniform,
)
from fedproxy_secure.config import Importance
from fedproxy_secure.llm import blocks_of, with_blocks, without_library_bars
from fedproxy_secure.randomness import stream


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The small model that clients get, and how its blocks relate to the LLM's.

    `importance` has one value per LLM block; empty where the choice did not rest on one.
    """

    model: nn.Module
    plan: BlockPlan
    importance: tuple[float, ...]


def build_proxy(
    llm: nn.Module,
    *,
    remove_ratio: float,
    importance: Importance,
    windows: torch.Tensor,
    seed: int = 0,
) -> Proxy:
    """Stage 1: drop the least important blocks of `llm` (left unchanged) until `remove_ratio` is gone.

    Args:
        llm: causal LM.
        remove_ratio: share of the blocks to drop, [0, 1).
        importance: `block_influence` (the paper's), `gradient_fidelity`, `uniform` or `random`.
        windows: public token ids, int64 [n, tokens]; not read by `uniform` and `random`.
        seed: of `random`.

    Guarantees: the proxy's blocks, embeddings, norm and head are exact copies. So a client holds that
    share of the LLM's weights verbatim; nothing here hides them.

    Raises `ConfigError` if no block would be left.
    """
    blocks = len(blocks_of(llm))
    scores: list[float] = []
    keep = blocks - blocks_to_remove(blocks, remove_ratio)
    if importance == "uniform":
        plan = plan_uniform(blocks, remove_ratio)
    else:
        if importance == "block_influence":
            scores = block_influence(llm, windows)
        elif importance == "gradient_fidelity":
            _, scores = greedy_gradient_fidelity(llm, windows, keep)
        else:
            scores = stream(seed, "importance").random(blocks).tolist()
        plan = plan_by_importance(scores, remove_ratio)
    return Proxy(model=with_blocks(llm, list(plan.kept)).eval(), plan=plan, importance=tuple(scores))


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder (config, safetensors, tokenizer), flat, as a proxy's must be."""
    folder.mkdir(parents=True, exist_ok=True)
    with without_library_bars():
        model.save_pretrained(folder)  # type: ignore[operator]
    # several chat templates would go into a folder of their own
    tokenizer.save_pretrained(folder, save_jinja_files=not isinstance(tokenizer.chat_template, dict))
