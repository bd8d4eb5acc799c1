"""How much of an LLM is in another model: identical weights, similar weights, similar hidden states.

Blocks are matched one to one, so no block plan is needed: the share is what anybody finds who holds both
folders. The unit is the tensor: a tensor that differs in one bit of the LLM's file is not held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from attacks.extraction.lessons import newborn
from attacks.extraction.texts import held_out_texts
from fedproxy_secure.compress.fidelity import linear_cka
from fedproxy_secure.errors import ModelError
from fedproxy_secure.models.llm import blocks_of, load_llm

_BLOCK = re.compile(r"^(.*?)\.(\d+)\.(.+)$")  # the first number in a name is the block's
Tensors = Mapping[str, torch.Tensor]
PROMPTS, PROMPT_TOKENS = 200, 32


@dataclass(frozen=True, kw_only=True)
class Held:
    """What of an LLM another model holds bit for bit.

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


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The likeness of a suspect to an LLM, beside that of models with random weights.

    Args:
        verbatim: share of the LLM's parameters that the suspect holds bit for bit, [0, 1].
        cosine: mean cosine of matching weight matrices.
        cka: mean linear CKA of matching blocks' outputs.
        null_cosine, null_cka: the same for models of the suspect's shape with random weights. Training on
            the same text would raise their CKA, not their cosine.
    """

    verbatim: float
    cosine: float
    cka: float
    null_cosine: tuple[float, ...]
    null_cka: tuple[float, ...]


def verbatim_share(proxy: Path, llm: Path) -> float:
    """Return the share of the LLM's parameters that the proxy's folder holds bit for bit, in [0, 1].

    Only safetensors are read. Raises `ModelError` for a folder without any.
    """
    return held(read_tensors(proxy), read_tensors(llm)).share


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
    """Return what of an LLM another model's tensors hold; tied tensors must stand in both once.

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


def lineage(suspect: Path, llm: Path, *, nulls: int = 3, prompts: int = PROMPTS, seed: int = 0) -> Lineage:
    """Compare a suspect with an LLM, beside models of the suspect's shape with random weights.

    A suspect descends from the LLM if it is much more like it than the random models are. CKA is taken on
    `prompts` texts: the demo world's stories where the tokenizer is the demo's, else samples of the LLM.
    """
    a, _ = load_llm(suspect, dtype="float32")
    b, tokenizer = load_llm(llm, dtype="float32")
    rng = np.random.default_rng(seed)
    texts = held_out_texts(b, tokenizer, count=prompts, tokens=PROMPT_TOKENS, rng=rng)
    states = _states(b, texts)
    others = [newborn(a, int(rng.integers(2**31))) for _ in range(nulls)]
    (cosine, cka), *null = [_alike(m, b, texts, states) for m in (a, *others)]
    return Lineage(
        verbatim=verbatim_share(suspect, llm),
        cosine=cosine,
        cka=cka,
        null_cosine=tuple(c for c, _ in null),
        null_cka=tuple(c for _, c in null),
    )


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
    """Return how many parameters of `b` stand in tensors that `a` holds too, in the precision of `b`."""
    same = (n for n, t in b.items() if n in a and torch.equal(a[n].to(t), t))
    return sum(b[n].numel() for n in same)


def _alike(
    a: nn.Module, b: nn.Module, texts: torch.Tensor, states: list[torch.Tensor]
) -> tuple[float, float]:
    table = np.array([[_cosine(x, y) for y in blocks_of(b)] for x in blocks_of(a)])
    rows, columns = linear_sum_assignment(-table)
    own_states = _states(a, texts)
    cka = [linear_cka(own_states[i], states[j]) for i, j in zip(rows, columns, strict=True)]
    return float(table[rows, columns].mean()), float(np.mean(cka))


def _cosine(a: nn.Module, b: nn.Module) -> float:
    """Return the mean cosine over the weight matrices of two blocks; -1 if their shapes differ."""
    theirs = dict(b.named_parameters())
    cosines = []
    for name, p in a.named_parameters():
        if p.dim() == 2:
            q = theirs.get(name)
            if q is None or q.shape != p.shape:
                return -1.0
            x, y = p.detach().double().flatten(), q.detach().double().flatten()
            cosines.append(float(x @ y / (x.norm() * y.norm()).clamp_min(1e-30)))
    return float(np.mean(cosines))


@torch.inference_mode()
def _states(model: nn.Module, texts: torch.Tensor) -> list[torch.Tensor]:
    """Return every block's output, float32 [n * tokens, hidden]."""
    outputs: list[list[torch.Tensor]] = [[] for _ in blocks_of(model)]
    handles = []
    for index, block in enumerate(blocks_of(model)):

        def keep(_module: nn.Module, _args: object, out: Any, index: int = index) -> None:
            h = out[0] if isinstance(out, tuple) else out
            outputs[index].append(h.float().flatten(0, 1).cpu())

        handles.append(block.register_forward_hook(keep))
    try:
        for part in texts.split(16):
            model(input_ids=part.to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(f) for f in outputs]
