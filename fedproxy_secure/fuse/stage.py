"""Stage 3 as the settings describe it: find the factor, add the lifted difference, align."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fedproxy_secure.config import PlugBackConfig
from fedproxy_secure.fuse.align import align
from fedproxy_secure.fuse.line_search import LineSearch, scale_for
from fedproxy_secure.fuse.plug_back import Lifts, add_deltas, times
from fedproxy_secure.models.adapters import block_deltas
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.runtime.progress import NoProgress, Progress


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The fused LLM, and how it was made.

    Args:
        llm: the model.
        search: the factor of the difference, and the factors tried.
        aligned_blocks: how many blocks alignment changed; 0 without alignment.
        aligned_windows: how many windows of public text alignment read, which may be fewer than the
            settings ask for; 0 without alignment.
    """

    llm: nn.Module
    search: LineSearch
    aligned_blocks: int
    aligned_windows: int


def fuse(
    settings: PlugBackConfig,
    llm: nn.Module,
    proxy: Lifts,
    tuned: nn.Module,
    *,
    windows: torch.Tensor,
    align_on: torch.Tensor,
    progress: Progress | None = None,
) -> Fused:
    """Make the fused LLM as the section `plug_back` says: factor, difference (Eq. 15), alignment.

    Args:
        llm: the owner's LLM; unchanged.
        proxy: lifts a difference of the proxy's blocks to the LLM's blocks.
        tuned: the tuned proxy, with the adapter that holds the difference.
        windows: token ids of public text for the line search, int64 [n, tokens].
        align_on: other such windows to align on; the first `align_windows` are read.
    """
    display = progress or NoProgress()
    lifted = proxy.lift(block_deltas(tuned))
    search = scale_for(settings, llm, tuned, lifted, windows, progress=display)
    fused = add_deltas(llm, times(lifted, search.scale))
    del lifted  # as large as the proxy
    aligned, text = 0, align_on[: settings.align_windows or 0] if proxy.kept else align_on[:0]
    if len(text):
        display.start("align", len(blocks_of(llm)))
        aligned = align(
            fused,
            llm,
            tuned,
            proxy.kept,
            text,
            on_block=lambda block: display.advance("align", note=f"block {block}"),
        )
        display.done("align")
    return Fused(llm=fused, search=search, aligned_blocks=aligned, aligned_windows=len(text))
