"""The size of a pass: large enough to be fast, small enough to fit in memory beside the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PASS_TOKENS = 2048  # tokens of a pass; more make a matrix product no faster
LOGITS = 2**24  # most logits at once, 64 MiB as float32; with a large vocabulary they dominate memory


def vocabulary_size(model: nn.Module) -> int:
    """Return V, the model's number of logits for a token."""
    inner: Any = model
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # PEFT's wrap theirs
    return int(base.config.vocab_size)


def windows_a_pass(model: nn.Module, windows: torch.Tensor) -> int:
    """Return how many windows, int64 [n, tokens], to read at once if all their logits are needed."""
    tokens = windows.shape[1]
    return max(1, min(PASS_TOKENS, LOGITS // vocabulary_size(model)) // tokens)
