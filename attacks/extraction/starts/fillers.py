"""Fillers: the blocks that an adversary puts where the proxy lacks blocks of the LLM, and their places.

`gaps[i]` is the number of blocks missing below proxy block i; the last entry is the number missing above
all of them.

    copy     the block below once more
    average  the mean of the blocks below and above
    zero     a copy whose maps into the residual stream are zero: it does nothing until it is trained
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from fedproxy_secure.evidence.estimate import Estimate, counted, proportion_interval
from fedproxy_secure.models.llm import blocks_of, with_blocks

Kind = Literal["copy", "average", "zero"]
Gaps = tuple[int, ...]
Start = tuple[nn.Module, list[nn.Module]]  # a model, and its fillers
# Maps that write into the residual stream, in Llama and its relatives, GPT-2, OPT and GPT-NeoX.
WRITERS = {"o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense", "dense_4h_to_h"}


def grown(proxy: nn.Module, gaps: Gaps, kind: Kind) -> Start:
    """Return a copy of the proxy with its gaps filled, and the fillers in order.

    Guarantees: with `zero` its outputs equal the proxy's where a block has maps of `WRITERS` at the end of
    attention and of the feed-forward part. Other blocks are copied as they are.
    """
    depth = len(blocks_of(proxy))
    if len(gaps) != depth + 1 or min(gaps) < 0:
        raise ValueError(
            f"gaps={gaps}: must be {depth + 1} counts >= 0, one below each block and one above"
        )
    sources: list[int] = []
    added: list[int] = []
    for gap, missing in enumerate(gaps):
        added += range(len(sources), len(sources) + missing)
        sources += [max(gap - 1, 0)] * missing
        sources += [gap] if gap < depth else []
    big = with_blocks(proxy, sources)
    blocks = blocks_of(big)
    for at in added:
        blocks[at] = copy.deepcopy(blocks[at])
    _number(big, sources)
    fillers = [blocks[at] for at in added]
    above = [gap for gap, missing in enumerate(gaps) for _ in range(missing)]
    for filler, gap in zip(fillers, above, strict=True):
        if kind == "average" and 0 < gap < depth:
            _average(filler, blocks_of(proxy)[gap])
        elif kind == "zero":
            _silence(filler)
    return big, fillers


def spread(present: int, missing: int) -> Gaps:
    """Return gaps that are as even as possible between the proxy's blocks.

    A proxy of a single block gets them below and above it.

    >>> spread(4, 4)
    (0, 1, 2, 1, 0)
    """
    if present == 1:
        return (missing // 2, missing - missing // 2)
    places = [round(i * (present + missing - 1) / (present - 1)) for i in range(present)]
    return (0, *(b - a - 1 for a, b in itertools.pairwise(places)), 0)


def shapes(present: int, missing: int) -> tuple[Gaps, ...]:
    """Return the gaps that kinds of proxies leave: spread evenly, or all beside the first block.

    The kind is public. If the first blocks are withheld (`withheld_bottom`), all missing blocks were above
    or below the block that replaces them.

    >>> shapes(4, 3)
    ((0, 1, 1, 1, 0), (0, 3, 0, 0, 0), (3, 0, 0, 0, 0))
    """
    none = (0,) * (present - 1)
    possible = (spread(present, missing), (0, missing, *none), (missing, 0, *none))
    return tuple(dict.fromkeys(possible))


def guess_gaps(proxy: nn.Module, missing: int, loss: Callable[[nn.Module], float]) -> Gaps:
    """Return a guess of where blocks are missing.

    One missing block after another goes where an average filler brings the lowest loss.

    Args:
        proxy: the proxy.
        missing: how many blocks are missing; the depth of an LLM is taken to be public.
        loss: loss of a model on held-out answers, such as KL.
    """
    gaps = [0] * (len(blocks_of(proxy)) + 1)
    for _ in range(missing):
        losses = []
        for gap in range(len(gaps)):
            trial = tuple(g + (i == gap) for i, g in enumerate(gaps))
            losses.append(loss(grown(proxy, trial, "average")[0]))
        gaps[losses.index(min(losses))] += 1
    return tuple(gaps)


def gaps_of(kept: Sequence[int], depth: int) -> Gaps:
    """Return the true gaps of a proxy whose blocks are those at `kept` of an LLM of `depth` blocks.

    >>> gaps_of((0, 1, 3, 7), 8)
    (0, 0, 1, 3, 0)
    """
    ends = [-1, *kept, depth]
    return tuple(b - a - 1 for a, b in itertools.pairwise(ends))


def gaps_found(guessed: Gaps, true: Gaps) -> list[Estimate]:
    """Return how many missing blocks the guess put into the right gap, and the share for even spreading."""
    missing = sum(true)

    def hits(gaps: Gaps) -> int:
        return sum(min(a, b) for a, b in zip(gaps, true, strict=True))

    even = hits(spread(len(true) - 1, missing))
    return [
        proportion_interval(
            hits(guessed), missing, metric="missing blocks put right", seeds=(0,), of="missing blocks"
        ),
        counted(
            even / missing, metric="missing blocks put right by even spreading", unit="share", seeds=(0,)
        ),
    ]


def _number(model: nn.Module, sources: Sequence[int]) -> None:
    config = cast(Any, model).config
    for name in ("layer_types", "no_rope_layers"):
        per_block = getattr(config, name, None)
        if isinstance(per_block, list) and len(per_block) < len(sources):
            setattr(config, name, [per_block[i] for i in sources])
    for index, block in enumerate(blocks_of(model)):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                cast(Any, module).layer_idx = index


@torch.no_grad()
def _average(filler: nn.Module, above: nn.Module) -> None:
    for own, other in zip(filler.parameters(), above.parameters(), strict=True):
        own.add_(other).mul_(0.5)


@torch.no_grad()
def _silence(filler: nn.Module) -> None:
    writers = [m for name, m in filler.named_modules() if name.rpartition(".")[2] in WRITERS]
    if len(writers) < 2:
        return
    for module in writers:
        for parameter in module.parameters(recurse=False):
            parameter.zero_()
