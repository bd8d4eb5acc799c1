"""How much a model reads in one pass: enough to be fast, little enough to fit beside the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PASS_TOKENS = 2048  # read at once; more make a matrix product no faster
LOGITS = 2**24  # held at once: 64 MiB as float32. With a large vocabulary they outweigh all else


def vocabulary_size(model: nn.Module) -> int:
    """Return V, the number of logits that the model gives for a token."""
    inner: Any = model
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # PEFT's wrap theirs
    return int(base.config.vocab_size)


def windows_a_pass(model: nn.Module, windows: torch.Tensor) -> int:
    """Return how many windows, int64 [n, tokens], to read at once where all their logits are wanted."""
    tokens = windows.shape[1]
    return max(1, min(PASS_TOKENS, LOGITS // vocabulary_size(model)) // tokens)
