"""Size forward passes to fit in memory, and recompute activations in backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedproxy_secure.models.llm import blocks_of

PASS_TOKENS = 2048  # tokens of a pass; more make a matrix product no faster
LOGITS = 2**24  # most logits at once, 64 MiB as float32; with a large vocabulary they dominate memory


def vocabulary_size(model: nn.Module) -> int:
    """Return V, the model's number of logits for a token."""
    return int(_base(model).config.vocab_size)


def windows_a_pass(model: nn.Module, windows: torch.Tensor) -> int:
    """Return how many windows, int64 [n, tokens], to read at once if all their logits are needed."""
    tokens = windows.shape[1]
    return max(1, min(PASS_TOKENS, LOGITS // vocabulary_size(model)) // tokens)


@contextmanager
def checkpointed_blocks(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Keep only the inputs of blocks for the backward pass, which runs each block once more.

    This is gradient checkpointing (Chen et al. 2016, arXiv:1604.06174). Only the forward pass must be in
    the `with` block; the backward pass may follow it. Enter it after whatever else replaces how blocks run
    (`fast_blocks`). transformers' own checkpointing would not do: in the backward pass a packed model has
    its usual attention again, which mixes the rows of a pack.

    Args:
        model: a causal LM, or a PEFT model of one.
        on: whether to do anything.

    Guarantees: the same loss and gradients up to rounding, also with dropout, whose masks are drawn again
    from the same state.
    """
    base = _base(model)
    blocks: list[Any] = list(blocks_of(base)) if on else []
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.__dict__["forward"] = partial(_checkpointed, base.config, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = forward


def _checkpointed(config: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    attention = config._attn_implementation

    def run(*args: Any, **kwargs: Any) -> Any:
        now, config._attn_implementation = config._attn_implementation, attention
        try:
            return forward(*args, **kwargs)
        finally:
            config._attn_implementation = now

    return checkpoint(run, *args, use_reentrant=False, **kwargs)


def _base(model: Any) -> Any:
    """Return the causal LM itself, which a PEFT model wraps."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
