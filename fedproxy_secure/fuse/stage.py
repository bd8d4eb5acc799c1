"""Stage 3 as the settings say: find the factor, add the lifted difference, align."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from fedproxy_secure.config import PlugBackConfig
from fedproxy_secure.fuse.align import align
from fedproxy_secure.fuse.line_search import LineSearch, scale_for
from fedproxy_secure.fuse.plug_back import Lifts, plug_back, times
from fedproxy_secure.models.adapters import block_deltas
from fedproxy_secure.models.llm import blocks_of
from fedproxy_secure.runtime.progress import NoProgress, Progress


class StandsFor(Lifts, Protocol):
    """A proxy that knows for which blocks of the LLM its own stand."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The LLM block whose hidden states each proxy block passes on; () where they are others."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The fused LLM, and how it was made.

    Args:
        llm: the model.
        search: the factor of the difference, and what was tried.
        aligned_blocks: how many blocks were changed to align it; 0 without.
    """

    llm: nn.Module
    search: LineSearch
    aligned_blocks: int


def fuse(
    settings: PlugBackConfig,
    llm: nn.Module,
    proxy: StandsFor,
    tuned: nn.Module,
    *,
    windows: torch.Tensor,
    align_on: torch.Tensor,
    progress: Progress | None = None,
) -> Fused:
    """Make the fused LLM as the section `plug_back` says: factor, difference (Eq. 15), alignment.

    Args:
        llm: the owner's LLM; unchanged.
        proxy: lifts the difference that its adapter taught `tuned` to the LLM's blocks.
        windows: token ids of public text for the line search, int64 [n, tokens].
        align_on: others to align on; the first `align_windows` are read.
    """
    shown = progress or NoProgress()
    search = scale_for(settings, llm, proxy, tuned, windows, progress=shown)
    fused = plug_back(llm, proxy, times(block_deltas(tuned), search.scale))
    aligned, text = 0, align_on[: settings.align_windows or 0]
    if len(text) and proxy.kept:
        shown.start("align", len(blocks_of(llm)))
        aligned = align(
            fused,
            llm,
            tuned,
            proxy.kept,
            text,
            on_block=lambda block: shown.advance("align", note=f"block {block}"),
        )
        shown.done("align")
    return Fused(llm=fused, search=search, aligned_blocks=aligned)
