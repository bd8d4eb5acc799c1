"""Widen a proxy that has fewer channels or heads than its LLM; new ones do nothing until trained.

The sizes in an LLM's configuration are assumed to be public, like its depth. New channels and heads read at
random and write nothing: the columns with which they would write into the hidden state are zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from attacks.extraction.starts.fillers import WRITERS
from fedproxy_secure.models.llm import blocks_of

SIZES = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


def public_sizes(config: Any) -> dict[str, int]:
    """Return the sizes of `SIZES` that a configuration names."""
    named = {name: getattr(config, name, None) for name in SIZES}
    return {name: value for name, value in named.items() if isinstance(value, int)}


def sizes_in(folder: Path) -> dict[str, int]:
    """Return the sizes of `SIZES` that the configuration in a model's folder names."""
    from transformers import AutoConfig

    return public_sizes(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))


def narrower(proxy: nn.Module, sizes: Mapping[str, int]) -> bool:
    """Return whether one of the sizes is smaller in a proxy's configuration."""
    own_sizes = public_sizes(cast(Any, proxy).config)
    return any(own_sizes.get(name, size) < size for name, size in sizes.items())


def widened(proxy: nn.Module, sizes: Mapping[str, int], *, seed: int) -> nn.Module | None:
    """Return a copy of the proxy with the LLM's sizes and the proxy's outputs.

    Args:
        proxy: the proxy; all of its blocks have the sizes that its configuration names.
        sizes: the LLM's sizes, by their names in the configuration.
        seed: seed of the weights with which new channels and heads read.

    Returns:
        None if the proxy is not narrower, or if it cannot be widened: its blocks have another number of
        heads for each head of keys than the LLM's, or another part that does not fit.

    Guarantees: a model that is returned gives the proxy's logits up to rounding on some made-up tokens, on
    which it has been tried, and on all tokens where blocks write through maps of `WRITERS` alone.
    """
    if not narrower(proxy, sizes):
        return None
    source: Any = proxy
    config = copy.deepcopy(source.config)
    if getattr(config, "head_dim", None) is None and hasattr(config, "num_attention_heads"):
        config.head_dim = config.hidden_size // config.num_attention_heads
    for name, size in sizes.items():
        setattr(config, name, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        big = type(source)(config)
    wide = cast(nn.Module, big).to(next(proxy.parameters()).device).eval()
    if len(blocks_of(wide)) != len(blocks_of(proxy)) or not _fill(wide, proxy):
        return None
    return wide if _same(wide, proxy) else None


@torch.no_grad()
def _fill(wide: nn.Module, proxy: nn.Module) -> bool:
    """Put the proxy's numbers into the first rows and columns of each tensor; return whether all fit."""
    own_tensors = dict(proxy.named_parameters())
    for name, tensor in wide.named_parameters():
        old = own_tensors.get(name)
        if old is None or old.dim() != tensor.dim():
            return False
        if any(a > b for a, b in zip(old.shape, tensor.shape, strict=True)):
            return False
        if old.shape != tensor.shape and name.split(".")[-2] in WRITERS:
            tensor.zero_()
        tensor[tuple(slice(size) for size in old.shape)] = old.to(tensor.dtype)
    return True


@torch.inference_mode()
def _same(wide: nn.Module, proxy: nn.Module) -> bool:
    """Return whether two models give the same logits for a few tokens."""
    vocabulary = int(cast(Any, proxy).get_input_embeddings().weight.shape[0])
    ids = (torch.arange(24).view(2, 12) * 7 + 3) % vocabulary
    ids = ids.to(next(proxy.parameters()).device)
    a, b = (m(input_ids=ids, use_cache=False).logits.float() for m in (wide, proxy))
    return bool(torch.allclose(a, b, atol=1e-3 * max(1.0, float(b.abs().max()))))
