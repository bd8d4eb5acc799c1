"""A line search on public text for the factor by which the lifted difference is added to the LLM.

A difference learnt in a proxy with fewer blocks moves the whole LLM less than it moved the proxy. So it is
multiplied by a factor s before it is added. The search walks from s = 1 to the nearest local optimum of how
closely the fused LLM's predictions on public text match those of the tuned proxy. It runs on the server
alone and uses no record. The paper's plug-back is s = 1 (Eq. 15).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedproxy_secure.config import PlugBackConfig
from fedproxy_secure.fuse.plug_back import Deltas, add_deltas, times
from fedproxy_secure.models.passes import windows_a_pass
from fedproxy_secure.runtime.progress import NoProgress, Progress

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
START = SCALES.index(1.0)
MOST_WINDOWS = 16  # most windows read for each factor


@dataclass(frozen=True, kw_only=True)
class LineSearch:
    """What a line search found.

    Args:
        scale: the factor.
        tried: the factors in the order tried, each with KL(tuned proxy || fused LLM), nats a token.
    """

    scale: float
    tried: tuple[tuple[float, float], ...] = ()


def scale_for(
    settings: PlugBackConfig,
    llm: nn.Module,
    tuned: nn.Module,
    lifted: Deltas,
    windows: torch.Tensor,
    *,
    progress: Progress | None = None,
) -> LineSearch:
    """Return the factor that the settings name, or search for one if they say `public_text`.

    Args:
        settings: the section `plug_back`.
        windows: token ids of public text, int64 [n, tokens]; the first `MOST_WINDOWS` are read.

    The other arguments are those of `line_search`.
    """
    if settings.scale != "public_text":
        return LineSearch(scale=settings.scale)
    display = progress or NoProgress()
    display.start("plug back", len(SCALES))
    search = line_search(
        llm,
        tuned,
        lifted,
        windows[:MOST_WINDOWS],
        on_scale=lambda scale, nats: display.advance(
            "plug back", note=f"factor {scale:g}: {nats:.3f} nats"
        ),
    )
    display.done("plug back")
    return search


def line_search(
    llm: nn.Module,
    tuned: nn.Module,
    lifted: Deltas,
    windows: torch.Tensor,
    *,
    on_scale: Callable[[float, float], None] | None = None,
) -> LineSearch:
    """Search for the best factor: walk from 1 through `SCALES` while the next factor is better.

    Args:
        llm, tuned: the owner's LLM and the tuned proxy, with the same vocabulary; not changed.
        lifted: the difference, lifted to the LLM's blocks (`Proxy.lift`).
        windows: token ids of public text, int64 [n, tokens], n >= 1.
        on_scale: called with each factor tried and its divergence.

    Guarantees: the factor is 1 unless another one is better than 1. It depends only on the models and the
    public text. Not guaranteed: that the LLM answers clients' tasks better with it.
    """
    tried: dict[int, float] = {}

    def value(index: int) -> float:
        if index not in tried:
            fused = add_deltas(llm, times(lifted, SCALES[index]))
            # runs the tuned proxy again: its predictions of all windows would not fit beside large models
            tried[index] = divergence(tuned, fused, windows)
            if on_scale is not None:
                on_scale(SCALES[index], tried[index])
        return tried[index]

    best = START
    for step in (1, -1):
        while 0 <= best + step < len(SCALES) and value(best + step) < value(best):
            best += step
        if best != START:
            break
    return LineSearch(scale=SCALES[best], tried=tuple((SCALES[i], nats) for i, nats in tried.items()))


@torch.inference_mode()
def divergence(target: nn.Module, model: nn.Module, windows: torch.Tensor) -> float:
    """Return KL(target || model) of next-token distributions, nats, averaged over tokens."""
    total = 0.0
    for part in windows.split(windows_a_pass(target, windows)):
        targets, predictions = (
            m(input_ids=part.to(next(m.parameters()).device), use_cache=False)
            .logits.float()
            .log_softmax(-1)
            for m in (target, model)
        )
        total += float(nn.functional.kl_div(predictions, targets, reduction="sum", log_target=True))
    return total / windows.numel()
