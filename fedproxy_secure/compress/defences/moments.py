"""Second moments of what the linear maps of an LLM read on public text.

The cost of a weight's error is the error of the map's outputs. Over inputs x that is the trace of
(W - W') E[x x^T] (W - W')^T, so E[x x^T] is all that a compression must know of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.models.passes import windows_a_pass

MOMENTS_BYTES = 2**31  # most bytes of moments in memory; a larger LLM is read in several passes
DAMPING = 1e-4  # share of the mean diagonal that is added, so that directions no text used count too

Moments = Mapping[str, torch.Tensor]  # name of a map in its block -> float64 [in, in]


def linear_maps(block: nn.Module) -> dict[str, nn.Module]:
    """Return a block's linear maps by their names in it; GPT-2's transposed ones are among them."""
    from transformers.pytorch_utils import Conv1D

    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def is_transposed(linear: nn.Module) -> bool:
    """Return whether a linear map stores its weight as [in, out]."""
    return not isinstance(linear, nn.Linear)


def inputs_of(linear: Any) -> int:
    """Return the number of a linear map's inputs."""
    return int(linear.weight.shape[0 if is_transposed(linear) else 1])


def second_moments(llm: nn.Module, windows: torch.Tensor) -> Iterator[tuple[int, Moments]]:
    """Yield each block's index and E[x x^T] of its linear maps' inputs, in the blocks' order.

    Args:
        llm: causal LM; left as it is.
        windows: token ids of public text, int64 [n, tokens], n >= 1.

    The moments are damped, so that they are positive definite for any text. They are on the LLM's device.
    """
    blocks = blocks_of(llm)
    width = sum(8 * inputs_of(m) ** 2 for m in linear_maps(blocks[0]).values())
    together = max(1, MOMENTS_BYTES // width)
    for first in range(0, len(blocks), together):
        chosen = range(first, min(first + together, len(blocks)))
        yield from _moments_of(llm, windows, chosen)


@torch.no_grad()
def last_moment(llm: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Return the second moment of the last hidden states, which the head reads: float64 [h, h], damped.

    Args:
        llm: causal LM; left as it is.
        windows: token ids of public text, int64 [n, tokens], n >= 1.
    """
    inner: Any = llm
    device = next(llm.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for part in windows.split(windows_a_pass(llm, windows)):
        x = inner.base_model(input_ids=part.to(device), use_cache=False).last_hidden_state
        x = x.flatten(0, 1).float()
        total = total + (x.T @ x).double()
    return _damped(total / windows.numel())


@torch.no_grad()
def _moments_of(llm: nn.Module, windows: torch.Tensor, chosen: range) -> list[tuple[int, Moments]]:
    sums: dict[tuple[int, str], torch.Tensor] = {}
    handles = []
    for index in chosen:
        for name, linear in linear_maps(blocks_of(llm)[index]).items():

            def add(_module: nn.Module, args: Any, key: tuple[int, str] = (index, name)) -> None:
                x = args[0].detach().flatten(0, -2).float()
                product = (x.T @ x).double()
                sums[key] = product if key not in sums else sums[key].add_(product)

            handles.append(linear.register_forward_pre_hook(add))
    device = next(llm.parameters()).device
    try:
        for part in windows.split(windows_a_pass(llm, windows)):
            llm(input_ids=part.to(device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    moments: list[tuple[int, Moments]] = []
    for index in chosen:
        block_sums = {name: sums.pop((index, name)) for i, name in list(sums) if i == index}
        moments.append(
            (index, {name: _damped(total / windows.numel()) for name, total in block_sums.items()})
        )
    return moments


def _damped(moment: torch.Tensor) -> torch.Tensor:
    scale = float(moment.diagonal().mean())
    moment.diagonal().add_(DAMPING * scale if scale > 0 else 1.0)
    return moment
