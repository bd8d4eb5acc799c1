"""The share of an LLM's weights that another model has, equal bit for bit.

Blocks are matched one to one, so no block plan is needed: anybody who holds both folders finds the same
share. The unit is the tensor: a tensor that differs in one bit from the LLM's file is not held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from fedproxy_secure.errors import ModelError

_BLOCK = re.compile(r"^(.*?)\.(\d+)\.(.+)$")  # the first number in a name is the block's
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Held:
    """The part of an LLM that another model holds bit for bit.

    Args:
        share: share of the LLM's parameters that are held, [0, 1].
        pairs: (block, LLM block) pairs of which more than half is held, in order.
        depth: number of the LLM's blocks.
    """

    share: float
    pairs: tuple[tuple[int, int], ...]
    depth: int

    @property
    def kept(self) -> tuple[int, ...]:
        """The LLM blocks that are held, increasing."""
        return tuple(sorted(j for _, j in self.pairs))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a Hugging Face folder by name.

    Raises `ModelError` if the folder holds no safetensors.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: holds no safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def held(mine: Tensors, llm: Tensors) -> Held:
    """Return the part of an LLM that another model's tensors hold; tied tensors must be in both once.

    Numbers are compared in the precision of the LLM's file: a model in memory may have been widened.
    """
    outside, my_blocks = _sorted(mine)
    llm_outside, blocks = _sorted(llm)
    shared = np.array([[_equal(a, b) for b in blocks] for a in my_blocks]).reshape(
        len(my_blocks), len(blocks)
    )
    pairs = [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-shared), strict=True)]
    parameters = sum(t.numel() for t in llm.values())
    count = _equal(outside, llm_outside) + sum(int(shared[i, j]) for i, j in pairs)
    most = [(i, j) for i, j in pairs if 2 * shared[i, j] > sum(t.numel() for t in blocks[j].values())]
    return Held(share=count / parameters, pairs=tuple(most), depth=len(blocks))


def _sorted(tensors: Tensors) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return the tensors outside the blocks by name, and each block's tensors by their names in it."""
    outside: dict[str, torch.Tensor] = {}
    blocks: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        match = _BLOCK.match(name)
        if match is None:
            outside[name] = value
        else:
            blocks.setdefault(int(match[2]), {})[match[3]] = value
    return outside, [blocks[i] for i in sorted(blocks)]


def _equal(a: Tensors, b: Tensors) -> int:
    """Return how many parameters of `b` are in tensors that `a` holds too, in the precision of `b`."""
    same = (n for n, t in b.items() if n in a and torch.equal(a[n].to(t), t))
    return sum(b[n].numel() for n in same)
